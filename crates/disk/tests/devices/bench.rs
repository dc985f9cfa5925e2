//! A laboratory with devices, and a guest that uses one.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use wrenn_disk::{Chain, DeviceNumber, Devices, RootDisks};

use crate::common::{Cow, Lab};

/// Not a multiple of a chunk, so that one is half in the base.
pub(crate) const BASE_BYTES: usize = (1 << 20) + 4096 + 512;

/// A laboratory whose devices are all its own.
pub(crate) struct Bench {
    pub(crate) lab: Lab<Cow>,
    pub(crate) devices: Devices,
    pub(crate) prefix: String,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let lab = Lab::new(BASE_BYTES);
        let random = lab.path("").components().next_back().unwrap().as_os_str().to_str().unwrap().to_owned();
        let prefix = format!("t-{}", random.trim_start_matches(".tmp"));
        Self { lab, devices: Devices::open(&prefix).unwrap(), prefix }
    }

    /// A new disk in its own directory.
    pub(crate) async fn disk(&self, name: &str, size_mb: u32) -> Chain {
        self.lab.disks.create(&self.lab.dir(name), &self.lab.base(), size_mb).await.unwrap()
    }

    /// Attaches a chain and opens it as a VMM would.
    pub(crate) async fn attach(&self, owner: &str, chain: &Chain) -> Guest {
        Guest::open(self.devices.attach(owner, &chain.base, &chain.layers).await.unwrap(), 0)
    }

    /// Names of the device-mapper's devices that are this test's.
    pub(crate) fn names(&self) -> Vec<String> {
        let blocks = std::fs::read_dir("/sys/block").unwrap();
        let names = blocks.filter_map(|e| std::fs::read_to_string(e.unwrap().path().join("dm/name")).ok());
        let mut names: Vec<_> =
            names.map(|name| name.trim().to_owned()).filter(|name| name.starts_with(&self.prefix)).collect();
        names.sort();
        names
    }

    /// The number of the device with this name.
    pub(crate) fn number(&self, name: &str) -> String {
        let blocks = std::fs::read_dir("/sys/block").unwrap();
        let mut blocks = blocks.map(|e| e.unwrap().path());
        let is_it = |path: &PathBuf| {
            std::fs::read_to_string(path.join("dm/name")).is_ok_and(|found| found.trim() == name)
        };
        std::fs::read_to_string(blocks.find(is_it).unwrap().join("dev")).unwrap().trim().to_owned()
    }

    /// Files of this test that loop devices show, one for each device.
    pub(crate) fn loops(&self) -> Vec<PathBuf> {
        let blocks = std::fs::read_dir("/sys/block").unwrap();
        let files =
            blocks.filter_map(|e| std::fs::read_to_string(e.unwrap().path().join("loop/backing_file")).ok());
        let files = files.map(|text| PathBuf::from(text.trim_end()));
        files.filter(|path| path.starts_with(self.lab.path("")) && !path.ends_with("fs.img")).collect()
    }

    /// Nodes that were made to open a device.
    fn nodes(&self) -> usize {
        let names = std::fs::read_dir("/dev").unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let ours = format!(".{}-", self.prefix);
        names.filter(|name| name.starts_with(&ours)).count()
    }

    /// Every device is gone, and every loop device and node with them.
    pub(crate) async fn assert_nothing_left(&self) {
        for _ in 0..500 {
            if self.names().is_empty() && self.loops().is_empty() && self.nodes() == 0 {
                return;
            }
            // A loop device is cleared a moment after its last user, and a call that was given up takes one, too.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?} {:?} {}", self.names(), self.loops(), self.nodes());
    }
}

/// Runs `dmsetup`, the only thing that knows of no table of ours.
pub(crate) fn dmsetup(args: &[&str]) {
    let status = std::process::Command::new("dmsetup").args(args).status().unwrap();
    assert!(status.success(), "dmsetup {args:?}");
}

/// Somebody who has a device open.
pub(crate) struct Guest {
    pub(crate) file: File,
    pub(crate) number: DeviceNumber,
}

impl Guest {
    pub(crate) fn open(number: DeviceNumber, flags: i32) -> Self {
        let path = format!("/dev/t-{}", hex(&rand()));
        let device = rustix::fs::makedev(number.major, number.minor);
        rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::RUSR | Mode::WUSR, device).unwrap();
        let file = File::options().read(true).write(true).custom_flags(flags).open(&path);
        std::fs::remove_file(path).unwrap();
        Self { file: file.unwrap(), number }
    }

    pub(crate) fn size(&self) -> u64 {
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0)).unwrap()
    }

    pub(crate) fn fill(&self, at: usize, length: usize, value: u8) {
        self.file.write_all_at(&vec![value; length], at as u64).unwrap();
    }

    /// The whole disk as it reads through the device.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size()).unwrap()];
        self.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }
}

fn rand() -> [u8; 8] {
    let mut bytes = [0; 8];
    std::io::Read::read_exact(&mut File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a name on the device-mapper's side has of a layer's file.
pub(crate) fn id(layer: &Path) -> &str {
    let name = layer.file_name().unwrap().to_str().unwrap();
    name.strip_prefix("disk-").unwrap().strip_suffix(".cow").unwrap()
}
