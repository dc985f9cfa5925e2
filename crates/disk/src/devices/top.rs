//! What is done to a device that a guest may be using.

use std::path::Path;
use std::sync::Arc;

use super::dm::{Access, Target};
use super::names::{self, Device, Role};
use super::stack::{self, Below, Built};
use super::{DeviceNumber, Inner, PATIENCE, Used, node};
use crate::chain::{self, Kind};
use crate::cow::{self, CHUNK, MOST_BYTES};
use crate::{DiskError, MIB};

/// The device that a VMM has open, and the layer's device that it leads to.
#[derive(Debug)]
pub(super) struct Top {
    name: String,
    number: DeviceNumber,
    sectors: u64,
    pub(super) layer: Device,
    id: String,
}

impl Top {
    pub(super) fn layer_name(&self) -> String {
        chain::layer_name(&self.id, Kind::Cow)
    }
}

/// [`Devices::push`](super::Devices::push).
pub(super) fn push(inner: &Inner, owner: &str, layer: &Path) -> Result<(), DiskError> {
    let top = inner.top(owner)?;
    if top.layer_name() == chain::file_name(layer) {
        return Ok(());
    }
    let Some(id) = chain::layer_id(chain::file_name(layer), Kind::Cow) else {
        return Err(DiskError::not_a_layer(layer, "its name is not that of a copy-on-write layer"));
    };
    let name = names::name(&inner.prefix, owner, &Role::Layer(id.to_owned()));
    let devices = inner.devices(Some(owner))?;
    let staged = devices.iter().find(|device| device.name == name);
    let staged = staged.ok_or_else(|| DiskError::NotAttached { device: name.clone() })?;
    let table = inner.snapshot_table(&staged.name)?;
    let refused = |reason| Err(DiskError::StrangeDevice { device: name.clone(), reason });
    if inner.below(&table, &devices)?.0.number != top.layer.number {
        return refused("it was staged over a layer that does not take the writes any more");
    }
    if table.sectors < top.sectors {
        return refused("it is smaller than the disk, which has grown since it was staged");
    }
    // Suspending does the same, but then the guest waits for it.
    inner.flush(&top)?;
    inner.switch(&top.name, table.sectors, staged.number)?;
    if let Err(error) = inner.give_back(&top, layer) {
        tracing::warn!(layer = top.layer_name(), %error, "a frozen layer keeps room that it does not need");
    }
    Ok(())
}

/// [`Devices::grow`](super::Devices::grow).
///
/// A snapshot cannot be longer than its origin, and the kernel hands the index of a live one over to a new table only
/// when that has the same origin. So the origin is replaced, by a longer one: with the device suspended all of its index
/// is in the file, from where the new table reads it; the old one is dropped before anything is written again.
pub(super) fn grow(inner: &Arc<Inner>, owner: &str, bytes: u64) -> Result<(), DiskError> {
    let top = inner.top(owner)?;
    let table = inner.snapshot_table(&top.layer.name)?;
    if bytes > MOST_BYTES {
        return Err(DiskError::TooLarge { asked_mb: bytes / MIB, most_mb: MOST_BYTES / MIB });
    }
    let bytes = bytes.next_multiple_of(CHUNK);
    let sectors = bytes / 512;
    if sectors < table.sectors {
        let base_mb = (table.sectors * 512).div_ceil(MIB);
        return Err(DiskError::TooSmall { asked_mb: bytes / MIB, base_mb });
    }
    let mut old = None;
    if sectors > table.sectors {
        note_size(inner, &top, &table, bytes)?;
        old = replace_origin(inner, owner, &top, &table, sectors)?;
    }
    // The top may be shorter than its layer also because somebody was stopped in here.
    if sectors > top.sectors {
        inner.switch(&top.name, sectors, top.layer.number)?;
    }
    if let Some(error) = old.and_then(|old| inner.remove_patiently(&old, PATIENCE).err()) {
        tracing::warn!(%error, "a device that is not used any more is removed with the rest later");
    }
    Ok(())
}

/// Writes the new size into the layer's file, and gives its store the length that it then may need.
fn note_size(inner: &Inner, top: &Top, table: &SnapshotTable, bytes: u64) -> Result<(), DiskError> {
    let failed = |source| DiskError::device("find the file of", &top.layer.name, source);
    let path = inner.loops.backing_file(table.store).map_err(failed)?;
    cow::grow(&cow::open_to_write(&path)?, &path, bytes)?;
    let resized = inner.loops.resize(table.store);
    resized.map_err(|source| DiskError::device("lengthen the store of", &top.layer.name, source))
}

/// Puts the layer over what is below it in a length of `sectors`. The top stays suspended when that has succeeded. The
/// name of what made it longer before comes back.
fn replace_origin(
    inner: &Arc<Inner>,
    owner: &str,
    top: &Top,
    table: &SnapshotTable,
    sectors: u64,
) -> Result<Option<String>, DiskError> {
    let devices = inner.devices(Some(owner))?;
    let (below, old) = inner.below(table, &devices)?;
    let unused = Role::Extension(top.id.clone(), sectors);
    if let Some(unused) = devices.iter().find(|device| device.role == unused) {
        inner.remove_patiently(&unused.name, PATIENCE)?;
    }
    let mut built = Built::new(inner);
    let origin = stack::extend(&mut built, owner, &below, &top.id, sectors)?;
    inner.replace(top, &[stack::snapshot(origin, table.store, sectors)])?;
    built.keep();
    Ok(old)
}

/// A layer's table.
#[derive(Debug)]
pub(super) struct SnapshotTable {
    pub(super) sectors: u64,
    origin: DeviceNumber,
    store: DeviceNumber,
}

impl Inner {
    /// What the kernel's tables say of the device of `owner`.
    pub(super) fn top(&self, owner: &str) -> Result<Top, DiskError> {
        let name = names::name(&self.prefix, owner, &Role::Top);
        let devices = self.devices(Some(owner))?;
        let Some(device) = devices.iter().find(|device| device.role == Role::Top) else {
            return Err(DiskError::NotAttached { device: name });
        };
        let (sectors, leads_to) = self.linear_table(&name)?;
        let layer = devices.iter().find(|device| device.number == leads_to).cloned();
        match layer.map(|layer| (layer.role.clone(), layer)) {
            Some((Role::Layer(id), layer)) => Ok(Top { name, number: device.number, sectors, layer, id }),
            _ => Err(DiskError::StrangeDevice { device: name, reason: "it does not lead to a layer" }),
        }
    }

    /// Everything written to the device is in the files when this returns.
    pub(super) fn flush(&self, top: &Top) -> Result<(), DiskError> {
        let store = self.snapshot_table(&top.layer.name)?.store;
        for number in [top.number, store] {
            let synced = node::open(&self.prefix, number, Access::ReadOnly).and_then(|file| file.sync_all());
            synced.map_err(|source| DiskError::device("flush", &top.name, source))?;
        }
        // A write that failed is told once, to whoever asked first; and a flush goes through to a store that is lost.
        match self.used(top)? {
            Used { valid: false, layer, .. } => Err(DiskError::StoreLost { layer }),
            _ => Ok(()),
        }
    }

    /// How full the store of the layer is.
    pub(super) fn used(&self, top: &Top) -> Result<Used, DiskError> {
        let failed = |source| DiskError::device("ask for the status of", &top.layer.name, source);
        let status = self.control.status(&top.layer.name).map_err(failed)?;
        let says = status.first().map_or("", |target| target.says.trim());
        let found = parse_status(says);
        // What nobody understands is not lost for that.
        if found.is_none() && !LOST.contains(&says) {
            let device = top.layer.name.clone();
            return Err(DiskError::StrangeDevice { device, reason: "its status is not that of a snapshot" });
        }
        let (bytes, capacity_bytes) = found.unwrap_or_default();
        Ok(Used { layer: top.layer_name(), bytes, capacity_bytes, valid: found.is_some() })
    }

    /// Points the top at the device `to`. Where that fails, it is as it was.
    fn switch(&self, top: &str, sectors: u64, to: DeviceNumber) -> Result<(), DiskError> {
        let loaded = self.control.load(top, Access::ReadWrite, &[stack::linear(to, sectors)]);
        let switched =
            loaded.and_then(|()| self.control.suspend(top)).and_then(|()| self.control.resume(top));
        switched.map_err(|source| {
            self.restore(top);
            DiskError::device("switch", top, source)
        })
    }

    /// Gives the layer's device a new table. The top is suspended then; where this fails, both are as they were.
    fn replace(&self, top: &Top, table: &[Target]) -> Result<(), DiskError> {
        let lower = &top.layer.name;
        let replaced = || {
            self.control.suspend(&top.name)?;
            self.control.suspend(lower)?;
            // The kernel reads the index now, so nothing may be on its way to it any more.
            self.control.load(lower, Access::ReadWrite, table)?;
            self.control.resume(lower)
        };
        replaced().map_err(|source| {
            self.restore(lower);
            self.restore(&top.name);
            DiskError::device("lengthen", lower, source)
        })
    }

    /// Takes back what was loaded and lets the device work again, after something else has failed.
    fn restore(&self, name: &str) {
        if let Err(error) = self.control.clear(name).and_then(|()| self.control.resume(name)) {
            tracing::error!(device = name, %error, "a device stays suspended");
        }
    }

    /// What the layer of a table is put over, without what makes it longer; that device's name comes second.
    fn below(&self, table: &SnapshotTable, devices: &[Device]) -> Result<(Below, Option<String>), DiskError> {
        let origin = devices.iter().find(|device| device.number == table.origin);
        match origin.map(|device| (&device.role, device)) {
            Some((Role::Extension(..), device)) => {
                let targets = self.table(&device.name)?;
                let below = match targets.first().and_then(parse_linear) {
                    Some((sectors, number)) => Below { number, sectors, shared: false, _held: None },
                    // Zeros alone, over a base of no length.
                    None => Below { number: table.origin, sectors: 0, shared: false, _held: None },
                };
                Ok((below, Some(device.name.clone())))
            }
            _ => {
                Ok((Below { number: table.origin, sectors: table.sectors, shared: false, _held: None }, None))
            }
        }
    }

    /// Frees the room that was taken for the layer of `top`, beside `above`, and that nothing will be written to.
    fn give_back(&self, top: &Top, above: &Path) -> Result<(), DiskError> {
        let used = self.used(top)?;
        let path = above.with_file_name(&used.layer);
        if used.valid { cow::give_back(&path, used.bytes) } else { Ok(()) }
    }

    fn table(&self, name: &str) -> Result<Vec<Target>, DiskError> {
        self.control.table(name).map_err(|source| DiskError::device("read the table of", name, source))
    }

    fn linear_table(&self, name: &str) -> Result<(u64, DeviceNumber), DiskError> {
        let targets = self.table(name)?;
        let parsed = targets.first().and_then(parse_linear);
        parsed.ok_or_else(|| DiskError::StrangeDevice {
            device: name.to_owned(),
            reason: "it has no linear table",
        })
    }

    pub(super) fn snapshot_table(&self, name: &str) -> Result<SnapshotTable, DiskError> {
        let targets = self.table(name)?;
        let parsed = targets.first().and_then(parse_snapshot);
        parsed.ok_or_else(|| DiskError::StrangeDevice {
            device: name.to_owned(),
            reason: "it has no snapshot table",
        })
    }
}

/// Length, and the device that it leads to.
fn parse_linear(target: &Target) -> Option<(u64, DeviceNumber)> {
    let (number, offset) = target.says.split_once(' ')?;
    (target.kind == "linear" && offset == "0").then_some((target.length, number.parse().ok()?))
}

fn parse_snapshot(target: &Target) -> Option<SnapshotTable> {
    let mut words = target.says.split(' ');
    let (origin, store) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    (target.kind == "snapshot").then_some(SnapshotTable { sectors: target.length, origin, store })
}

/// The kernel's words for a store that it has given up (`snapshot_status` in `drivers/md/dm-snap.c`).
const LOST: [&str; 3] = ["Invalid", "Overflow", "Merge failed"];

/// Bytes in use and in all, of a status `<sectors>/<sectors> <sectors of metadata>`.
fn parse_status(says: &str) -> Option<(u64, u64)> {
    let (used, all) = says.split(' ').next()?.split_once('/')?;
    let bytes = |sectors: &str| sectors.parse::<u64>().ok()?.checked_mul(512);
    bytes(used).zip(bytes(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_snapshot_is_read() {
        assert_eq!(parse_status("16/2064 16"), Some((8192, 2064 * 512)));
        for says in ["Invalid", "Overflow", "Merge failed", "Unknown", "", "a/b 1"] {
            assert_eq!(parse_status(says), None, "{says}");
        }
    }

    #[test]
    fn a_table_reads_as_it_was_written() {
        let (one, two) = (DeviceNumber { major: 253, minor: 4 }, DeviceNumber { major: 7, minor: 9 });
        assert_eq!(parse_linear(&stack::linear(one, 8)), Some((8, one)));
        let table = parse_snapshot(&stack::snapshot(one, two, 16)).unwrap();
        assert_eq!((table.origin, table.store, table.sectors), (one, two, 16));
        assert!(parse_linear(&stack::snapshot(one, two, 16)).is_none());
        assert!(parse_snapshot(&stack::linear(one, 8)).is_none());
    }
}
