//! A machine on disk: memory image, device state and disk, in one directory.
//!
//! It is what a paused capsule lies in, what a snapshot template and a warm template hold, and what forks start from. None
//! of its files is ever written again, so a copy of the whole is a set of hard links ([`Saved::link`]), and removing one
//! hurts no other.
//!
//! The memory image carries sums of its own. The other files are known by size and time of the last change, and the
//! small device state by its sum too, so that what was cut, overwritten or put there by somebody else is refused by name.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wrenn_core::Shape;
use wrenn_disk::{Chain, DiskError, RootDisks};
use wrenn_image::{Image, ImageError};
use wrenn_protocol::guest::InitResponse;

/// Why a saved machine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// A file is not as it was left.
    #[error("the saved file {name} is damaged: {what}; only an intact copy of it can be resumed")]
    Damaged {
        /// Its name in the directory.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// It was saved by another kind of machine.
    #[error(
        "it was saved on {saved} and this host runs {here}: resume it on such a host, or put that version back"
    )]
    Unfit {
        /// Where it was saved.
        saved: String,
        /// What is here.
        here: String,
    },
    /// Its memory image.
    #[error("the saved memory cannot be used")]
    Memory(#[from] ImageError),
    /// Its disk.
    #[error("the saved disk cannot be used")]
    Disk(#[from] DiskError),
    /// The directory.
    #[error("the saved files cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// What a device state fits: the state has no form that another version or another CPU is bound to understand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fits {
    /// Driver and version of its VMM.
    pub vmm: String,
    /// What executes the guest's instructions, and on which CPU where that matters.
    pub cpu: String,
}

impl Fits {
    /// The driver's name.
    pub fn driver(&self) -> &str {
        self.vmm.split(' ').next().unwrap_or_default()
    }
}

impl std::fmt::Display for Fits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.vmm, self.cpu)
    }
}

/// How a file was left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    name: String,
    bytes: u64,
    /// Nanoseconds since 1970 of the last change of its content.
    modified: i64,
}

/// A machine on disk, by the names of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Header of the memory image.
    pub memory: String,
    /// Device state.
    pub devices: String,
    /// Top layer of the disk, which is frozen.
    pub disk: String,
    /// Hex SHA-256 of the device state.
    devices_sum: String,
    files: Vec<Stamp>,
    /// Where it can be brought back.
    pub fits: Fits,
    /// vCPUs, memory, disk.
    pub shape: Shape,
    /// Token that its guest daemon demands; empty where it demands none yet.
    pub access_token: String,
    /// What the guest told of itself.
    pub guest: Option<InitResponse>,
}

/// What a saved machine is, beside its files.
#[derive(Debug, Clone)]
pub struct About {
    /// As [`Saved::fits`].
    pub fits: Fits,
    /// As [`Saved::shape`].
    pub shape: Shape,
    /// As [`Saved::access_token`].
    pub access_token: String,
    /// As [`Saved::guest`].
    pub guest: Option<InitResponse>,
}

impl Saved {
    /// Describes files that are complete. All lie in the image's directory.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn describe(image: &Image, devices: &Path, disk: &Chain, about: About) -> io::Result<Self> {
        let files = std::iter::once(devices).chain(disk.files().map(PathBuf::as_path));
        Ok(Self {
            memory: name_of(image.header_path()),
            devices: name_of(devices),
            disk: disk.top_name().to_owned(),
            devices_sum: sum(devices)?,
            files: files.map(Stamp::of).collect::<io::Result<_>>()?,
            fits: about.fits,
            shape: about.shape,
            access_token: about.access_token,
            guest: about.guest,
        })
    }

    /// What it is, beside its files.
    pub fn about(&self) -> About {
        About {
            fits: self.fits.clone(),
            shape: self.shape,
            access_token: self.access_token.clone(),
            guest: self.guest.clone(),
        }
    }

    /// Opens the memory image and checks every file in `dir`. Blocks.
    ///
    /// # Errors
    /// [`SavedError`] naming the file that is missing or damaged, or what does not fit `here`.
    pub fn open(&self, dir: &Path, here: &Fits) -> Result<Arc<Image>, SavedError> {
        if self.fits != *here {
            return Err(SavedError::Unfit { saved: self.fits.to_string(), here: here.to_string() });
        }
        for file in &self.files {
            file.check(dir)?;
        }
        if sum(&dir.join(&self.devices))? != self.devices_sum {
            let what = "its content is not what was written".to_owned();
            return Err(SavedError::Damaged { name: self.devices.clone(), what });
        }
        let image = Image::open(&dir.join(&self.memory))?;
        image.verify_base()?;
        Ok(Arc::new(image))
    }

    /// Shares all files with another directory, and describes what is there.
    ///
    /// # Errors
    /// [`SavedError`] where a file is missing, or the directory cannot be written.
    pub async fn link(&self, from: &Path, to: &Path, disks: &dyn RootDisks) -> Result<Self, SavedError> {
        let chain = disks.open(from, &self.disk).await?;
        let chain = disks.link(&chain, to).await?;
        let (saved, from, to) = (self.clone(), from.to_owned(), to.to_owned());
        crate::blocking(move || {
            let header = format!("{}.image", new_stem("memory"));
            let image = Image::open(&from.join(&saved.memory))?.link_into(&to, &header, false)?;
            let devices = to.join(&saved.devices);
            link_or_copy(&from.join(&saved.devices), &devices)?;
            Ok(Self::describe(&image, &devices, &chain, saved.about())?)
        })
        .await
    }

    /// Removes files of memory and devices in `dir` that this does not name: what was replaced, what a failed attempt
    /// left. `None` removes them all.
    ///
    /// # Errors
    /// Where one cannot be removed.
    pub fn remove_others(saved: Option<&Self>, dir: &Path) -> Result<(), SavedError> {
        let mut keep: Vec<String> = Vec::new();
        if let Some(saved) = saved {
            let image = Image::open(&dir.join(&saved.memory))?;
            keep.extend(image.files().iter().map(|path| name_of(path)));
            keep.push(saved.devices.clone());
        }
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let ours = name.starts_with("memory-") || name.starts_with("devices-");
            if ours && !keep.contains(&name) {
                fs::remove_file(dir.join(&name))?;
            }
        }
        Ok(())
    }
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        let modified = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
        Ok(Self { name: name_of(path), bytes: meta.len(), modified })
    }

    fn check(&self, dir: &Path) -> Result<(), SavedError> {
        let damaged = |what: String| Err(SavedError::Damaged { name: self.name.clone(), what });
        match Self::of(&dir.join(&self.name)) {
            Ok(found) if found == *self => Ok(()),
            Ok(found) if found.bytes != self.bytes => {
                damaged(format!("it has {} bytes in place of {}", found.bytes, self.bytes))
            }
            Ok(_) => damaged("it was changed since".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => damaged("it is missing".to_owned()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A file name's beginning that no other file has.
pub(crate) fn new_stem(kind: &str) -> String {
    format!("{kind}-{}", hex::encode(rand::random::<[u8; 6]>()))
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn sum(path: &Path) -> io::Result<String> {
    Ok(hex::encode(Sha256::digest(fs::read(path)?)))
}

/// A second name for a file that is never written again, or else a copy.
fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}
