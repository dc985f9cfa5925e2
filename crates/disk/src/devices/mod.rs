//! The block devices of copy-on-write disks.
//!
//! The layers of a chain become devices of the kernel's device-mapper, one over the other, and on top stands one that
//! never changes its number:
//!
//! ```text
//!   <prefix>-<owner>              linear: the VMM has this one open
//!        │
//!   …-07d3…      snapshot  ◀───── loop, writable ─────── disk-07d3….cow      takes the writes
//!        │
//!   …-07d3…+…    linear + zero    only where the layer is larger than what is below it, or that is the base
//!        │
//!   …-5f0c…      snapshot  ◀───── loop, read-only ────── disk-5f0c….cow      frozen
//!        │
//!   loop, read-only ──────────────────────────────────── disk-0
//! ```
//!
//! A frozen file has one read-only loop device however many owners use it. A store is open to write in one place only:
//! a snapshot device keeps its index in memory, and a second one would write over what the first has written.
//!
//! A push while the guest runs is prepared by [`Devices::stage`]: the snapshot device of the new layer is made over the
//! present one, which goes on taking writes. [`Devices::push`] then suspends the top for the moment that it takes to
//! point it at the new one.
//!
//! Nothing is remembered here. Whose a device is, and for what, stands in its name; all else is in the kernel's tables.
//! So an agent that starts anew finds everything, by [`Devices::owners`] and [`Devices::top`]; loop devices disappear
//! with the devices over them.

mod dm;
mod loops;
mod names;
mod node;
mod stack;
mod top;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use crate::DiskError;
use dm::Control;
use loops::Loops;
use names::{Device, Role};

/// How long a device that is still open is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The number of a device, with which anyone may make a node for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Of the driver.
    pub major: u32,
    /// Of the device.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the kernel's `huge_encode_dev`.
    const fn from_kernel(number: u64) -> Self {
        let major = number >> 8 & 0xfff;
        let minor = number & 0xff | number >> 12 & 0x000f_ff00;
        #[expect(clippy::cast_possible_truncation, reason = "both are masked")]
        Self { major: major as u32, minor: minor as u32 }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const BAD: &str = "it is no device number";
        let (major, minor) = text.split_once(':').ok_or(BAD)?;
        Ok(Self { major: major.parse().map_err(|_| BAD)?, minor: minor.parse().map_err(|_| BAD)? })
    }
}

/// What the top layer of an owner uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// File name of the layer, to give to [`keep_room`](crate::keep_room) with its directory.
    pub layer: String,
    /// Bytes of its store in use, what lists them included; to give to [`keep_room`](crate::keep_room). 0 where the
    /// store is not valid.
    pub bytes: u64,
    /// Bytes that the store can hold.
    pub capacity_bytes: u64,
    /// Whether the kernel still uses the store. One that it could not write to is lost, with everything in the layer.
    pub valid: bool,
}

/// Makes, changes and removes the devices of one installation.
///
/// Calls for one owner come one after the other, by whichever future. All of a call is done by one thread, which goes
/// on when the future is dropped: [`attach`](Self::attach) and [`stage`](Self::stage) then take back what they did, all
/// others finish.
#[derive(Debug, Clone)]
pub struct Devices(Arc<Inner>);

/// Held by whoever works for an owner.
type Turn = Arc<tokio::sync::Mutex<()>>;

#[derive(Debug)]
struct Inner {
    prefix: String,
    control: Control,
    loops: Loops,
    /// Held while a shared loop device is looked for and made, so that there is one.
    sharing: Mutex<()>,
    /// Held during a call for an owner.
    owners: Mutex<HashMap<String, Turn>>,
}

impl Devices {
    /// The devices of the installation `prefix` (letters, digits, '-', 32 at most). Lets those work again that a crash
    /// has left suspended, so a prefix belongs to one process at a time.
    ///
    /// # Errors
    /// [`DiskError::KernelLacks`] names what this machine lacks, [`DiskError::BadName`] refuses the prefix.
    pub fn open(prefix: &str) -> Result<Self, DiskError> {
        names::check_prefix(prefix)?;
        let lacks = |part, cure| move |source| DiskError::KernelLacks { part, cure, source };
        let control = node::open_control(Path::new("/dev/mapper/control"), "device-mapper")
            .and_then(Control::new)
            .map_err(lacks(
                "/dev/mapper/control, the device-mapper,",
                "modprobe dm-mod dm-snapshot, or take a kernel with CONFIG_BLK_DEV_DM; this needs root, too",
            ))?;
        const CURE: &str =
            "modprobe dm-snapshot dm-zero, or take a kernel with CONFIG_DM_SNAPSHOT and CONFIG_DM_ZERO";
        control.check_target("snapshot").map_err(lacks("the snapshot target of the device-mapper", CURE))?;
        control.check_target("zero").map_err(lacks("the zero target of the device-mapper", CURE))?;
        let loops = node::open_control(Path::new("/dev/loop-control"), "loop-control").map_err(lacks(
            "/dev/loop-control",
            "modprobe loop, or take a kernel with CONFIG_BLK_DEV_LOOP; this needs root, too",
        ))?;
        node::sweep(prefix).map_err(|source| DiskError::io("clean", Path::new("/dev"), source))?;
        let inner = Inner {
            prefix: prefix.to_owned(),
            control,
            loops: Loops::new(loops, prefix),
            sharing: Mutex::default(),
            owners: Mutex::default(),
        };
        let all = inner.devices(None)?;
        inner.revive(&all);
        Ok(Self(Arc::new(inner)))
    }

    /// Makes the device of `owner` (letters, digits, '-', 60 at most) from a chain: `base` below, then `layers` from
    /// bottom to top, of which the last takes the writes.
    ///
    /// # Errors
    /// [`DiskError`] where a file is missing or no sound layer over the one before it, the owner has a device, or the
    /// last layer is in use.
    pub async fn attach(
        &self,
        owner: &str,
        base: &Path,
        layers: &[PathBuf],
    ) -> Result<DeviceNumber, DiskError> {
        let (base, layers) = (base.to_path_buf(), layers.to_vec());
        let work = move |inner: &Arc<Inner>, owner: &str| stack::attach(inner, owner, &base, &layers);
        let (built, _turn) = self.run_in_turn(owner, work).await?;
        Ok(built.keep())
    }

    /// Prepares `layer`, an empty one over the present top, while the guest goes on writing to that. Its size may be
    /// larger.
    ///
    /// # Errors
    /// [`DiskError`] where there is no device, or the layer is not sound, not over the present top, smaller than it, or
    /// in use.
    pub async fn stage(&self, owner: &str, layer: &Path) -> Result<(), DiskError> {
        let layer = layer.to_path_buf();
        let work = move |inner: &Arc<Inner>, owner: &str| stack::stage(inner, owner, &layer);
        let (built, _turn) = self.run_in_turn(owner, work).await?;
        built.keep();
        Ok(())
    }

    /// Has the staged `layer` take the writes from now on. All that was written before is in the layer below, and in
    /// its file's page cache. The device grows where the layer is larger.
    ///
    /// # Errors
    /// [`DiskError`] where the layer was not staged, the present top is lost, or the kernel refuses; writes then go where
    /// they went before.
    pub async fn push(&self, owner: &str, layer: &Path) -> Result<(), DiskError> {
        let layer = layer.to_path_buf();
        self.run(owner, move |inner, owner| top::push(inner, owner, &layer)).await
    }

    /// Takes back what [`stage`](Self::stage) did, if it did and the layer does not take the writes.
    ///
    /// # Errors
    /// [`DiskError`] where the kernel refuses.
    pub async fn unstage(&self, owner: &str, layer: &Path) -> Result<(), DiskError> {
        let layer = layer.to_path_buf();
        self.run(owner, move |inner, owner| stack::unstage(inner, owner, &layer)).await
    }

    /// Removes what the device of `owner` does not lead to: what somebody has staged and was stopped before he pushed it
    /// or took it back.
    ///
    /// # Errors
    /// [`DiskError::Device`] where the kernel refuses.
    pub async fn settle(&self, owner: &str) -> Result<(), DiskError> {
        self.run(owner, stack::settle).await
    }

    /// File name of the layer that takes the writes, by the kernel's tables alone.
    ///
    /// # Errors
    /// [`DiskError::NotAttached`] where there is no device.
    pub async fn top(&self, owner: &str) -> Result<String, DiskError> {
        self.run(owner, |inner, owner| Ok(inner.top(owner)?.layer_name())).await
    }

    /// Makes the live device `bytes` long, a multiple of 4096. The top layer's header says so durably before the device
    /// changes. Less than the device has is refused; as much is nothing to do.
    ///
    /// # Errors
    /// [`DiskError`] where there is no device, the size is none, or the kernel refuses; the device then is as it was.
    pub async fn grow(&self, owner: &str, bytes: u64) -> Result<(), DiskError> {
        self.run(owner, move |inner, owner| top::grow(inner, owner, bytes)).await
    }

    /// Returns when everything that was written to the device is in the files, and durable.
    ///
    /// # Errors
    /// [`DiskError::StoreLost`] where the kernel could not write to the layer, [`DiskError`] where there is no device.
    pub async fn flush(&self, owner: &str) -> Result<(), DiskError> {
        self.run(owner, |inner, owner| inner.flush(&inner.top(owner)?)).await
    }

    /// How full the layer is that takes the writes, and whether it is sound.
    ///
    /// # Errors
    /// [`DiskError::NotAttached`] where there is no device.
    pub async fn used(&self, owner: &str) -> Result<Used, DiskError> {
        self.run(owner, |inner, owner| inner.used(&inner.top(owner)?)).await
    }

    /// Removes all devices of `owner`, complete or not; with the last one that needs them go the loop devices. Nothing
    /// to remove is fine.
    ///
    /// # Errors
    /// [`DiskError::Busy`] where one is open for longer than 10 s still, [`DiskError::Device`] where the kernel refuses.
    pub async fn detach(&self, owner: &str) -> Result<(), DiskError> {
        self.run(owner, stack::detach).await
    }

    /// The device of `owner`, if there is one.
    ///
    /// # Errors
    /// [`DiskError::Device`] where the kernel refuses.
    pub async fn number(&self, owner: &str) -> Result<Option<DeviceNumber>, DiskError> {
        self.run(owner, |inner, owner| {
            let found = inner.devices(Some(owner))?;
            Ok(found.iter().find(|device| device.role == Role::Top).map(|device| device.number))
        })
        .await
    }

    /// Everyone who has a device, be it one that a crash has left half made.
    ///
    /// # Errors
    /// [`DiskError::Device`] where the kernel refuses.
    pub async fn owners(&self) -> Result<Vec<String>, DiskError> {
        let inner = Arc::clone(&self.0);
        let mut owners: Vec<_> = blocking(move || inner.devices(None)).await?;
        owners.sort_by(|one, two| one.owner.cmp(&two.owner));
        owners.dedup_by(|one, two| one.owner == two.owner);
        Ok(owners.into_iter().map(|device| device.owner).collect())
    }

    /// Does `work` for `owner` where it may block, when no other call for that owner is under way.
    async fn run<T: Send + 'static>(
        &self,
        owner: &str,
        work: impl FnOnce(&Arc<Inner>, &str) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<T, DiskError> {
        Ok(self.run_in_turn(owner, work).await?.0)
    }

    /// Like [`run`](Self::run); the turn comes after the result. Where the caller is gone, so are both, in that order:
    /// what is taken back then is taken back before anybody else's turn.
    async fn run_in_turn<T: Send + 'static>(
        &self,
        owner: &str,
        work: impl FnOnce(&Arc<Inner>, &str) -> Result<T, DiskError> + Send + 'static,
    ) -> Result<(T, OwnedMutexGuard<()>), DiskError> {
        names::check_owner(owner)?;
        let (inner, owner) = (Arc::clone(&self.0), owner.to_owned());
        blocking(move || {
            let turn = inner.turn(&owner).blocking_lock_owned();
            Ok((work(&inner, &owner)?, turn))
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| DiskError::io("work on", Path::new("/dev/mapper"), std::io::Error::other(error)))?
}

impl Inner {
    /// What whoever works for `owner` has to hold.
    fn turn(&self, owner: &str) -> Turn {
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(owners.entry(owner.to_owned()).or_default())
    }

    /// The devices of this installation, or of one owner.
    fn devices(&self, owner: Option<&str>) -> Result<Vec<Device>, DiskError> {
        let failed = |source| DiskError::device("list", &self.prefix, source);
        let start = owner.map_or_else(|| self.prefix.clone(), |owner| format!("{}-{owner}", self.prefix));
        let mut found = Vec::new();
        for (name, number) in self.control.list().map_err(failed)? {
            if !name.starts_with(&start) {
                continue;
            }
            // It may have gone since.
            let Some(info) = self.control.info(&name).map_err(failed)? else { continue };
            match names::parse_uuid(&self.prefix, &info.uuid) {
                Some((whose, role)) if owner.is_none_or(|owner| owner == whose) => {
                    found.push(Device { name, number, owner: whose, role, suspended: info.suspended });
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Lets suspended devices work again, lower ones first: a VMM that waits for one cannot even be killed.
    fn revive(&self, devices: &[Device]) {
        let suspended = || devices.iter().filter(|device| device.suspended);
        let (tops, layers): (Vec<_>, Vec<_>) = suspended().partition(|device| device.role == Role::Top);
        for device in layers.into_iter().chain(tops) {
            // One without a table cannot work and disappears with the rest.
            if let Err(error) = self.control.resume(&device.name) {
                tracing::warn!(device = device.name, %error, "a suspended device could not be resumed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_writes_them() {
        let number = DeviceNumber { major: 253, minor: 0x1_2345 };
        assert_eq!(DeviceNumber::from_kernel(0x1230_fd45), number);
        assert_eq!(number.to_string().parse(), Ok(number));
        for bad in ["", "7", "7:", ":0", "7:0:1", "a:b"] {
            assert!(bad.parse::<DeviceNumber>().is_err(), "{bad}");
        }
    }
}
