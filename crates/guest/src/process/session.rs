//! Signals a process together with everything it started: its session, and its descendants even if they made sessions
//! of their own.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::reaper::Reaper;

/// How often a killed family is looked at again before a process stuck in the kernel is given up on.
const ROUNDS: u32 = 100;
/// Time between two looks.
const ROUND: Duration = Duration::from_millis(2);

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    pid: i32,
    parent: i32,
    session: i32,
    zombie: bool,
}

/// Sends `signal` to `leader` and its family. SIGKILL is repeated until nothing of the family is left alive, and has
/// the leader collected when this returns. Blocks.
pub(super) fn signal(reaper: &Reaper, leader: i32, signal: Signal) {
    // The leader is kept from being collected meanwhile: its number names its session, which must not come to mean
    // another one.
    let was_running = reaper.with_running(leader, || signal_family(leader, signal));
    if was_running.is_some() && signal == Signal::KILL {
        wait_until_collected(reaper, leader);
    }
}

fn signal_family(leader: i32, signal: Signal) {
    // A signalled process may live on for a moment, and be nobody's descendant any more because its parent went first.
    let mut signalled = HashSet::new();
    for _ in 0..ROUNDS {
        let processes = processes();
        for pid in family(&processes, leader) {
            send(pid, signal);
            signalled.insert(pid);
        }
        let all_dead = !processes.iter().any(|p| !p.zombie && signalled.contains(&p.pid));
        if all_dead || signal != Signal::KILL {
            break;
        }
        std::thread::sleep(ROUND);
    }
}

fn wait_until_collected(reaper: &Reaper, leader: i32) {
    for _ in 0..ROUNDS {
        if reaper.with_running(leader, || ()).is_none() {
            return;
        }
        std::thread::sleep(ROUND);
    }
}

/// Kills everything but the daemon itself: the end of the machine.
pub(crate) fn terminate_all(grace: Duration) {
    for signal in [Signal::TERM, Signal::KILL] {
        kill_everyone(signal);
        let end = std::time::Instant::now() + grace;
        while std::time::Instant::now() < end && others_alive() {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn kill_everyone(signal: Signal) {
    // SAFETY: no memory is involved; −1 is every process but the caller and process 1.
    unsafe { libc::kill(-1, signal.as_raw()) };
}

fn others_alive() -> bool {
    // Kernel threads descend from process 2.
    processes().iter().any(|p| p.pid > 2 && p.parent != 2 && !p.zombie)
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended since it was listed, which is what is wanted.
        let _ = kill_process(pid, signal);
    }
}

/// Everything alive in the session of `leader` or descended from it.
fn family(processes: &[Entry], leader: i32) -> Vec<i32> {
    let parents: HashMap<i32, i32> = processes.iter().map(|p| (p.pid, p.parent)).collect();
    let in_session: HashSet<i32> =
        processes.iter().filter(|p| p.session == leader || p.pid == leader).map(|p| p.pid).collect();
    let belongs = |pid: i32| {
        let mut ancestor = Some(pid);
        for _ in 0..processes.len() {
            match ancestor {
                Some(a) if in_session.contains(&a) => return true,
                Some(a) => ancestor = parents.get(&a).copied(),
                None => return false,
            }
        }
        false
    };
    processes.iter().filter(|p| !p.zombie && belongs(p.pid)).map(|p| p.pid).collect()
}

fn processes() -> Vec<Entry> {
    let Ok(listing) = std::fs::read_dir("/proc") else { return Vec::new() };
    listing
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
        })
        .collect()
}

/// The name in parentheses may hold anything, so fields count from the last closing one.
fn parse(pid: i32, stat: &str) -> Option<Entry> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = matches!(fields.next()?, "Z" | "X");
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    Some(Entry { pid, parent, session, zombie })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pid: i32, parent: i32, session: i32) -> Entry {
        Entry { pid, parent, session, zombie: false }
    }

    #[test]
    fn a_stat_line_with_a_hostile_name_is_read_right() {
        let line = "12 (a) Z 1 1) S 7 12 9 0 -1 4194560";
        assert_eq!(parse(12, line), Some(Entry { pid: 12, parent: 7, session: 9, zombie: false }));
        assert_eq!(parse(12, "12 (x"), None);
    }

    #[test]
    fn the_family_is_the_session_and_all_descendants_but_not_the_dead() {
        let mut table = vec![
            entry(1, 0, 1),
            entry(10, 1, 10),
            entry(11, 10, 10),
            entry(12, 11, 12),
            entry(13, 12, 12),
            entry(14, 1, 10),
            entry(20, 1, 20),
        ];
        assert_eq!(family(&table, 10), [10, 11, 12, 13, 14]);
        table[1].zombie = true;
        assert_eq!(family(&table, 10), [11, 12, 13, 14]);
    }
}
