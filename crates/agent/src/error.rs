//! What can go wrong with a capsule on its host.

use std::path::{Path, PathBuf};

use wrenn_core::CapsuleId;

/// A failed operation on a capsule. Messages reach the API's callers, so they name the cause and no path of the host
/// beyond what a caller can act on.
#[derive(Debug, thiserror::Error)]
pub enum CapsuleError {
    /// The host does not have it.
    #[error("capsule {0} is not on this host")]
    Unknown(CapsuleId),
    /// It is being removed, or was while the call ran.
    #[error("capsule {0} is being destroyed")]
    Stopping(CapsuleId),
    /// It is in a phase that does not allow the call.
    #[error("capsule {id} is {phase}")]
    Phase {
        /// The capsule.
        id: CapsuleId,
        /// What it is doing.
        phase: &'static str,
    },
    /// Its VM ended while the call ran.
    #[error("the virtual machine ended meanwhile: {0}")]
    VmDied(String),
    /// The host has no room for what the guest writes.
    #[error("the host's disk is full: the guest waits until there is room on it")]
    DiskFull,
    /// The guest daemon did not get ready for a pause.
    #[error("the guest did not get ready to be paused: {0}")]
    Prepare(String),
    /// What was saved cannot be used.
    #[error(transparent)]
    Saved(#[from] crate::saved::SavedError),
    /// The guest's memory cannot be written or read.
    #[error("the guest's memory could not be saved")]
    Image(#[from] wrenn_image::ImageError),
    /// A template of that path exists.
    #[error("template files {path} exist already on this host")]
    TemplateExists {
        /// Below `templates/`.
        path: PathBuf,
    },
    /// The template's files are not on this host.
    #[error("template files {path} are not on this host; build or copy the template first")]
    Template {
        /// Below `templates/`.
        path: PathBuf,
        /// What reading them said.
        source: std::io::Error,
    },
    /// Disk smaller than the template's.
    #[error("a disk of {asked} MiB is smaller than the template's {needed} MiB")]
    DiskTooSmall {
        /// MiB asked for.
        asked: u32,
        /// MiB that the template has.
        needed: u32,
    },
    /// The host cannot run machines of its kind.
    #[error(transparent)]
    Driver(#[from] crate::drivers::Missing),
    /// No network slot could be made.
    #[error("the capsule's network could not be set up")]
    Network(#[from] wrenn_net::NetError),
    /// No root disk could be made.
    #[error("the capsule's disk could not be used")]
    Disk(#[from] wrenn_disk::DiskError),
    /// The VMM failed.
    #[error("the virtual machine failed")]
    Vmm(#[from] wrenn_vmm::VmmError),
    /// The guest ended while it booted.
    #[error("the guest stopped while booting ({how}); the end of its console:\n{console}")]
    GuestDied {
        /// How the VMM ended.
        how: String,
        /// Last lines of the console.
        console: String,
    },
    /// The guest daemon did not answer in time.
    #[error("the guest did not answer within {seconds} s of power-on; the end of its console:\n{console}")]
    BootTimeout {
        /// The limit.
        seconds: u64,
        /// Last lines of the console.
        console: String,
    },
    /// The guest daemon refused its initialisation.
    #[error("the guest daemon could not be initialised: {0}")]
    Init(String),
    /// The host's data directory failed.
    #[error("the host could not write its data directory: {0}")]
    Io(#[from] std::io::Error),
}

impl CapsuleError {
    /// The message with those of its sources, joined by `: `.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            source = cause.source();
        }
        text
    }
    /// The same for somebody who is not to know where the data directory `dir` lies: paths in it begin there.
    pub fn chain_below(&self, dir: &Path) -> String {
        let prefix = format!("{}/", dir.components().collect::<PathBuf>().display());
        self.chain().replace(&prefix, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_told_which_file_but_not_where_the_data_directory_is() {
        let path = PathBuf::from("/srv/data/capsules/cl-1/memory-1.layer");
        let error = CapsuleError::from(wrenn_image::ImageError::Full { path });
        assert!(error.chain().contains("\"/srv/data/capsules"), "{}", error.chain());
        for dir in ["/srv/data", "/srv/data/"] {
            let told = error.chain_below(Path::new(dir));
            assert!(told.contains("\"capsules/cl-1/memory-1.layer\"") && !told.contains("/srv"), "{told}");
        }
    }
}
