//! Building devices one over the other, and taking them away.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::dm::{Access, Target};
use super::loops::Loop;
use super::names::{self, Device, Role};
use super::{DeviceNumber, Inner, PATIENCE};
use crate::chain::{self, BASE, Kind};
use crate::cow::{self, BLOCK, CHUNK_SECTORS, Layer};
use crate::{DiskError, MOST_LAYERS, files};

/// How long devices that are taken back are waited for: a sweep finds what stays.
const UNDO_PATIENCE: Duration = Duration::from_secs(2);

/// Devices that go away again unless their maker comes to say that they stay.
#[derive(Debug)]
pub(super) struct Built {
    inner: Arc<Inner>,
    names: Vec<String>,
    number: DeviceNumber,
}

impl Built {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self { inner: Arc::clone(inner), names: Vec::new(), number: DeviceNumber { major: 0, minor: 0 } }
    }

    /// Gives the devices up: they stay. The number is that of the last one.
    pub(super) fn keep(mut self) -> DeviceNumber {
        self.names.clear();
        self.number
    }

    /// Makes a device and lets it work.
    pub(super) fn add(
        &mut self,
        owner: &str,
        role: &Role,
        access: Access,
        targets: &[Target],
    ) -> Result<DeviceNumber, DiskError> {
        let name = names::name(&self.inner.prefix, owner, role);
        let uuid = names::uuid(&self.inner.prefix, owner, role);
        let control = &self.inner.control;
        self.number = control.create(&name, &uuid).map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => DiskError::Attached { device: name.clone() },
            _ => DiskError::device("create", &name, source),
        })?;
        self.names.push(name.clone());
        let loaded = control.load(&name, access, targets).and_then(|()| control.resume(&name));
        loaded.map_err(|source| DiskError::device("load a table into", &name, source))?;
        Ok(self.number)
    }
}

impl Drop for Built {
    fn drop(&mut self) {
        for name in self.names.iter().rev() {
            if let Err(error) = self.inner.remove_patiently(name, UNDO_PATIENCE) {
                tracing::warn!(device = name, %error, "a device that was to be taken back is still there");
            }
        }
    }
}

/// What a layer is put over.
#[derive(Debug)]
pub(super) struct Below {
    pub(super) number: DeviceNumber,
    pub(super) sectors: u64,
    /// Others put layers over it too.
    pub(super) shared: bool,
    /// Keeps a loop device until a table does.
    pub(super) _held: Option<Loop>,
}

/// A layer's file, as far as its devices need it.
#[derive(Debug)]
struct Sound {
    path: PathBuf,
    id: String,
    sectors: u64,
}

impl Sound {
    /// Reads the layer `path`, which must build on the file called `below`.
    fn open(path: &Path, below: &str) -> Result<Self, DiskError> {
        let damaged = |reason| DiskError::not_a_layer(path, reason);
        let id = chain::layer_id(chain::file_name(path), Kind::Cow);
        let id = id.ok_or_else(|| damaged("its name is not that of a copy-on-write layer"))?;
        let header = Layer::open(path)?.header;
        if header.below != below {
            return Err(damaged("it does not build on the layer that it is to be put over"));
        }
        Ok(Self { path: path.to_path_buf(), id: id.to_owned(), sectors: header.virtual_bytes / 512 })
    }
}

/// [`Devices::attach`](super::Devices::attach).
pub(super) fn attach(
    inner: &Arc<Inner>,
    owner: &str,
    base: &Path,
    layers: &[PathBuf],
) -> Result<Built, DiskError> {
    let Some((top, frozen)) = layers.split_last() else {
        return Err(DiskError::not_a_layer(base, "a disk needs a layer that takes the writes"));
    };
    if layers.len() > MOST_LAYERS {
        return Err(DiskError::TooDeep { path: top.clone(), layers: layers.len() });
    }
    let mut built = Built::new(inner);
    let mut below = base_device(inner, base)?;
    let mut name = BASE;
    for path in frozen {
        below = add_layer(&mut built, owner, below, &Sound::open(path, name)?, Access::ReadOnly)?;
        name = chain::file_name(path);
    }
    let below = add_layer(&mut built, owner, below, &Sound::open(top, name)?, Access::ReadWrite)?;
    built.add(owner, &Role::Top, Access::ReadWrite, &[linear(below.number, below.sectors)])?;
    Ok(built)
}

fn base_device(inner: &Inner, base: &Path) -> Result<Below, DiskError> {
    let length = files::open(base).and_then(|file| Ok(file.metadata()?.len()));
    let bytes = length.map_err(|source| DiskError::io("open", base, source))?;
    if !bytes.is_multiple_of(512) {
        return Err(DiskError::OddBase { path: base.to_path_buf(), bytes });
    }
    let shown = inner.share(base, 0)?;
    let sectors = shown.sectors().map_err(|source| DiskError::io("measure", base, source))?;
    Ok(Below { number: shown.number, sectors, shared: true, _held: Some(shown) })
}

/// [`Devices::stage`](super::Devices::stage).
pub(super) fn stage(inner: &Arc<Inner>, owner: &str, layer: &Path) -> Result<Built, DiskError> {
    let top = inner.top(owner)?;
    let layer = Sound::open(layer, &top.layer_name())?;
    let mut built = Built::new(inner);
    let sectors = inner.snapshot_table(&top.layer.name)?.sectors;
    let below = Below { number: top.layer.number, sectors, shared: false, _held: None };
    add_layer(&mut built, owner, below, &layer, Access::ReadWrite)?;
    Ok(built)
}

/// Puts the snapshot device of `layer` over `below`.
fn add_layer(
    built: &mut Built,
    owner: &str,
    below: Below,
    layer: &Sound,
    access: Access,
) -> Result<Below, DiskError> {
    let inner = Arc::clone(&built.inner);
    if layer.sectors < below.sectors {
        return Err(DiskError::not_a_layer(&layer.path, "it is smaller than what it builds on"));
    }
    let store = match access {
        Access::ReadOnly => inner.share(&layer.path, BLOCK)?,
        Access::ReadWrite => {
            let file: File = cow::open_to_write(&layer.path)?;
            inner.loops.own(&file, &layer.path, BLOCK)?
        }
    };
    // Two snapshots of one origin over one store would be taken for the old and the new form of the same thing, of which the
    // second waits for the first to stop: so nobody puts a layer right over what others put the same layer over.
    let origin = match layer.sectors > below.sectors || below.shared {
        true => extend(built, owner, &below, &layer.id, layer.sectors)?,
        false => below.number,
    };
    let table = [snapshot(origin, store.number, layer.sectors)];
    let number = built.add(owner, &Role::Layer(layer.id.clone()), access, &table)?;
    Ok(Below { number, sectors: layer.sectors, shared: false, _held: None })
}

/// Makes `below` longer: what is behind its end reads as zeros.
pub(super) fn extend(
    built: &mut Built,
    owner: &str,
    below: &Below,
    id: &str,
    sectors: u64,
) -> Result<DeviceNumber, DiskError> {
    let zeros = Target {
        start: below.sectors,
        length: sectors - below.sectors,
        kind: "zero".to_owned(),
        says: String::new(),
    };
    let mut table = vec![linear(below.number, below.sectors), zeros];
    table.retain(|target| target.length > 0);
    built.add(owner, &Role::Extension(id.to_owned(), sectors), Access::ReadOnly, &table)
}

/// The whole of the device `number`.
pub(super) fn linear(number: DeviceNumber, sectors: u64) -> Target {
    Target { start: 0, length: sectors, kind: "linear".to_owned(), says: format!("{number} 0") }
}

/// A layer: `store` over `origin`, persistent, in chunks of 4 KiB.
pub(super) fn snapshot(origin: DeviceNumber, store: DeviceNumber, sectors: u64) -> Target {
    let says = format!("{origin} {store} P {CHUNK_SECTORS}");
    Target { start: 0, length: sectors, kind: "snapshot".to_owned(), says }
}

/// [`Devices::unstage`](super::Devices::unstage).
pub(super) fn unstage(inner: &Arc<Inner>, owner: &str, layer: &Path) -> Result<(), DiskError> {
    let name = chain::file_name(layer);
    let Some(id) = chain::layer_id(name, Kind::Cow) else {
        return Err(DiskError::not_a_layer(layer, "its name is not that of a copy-on-write layer"));
    };
    let devices = inner.devices(Some(owner))?;
    let attached = devices.iter().any(|device| device.role == Role::Top);
    if attached && inner.top(owner)?.layer_name() == name {
        return Ok(());
    }
    let of_layer = |device: &Device| match &device.role {
        Role::Layer(of) | Role::Extension(of, _) => of == id,
        Role::Top => false,
    };
    inner.remove_all(devices.into_iter().filter(of_layer).collect())
}

/// [`Devices::settle`](super::Devices::settle).
pub(super) fn settle(inner: &Arc<Inner>, owner: &str) -> Result<(), DiskError> {
    let (top, mut rest): (Vec<_>, Vec<_>) =
        inner.devices(Some(owner))?.into_iter().partition(|device| device.role == Role::Top);
    for top in top {
        // A table that was loaded and is not in force holds what it names.
        let cleared = inner.control.clear(&top.name);
        cleared.map_err(|source| DiskError::device("clear", &top.name, source))?;
    }
    loop {
        let before = rest.len();
        // What the top leads to is open, and with it all that is below.
        rest = inner.remove_unused(rest)?;
        if rest.len() == before {
            return Ok(());
        }
    }
}

/// [`Devices::detach`](super::Devices::detach).
pub(super) fn detach(inner: &Arc<Inner>, owner: &str) -> Result<(), DiskError> {
    let devices = inner.devices(Some(owner))?;
    inner.revive(&devices);
    inner.remove_all(devices)
}

impl Inner {
    /// The read-only loop device of a frozen file.
    fn share(&self, path: &Path, offset: u64) -> Result<Loop, DiskError> {
        let _turn = self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        self.loops.shared(path, offset)
    }

    /// Removes devices, each when none of the others is over it any more.
    fn remove_all(&self, mut devices: Vec<Device>) -> Result<(), DiskError> {
        // Mostly this is the right order at once: the top, then what was made last.
        devices.sort_by_key(|device| (device.role != Role::Top, std::cmp::Reverse(device.number)));
        let start = Instant::now();
        while !devices.is_empty() {
            let before = devices.len();
            devices = self.remove_unused(devices)?;
            if devices.len() == before {
                if start.elapsed() >= PATIENCE {
                    return Err(busy(&devices[0].name, PATIENCE));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Removes those of the devices that nobody has open; the others come back.
    fn remove_unused(&self, devices: Vec<Device>) -> Result<Vec<Device>, DiskError> {
        let mut left = Vec::new();
        for device in devices {
            match self.control.remove(&device.name) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => left.push(device),
                result => gone(&device.name, result)?,
            }
        }
        Ok(left)
    }

    /// Removes a device; one that is open is waited for.
    pub(super) fn remove_patiently(&self, name: &str, patience: Duration) -> Result<(), DiskError> {
        let start = Instant::now();
        loop {
            match self.control.remove(name) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                result => return gone(name, result),
            }
            if start.elapsed() >= patience {
                return Err(busy(name, patience));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// One that is gone already counts as removed.
fn gone(name: &str, result: std::io::Result<()>) -> Result<(), DiskError> {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
            Err(DiskError::device("remove", name, error))
        }
        _ => Ok(()),
    }
}

fn busy(name: &str, patience: Duration) -> DiskError {
    DiskError::Busy { what: name.to_owned(), seconds: patience.as_secs() }
}
