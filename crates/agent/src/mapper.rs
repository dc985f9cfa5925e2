//! The disks' room behind the VMMs' view of it: block devices of the device mapper for whoever runs a machine.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use wrenn_disk::{Devices, DiskError, Room as DiskRoom};
use wrenn_vmm::DiskFiles;
use wrenn_vmm::blocks::{BlockDevices, BlockError, DeviceNumber, Room};

/// The block devices of one installation.
#[derive(Debug)]
pub(crate) struct Mapper(Devices);

impl Mapper {
    pub(crate) fn new(devices: Devices) -> Self {
        Self(devices)
    }

    /// Machines that have a device.
    pub(crate) async fn owners(&self) -> Result<Vec<String>, DiskError> {
        self.0.owners().await
    }

    /// Removes what one has.
    pub(crate) async fn remove(&self, owner: &str) -> Result<(), DiskError> {
        self.0.detach(owner).await
    }
}

#[async_trait]
impl BlockDevices for Mapper {
    async fn attach(&self, owner: &str, disk: DiskFiles<'_>) -> Result<DeviceNumber, BlockError> {
        let layers: Vec<PathBuf> = disk.layers.to_vec();
        let number = self.0.attach(owner, disk.base, &layers).await?;
        Ok(DeviceNumber { major: number.major, minor: number.minor })
    }

    async fn stage(&self, owner: &str, layer: &Path) -> Result<(), BlockError> {
        Ok(self.0.stage(owner, layer).await?)
    }

    async fn push(&self, owner: &str, layer: &Path) -> Result<(), BlockError> {
        Ok(self.0.push(owner, layer).await?)
    }

    async fn unstage(&self, owner: &str, layer: &Path) -> Result<(), BlockError> {
        Ok(self.0.unstage(owner, layer).await?)
    }

    async fn settle(&self, owner: &str) -> Result<(), BlockError> {
        Ok(self.0.settle(owner).await?)
    }

    async fn top(&self, owner: &str) -> Result<String, BlockError> {
        Ok(self.0.top(owner).await?)
    }

    async fn grow(&self, owner: &str, bytes: u64) -> Result<(), BlockError> {
        Ok(self.0.grow(owner, bytes).await?)
    }

    async fn flush(&self, owner: &str) -> Result<(), BlockError> {
        Ok(self.0.flush(owner).await?)
    }

    async fn keep_room(&self, owner: &str, dir: &Path) -> Result<Room, BlockError> {
        let used = self.0.used(owner).await?;
        if !used.valid {
            return Ok(Room::Lost);
        }
        let layer = dir.join(&used.layer);
        let room = crate::blocking(move || {
            let room = wrenn_disk::keep_room(&layer, used.bytes);
            room.map_err(|error| std::io::Error::other(error.to_string()))
        });
        Ok(match room.await? {
            DiskRoom::Plenty => Room::Plenty,
            DiskRoom::Taken => Room::Enough,
            DiskRoom::Short => Room::Full,
        })
    }

    async fn detach(&self, owner: &str) -> Result<(), BlockError> {
        Ok(self.0.detach(owner).await?)
    }
}
