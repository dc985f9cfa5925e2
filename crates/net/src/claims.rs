//! Who owns which slot: one file per taken slot, shared by all agents of a machine.
//!
//! `<state_dir>/<index>` holds the claim as JSON. It is written without a name and then linked under the name
//! (`O_TMPFILE`, `linkat`), so it appears complete or not at all, only one of several contenders gets it, and a
//! crash leaves no scraps. Two locks lie beside the claims: `.lock` serialises changes to what all agents share,
//! and `.agents` is held shared by every living agent, which tells the last one that it is the last.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::address::SlotIndex;

/// What a claim file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The installation that holds the slot.
    pub(crate) owner: String,
    /// Its data directory; once that is gone, so is the owner.
    pub(crate) data_dir: PathBuf,
    /// The agent process that took the slot; for people who look.
    pub(crate) pid: u32,
}

/// How taking a slot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is ours now.
    Ours,
    /// Somebody was first.
    ByOther,
}

/// The directory of claims.
#[derive(Debug, Clone)]
pub(crate) struct Claims {
    dir: PathBuf,
}

impl Claims {
    /// The claims in `dir`, which is made if need be.
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// The claim file of a slot.
    pub(crate) fn path(&self, index: SlotIndex) -> PathBuf {
        self.dir.join(index.to_string())
    }

    /// Takes a slot, unless it is taken.
    pub(crate) fn take(&self, index: SlotIndex, claim: &Claim) -> io::Result<Taken> {
        let nameless = self.write_nameless(claim)?;
        match link(&nameless, &self.path(index)) {
            Ok(()) => Ok(Taken::Ours),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Taken::ByOther),
            Err(error) => Err(error),
        }
    }

    /// The claim on a slot. `None` where there is none, or where it cannot be understood: such a slot is taken
    /// by somebody we know nothing about.
    pub(crate) fn read(&self, index: SlotIndex) -> io::Result<Option<Claim>> {
        match std::fs::read(self.path(index)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a slot up; none of that number is no error.
    pub(crate) fn give_up(&self, index: SlotIndex) -> io::Result<()> {
        match std::fs::remove_file(self.path(index)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// All taken slots, whoever holds them.
    pub(crate) fn list(&self) -> io::Result<Vec<SlotIndex>> {
        let mut taken = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let name = entry?.file_name();
            // The locks, and anything else that is not a slot's number.
            let number = name.to_str().and_then(|name| name.parse::<u16>().ok());
            taken.extend(number.and_then(|number| SlotIndex::try_from(number).ok()));
        }
        Ok(taken)
    }

    /// Waits for the lock over what all agents share; it is released when the file is closed.
    pub(crate) async fn lock(&self) -> io::Result<File> {
        let path = self.dir.join(".lock");
        tokio::task::spawn_blocking(move || {
            let file = open_lock(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        })
        .await
        .map_err(io::Error::other)?
    }

    /// Enters this agent among the living, until the file is closed. To be called under [`Self::lock`].
    pub(crate) fn attend(&self) -> io::Result<File> {
        let file = open_lock(&self.dir.join(".agents"))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(file)
    }

    /// Whether the holder of `attendance` is the only living agent. To be called under [`Self::lock`].
    pub(crate) fn is_last(attendance: &File) -> bool {
        rustix::fs::flock(attendance, FlockOperation::NonBlockingLockExclusive).is_ok()
    }

    fn write_nameless(&self, claim: &Claim) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::open(&self.dir, flags, Mode::from_raw_mode(0o644))?);
        file.write_all(&serde_json::to_vec(claim)?)?;
        Ok(file)
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn link(nameless: &File, path: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // Linking a descriptor itself needs a capability that linking through /proc does not.
    let source = format!("/proc/self/fd/{}", nameless.as_raw_fd());
    rustix::fs::linkat(CWD, source, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(owner: &str) -> Claim {
        Claim { owner: owner.to_owned(), data_dir: PathBuf::from("/nowhere"), pid: 1 }
    }

    #[test]
    fn of_many_contenders_exactly_one_gets_the_slot_and_no_scraps_remain() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::open(dir.path().to_owned()).unwrap();
        let winners: Vec<_> = std::thread::scope(|scope| {
            let contend = |n: usize| {
                let claims = &claims;
                scope.spawn(move || (n, claims.take(SlotIndex::MIN, &claim(&n.to_string())).unwrap()))
            };
            let contenders: Vec<_> = (0..16).map(contend).collect();
            contenders.into_iter().map(|c| c.join().unwrap()).filter(|(_, t)| *t == Taken::Ours).collect()
        });
        let [(winner, _)] = winners[..] else { panic!("{} winners", winners.len()) };
        assert_eq!(claims.read(SlotIndex::MIN).unwrap(), Some(claim(&winner.to_string())));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_numbers_of_slots_are_listed_and_unreadable_claims_belong_to_nobody_we_know() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::open(dir.path().to_owned()).unwrap();
        for name in ["0", "7", "32768", ".lock", "8.tmp"] {
            std::fs::write(dir.path().join(name), "not a claim").unwrap();
        }
        let seven = SlotIndex::try_from(7).unwrap();
        assert_eq!(claims.list().unwrap(), [seven]);
        assert_eq!(claims.read(seven).unwrap(), None);
    }

    #[test]
    fn the_last_agent_knows_that_it_is_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let claims = Claims::open(dir.path().to_owned()).unwrap();
        let (first, second) = (claims.attend().unwrap(), claims.attend().unwrap());
        assert!(!Claims::is_last(&first));
        drop(first);
        assert!(Claims::is_last(&second));
    }
}
