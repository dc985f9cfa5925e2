//! Commands of every kind, fired at random at twenty capsules at once.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use wrenn_agent::capsule::Capsule;
use wrenn_agent::error::CapsuleError;
use wrenn_agent::manager::Manager;
use wrenn_agent::record::{CapsuleSpec, Phase};
use wrenn_agent::warm::Warm;
use wrenn_core::{CapsuleId, Shape};

use crate::audit::{audit, destroy_all};
use crate::common::{Host, shell, spec, try_run};

/// Capsules at a time.
const CAPSULES: usize = 20;
/// Commands at a time.
const HANDS: u64 = 6;
/// Longer than any command takes.
const STUCK: Duration = Duration::from_secs(120);

/// What a command that succeeded has written, by file name.
type Written = BTreeMap<String, String>;

struct Chaos {
    host: Host,
    manager: Manager,
    capsules: Mutex<HashMap<CapsuleId, Written>>,
    counter: AtomicU64,
    done: Mutex<BTreeMap<&'static str, [u64; 2]>>,
}

/// What may follow a phase, with any number of steps left out between two reports.
fn may_follow(before: Phase, after: Phase) -> bool {
    match before {
        Phase::Starting => true,
        Phase::Stopping => matches!(after, Phase::Stopping | Phase::Stopped),
        Phase::Stopped => false,
        _ => after != Phase::Starting,
    }
}

impl Chaos {
    /// One capsule, on a host that keeps `spares` machines ready for the next creates and resumes.
    async fn begin(spares: u32) -> Self {
        let host = Host::new();
        let mut env = host.environment().await;
        if spares > 0 {
            env.warm = Arc::new(Warm::new(4096, spares));
        }
        let manager = Manager::new(Arc::new(env));
        wrenn_agent::warm::begin(manager.env()).await;
        let capsules = Mutex::default();
        let chaos = Self { host, manager, capsules, counter: AtomicU64::new(0), done: Mutex::default() };
        chaos.create().await;
        chaos
    }

    /// A new capsule of the base template.
    async fn create(&self) -> Capsule {
        let shape = Shape { vcpus: 1, memory_mb: 128, disk_mb: 1024 };
        let capsule = self.manager.create(CapsuleSpec { shape, ..spec(0) });
        capsule.booted().await.unwrap();
        shell(&capsule, "mkdir /root/written /dev/shm/written").await;
        self.with(|all| all.insert(capsule.id(), Written::new()));
        capsule
    }

    fn with<T>(&self, work: impl FnOnce(&mut HashMap<CapsuleId, Written>) -> T) -> T {
        work(&mut self.capsules.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A capsule that nobody was about to destroy a moment ago.
    fn any(&self, random: &mut StdRng) -> Option<Capsule> {
        let mut ids = self.with(|all| all.keys().copied().collect::<Vec<_>>());
        ids.sort();
        let id = ids.get(random.random_range(0..ids.len().max(1)))?;
        self.manager.get(*id)
    }

    fn note(&self, command: &'static str, succeeded: bool) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.entry(command).or_default()[usize::from(!succeeded)] += 1;
    }

    /// Fires commands until the time is over.
    async fn fire(&self, mut random: StdRng, until: Instant, creates: bool) {
        while Instant::now() < until {
            let Some(capsule) = self.any(&mut random) else { continue };
            let (name, command): (_, futures::future::BoxFuture<'_, bool>) = match random.random_range(0..100)
            {
                0..40 => ("write", Box::pin(self.write(&capsule))),
                40..60 => ("pause", Box::pin(async { capsule.pause().await.is_ok() })),
                60..85 => ("resume", Box::pin(self.resume(&capsule))),
                85..91 => ("fork", Box::pin(self.fork(&capsule, 1))),
                91..95 => ("template", Box::pin(self.template(&capsule))),
                95..98 if creates => ("create", Box::pin(async { self.replace_by_new(&capsule).await })),
                _ => ("destroy", Box::pin(self.replace(&capsule))),
            };
            let outcome = tokio::time::timeout(STUCK, command).await;
            let id = capsule.id();
            let succeeded =
                outcome.unwrap_or_else(|_| panic!("{name} of {id} is stuck: {:?}", capsule.state()));
            self.note(name, succeeded);
        }
    }

    /// Runs a line as traffic does: behind the gate, and until that is cut.
    async fn line(capsule: &Capsule, line: &str) -> Option<String> {
        let lease = capsule.gate().lease()?;
        let (code, output) = tokio::select! {
            ended = try_run(capsule, line) => ended.ok()?,
            () = lease.revoked() => return None,
        };
        assert_eq!(code, 0, "`{line}`: {output}");
        Some(output)
    }

    async fn write(&self, capsule: &Capsule) -> bool {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        let dir = if number.is_multiple_of(3) { "/dev/shm/written" } else { "/root/written" };
        let (name, text) = (format!("{dir}/{number}"), format!("{number}-{}", capsule.id()));
        let wrote = Self::line(capsule, &format!("echo {text} >{name}")).await.is_some();
        if wrote {
            self.with(|all| all.get_mut(&capsule.id()).map(|written| written.insert(name, text)));
        }
        wrote
    }

    /// Only a capsule that is being destroyed is not brought back.
    async fn resume(&self, capsule: &Capsule) -> bool {
        match capsule.resume().await {
            Ok(_) => self.read_back(capsule).await,
            Err(failure) => {
                assert!(
                    matches!(*failure, CapsuleError::Stopping(_)),
                    "{}: {}",
                    capsule.id(),
                    failure.chain()
                );
                false
            }
        }
    }

    /// All that was written is there, or nobody could look.
    async fn read_back(&self, capsule: &Capsule) -> bool {
        let written = self.with(|all| all.get(&capsule.id()).cloned()).unwrap_or_default();
        let line = "cd /; for f in /root/written/* /dev/shm/written/*; do [ -e $f ] && echo $f $(cat $f); done; true";
        let Some(output) = Self::line(capsule, line).await else { return false };
        let found: HashMap<&str, &str> = output.lines().filter_map(|line| line.split_once(' ')).collect();
        for (name, text) in &written {
            assert_eq!(found.get(&**name), Some(&&**text), "{name} of {}", capsule.id());
        }
        true
    }

    /// Adds copies, which have what the source had before.
    async fn fork(&self, source: &Capsule, copies: usize) -> bool {
        let room = CAPSULES.saturating_sub(self.with(|all| all.len()));
        let ids: Vec<CapsuleId> = (0..copies.min(room)).map(|_| CapsuleId::random()).collect();
        if ids.is_empty() {
            return false;
        }
        let written = self.with(|all| all.get(&source.id()).cloned()).unwrap_or_default();
        let clones = match self.manager.fork(source, &ids).await {
            Ok(clones) => clones,
            Err(failure) => {
                println!("no copies of {}: {}", source.id(), failure.chain());
                assert!(ids.iter().all(|id| self.manager.get(*id).is_none()), "all copies or none");
                return false;
            }
        };
        for clone in &clones {
            self.with(|all| all.insert(clone.id(), written.clone()));
            // False where another hand has paused it by now.
            self.read_back(clone).await;
        }
        true
    }

    async fn template(&self, source: &Capsule) -> bool {
        let team = Path::new("00000000-0000-0000-0000-000000000001");
        let path = team.join(self.counter.fetch_add(1, Ordering::Relaxed).to_string());
        let written = self.with(|all| all.get(&source.id()).cloned()).unwrap_or_default();
        let made = match self.manager.make_template(source, &path, "t").await {
            Ok(made) => made,
            Err(failure) => {
                println!("no template of {}: {}", source.id(), failure.chain());
                return false;
            }
        };
        let copy =
            self.manager.create(CapsuleSpec { template_path: path.clone(), shape: made.shape, ..spec(0) });
        copy.booted().await.unwrap();
        self.with(|all| all.insert(copy.id(), written));
        self.read_back(&copy).await;
        let env = self.manager.env();
        env.templates.remove(&path, &env.staging).unwrap();
        self.destroy(&copy).await;
        true
    }

    async fn destroy(&self, capsule: &Capsule) {
        self.with(|all| all.remove(&capsule.id()));
        capsule.destroy().await;
    }

    /// Destroys a capsule and makes another of the base template.
    async fn replace_by_new(&self, capsule: &Capsule) -> bool {
        self.destroy(capsule).await;
        self.create().await;
        true
    }

    /// Destroys a capsule, unless it is one of the last, and lets others take its place.
    async fn replace(&self, capsule: &Capsule) -> bool {
        if self.with(|all| all.len()) <= CAPSULES / 2 {
            return false;
        }
        self.destroy(capsule).await;
        let others = self.manager.all();
        for other in others {
            if self.with(|all| all.contains_key(&other.id())) && self.fork(&other, 1).await {
                return true;
            }
        }
        false
    }
}

/// Looks at every report until the capsules are gone: each is newer than the one before, and may follow it.
async fn watch(manager: Manager, stop: tokio_util::sync::CancellationToken) -> u64 {
    let mut changes = manager.changes();
    let mut last: HashMap<CapsuleId, (u64, Phase)> = HashMap::new();
    let mut seen = 0;
    loop {
        let change = tokio::select! {
            biased;
            change = changes.recv() => change.unwrap(),
            () = stop.cancelled() => return seen,
        };
        let (id, phase, generation) = (change.capsule.id(), change.state.phase, change.state.generation);
        if let Some((before, from)) = last.insert(id, (generation, phase)) {
            assert!(generation > before, "{id}: generation {generation} after {before}");
            assert!(may_follow(from, phase), "{id} is {phase:?} after {from:?}");
        }
        seen += 1;
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_commands_at_twenty_capsules_lose_no_file_and_leave_nothing() {
    rage(number("WRENN_CHAOS_SECONDS", 45), 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_holds_on_a_host_that_keeps_machines_ready() {
    rage(number("WRENN_CHAOS_SECONDS", 45) / 2, 2).await;
}

async fn rage(seconds: u64, spares: u32) {
    let seed = number("WRENN_CHAOS_SEED", rand::random());
    println!("WRENN_CHAOS_SEED={seed}");
    let chaos = Chaos::begin(spares).await;
    let stop = tokio_util::sync::CancellationToken::new();
    let watching = tokio::spawn(watch(chaos.manager.clone(), stop.clone()));
    let first = chaos.manager.all().remove(0);
    assert!(chaos.fork(&first, CAPSULES - 1).await);
    let until = Instant::now() + Duration::from_secs(seconds);
    let random = |hand| StdRng::seed_from_u64(seed.wrapping_add(hand));
    let hands = (0..HANDS).map(|hand| chaos.fire(random(hand), until, spares > 0));
    futures::future::join_all(hands).await;
    let all = chaos.manager.all();
    println!("{} capsules after {:?}", all.len(), chaos.done.lock().unwrap());
    assert!(!all.is_empty());
    for capsule in &all {
        if spares == 0 {
            // Machines that are kept ready are nobody's.
            audit(&chaos.host, &chaos.manager).await;
        }
        capsule.resume().await.unwrap();
        assert!(chaos.read_back(capsule).await);
        capsule.destroy().await;
    }
    let Chaos { host, manager, .. } = chaos;
    manager.env().detach.cancel();
    manager.env().tasks.close();
    manager.env().tasks.wait().await;
    destroy_all(host, &manager).await;
    stop.cancel();
    println!("{} changes seen", watching.await.unwrap());
}
