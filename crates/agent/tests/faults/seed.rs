//! A paused capsule and a template, made once and shared by many data directories: everything in them is immutable, so
//! that hard links are copies.

use std::path::{Path, PathBuf};

use wrenn_agent::capsule::Capsule;
use wrenn_core::{CapsuleId, Shape};

use crate::common::{Host, entries, shell, spec};

/// The path of the template that each data directory has from the beginning.
pub(crate) const KEPT: &str = "00000000-0000-0000-0000-000000000001/kept";

/// Small, so that its files are made and read quickly.
pub(crate) fn shape() -> Shape {
    Shape { vcpus: 1, memory_mb: 192, disk_mb: 1024 }
}

/// Where the data directories come from.
#[derive(Debug)]
pub(crate) struct Seed {
    host: Host,
    id: CapsuleId,
}

impl Seed {
    /// A capsule that was paused `pauses` times, the last time with `dirty_mb` MiB more in its memory.
    pub(crate) async fn make(pauses: u32, dirty_mb: u32) -> Self {
        let host = Host::new();
        let manager = host.manager().await;
        let capsule = manager.create(wrenn_agent::record::CapsuleSpec { shape: shape(), ..spec(0) });
        capsule.booted().await.unwrap();
        fill(&capsule).await;
        manager.make_template(&capsule, Path::new(KEPT), "kept").await.unwrap();
        for pause in 0..pauses {
            if pause > 0 {
                capsule.resume().await.unwrap();
            }
            let megabytes = if pause + 1 == pauses { dirty_mb } else { 0 };
            let line = format!(
                "echo {pause} >>/root/pauses; echo {pause} >/dev/shm/pause; head -c {megabytes}M /dev/urandom >/dev/shm/dirt"
            );
            shell(&capsule, &line).await;
            capsule.pause().await.unwrap();
        }
        // Before the files are tidied.
        manager.env().detach.cancel();
        Self { host, id: capsule.id() }
    }

    /// The capsule's id, the same in every data directory.
    pub(crate) fn id(&self) -> CapsuleId {
        self.id
    }

    /// A new data directory with the capsule, paused, and the template.
    pub(crate) fn sow(&self) -> Host {
        let host = Host::new();
        for part in [Path::new("capsules").join(self.id.to_string()), Path::new("templates").join(KEPT)] {
            share(&self.host.dir.path().join(&part), &host.dir.path().join(&part));
        }
        host
    }
}

/// Gives a guest what `check_guest` looks for.
pub(crate) async fn fill(capsule: &Capsule) {
    let line = "echo memory >/dev/shm/word; echo disk >/root/word; (i=0; while :; do i=$((i+1)); echo $i >/dev/shm/next; mv /dev/shm/next /dev/shm/count; sleep 0.05; done) >/dev/null 2>&1 & echo $! >/dev/shm/pid; while [ ! -e /dev/shm/count ]; do sleep 0.05; done";
    shell(capsule, line).await;
}

/// Links what is never written again, and copies the rest.
fn share(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for path in entries(from).into_iter().filter(|path| path.is_file()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let target: PathBuf = to.join(&name);
        if ["memory-", "devices-", "disk-"].iter().any(|kind| name.starts_with(kind)) {
            std::fs::hard_link(&path, &target).unwrap();
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
