//! Loop devices: files as block devices.
//!
//! Source: `include/uapi/linux/loop.h`, `drivers/block/loop.c` of Linux (5.8 and later, for `LOOP_CONFIGURE`). Each one
//! clears itself when the last who has it open closes it. That is the device-mapper, so a loop device lives exactly as
//! long as the devices over it, whatever becomes of this process, and the kernel counts the references.
//!
//! A file that is frozen has one, read-only, whoever uses it: it is recognised by the file that it shows. The file that
//! takes an owner's writes has one of its own, and is refused while it has another: two stores over one file would
//! destroy it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::dm::Access;
use super::{DeviceNumber, PATIENCE, node};
use crate::DiskError;

const GET_STATUS64: libc::c_ulong = 0x4c05;
const SET_CAPACITY: libc::c_ulong = 0x4c07;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const GET_FREE: libc::c_ulong = 0x4c82;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;

/// `struct loop_info64`.
const INFO: usize = 232;
/// `struct loop_config`: a descriptor, a block size, the information, eight reserved words.
const CONFIG: usize = 8 + INFO + 64;

/// Times that another process may get the free device first.
const RACES: usize = 1000;

/// A loop device that is open, and does not go away before it is closed.
#[derive(Debug)]
pub(super) struct Loop {
    file: File,
    pub(super) number: DeviceNumber,
}

impl Loop {
    /// Its length, sectors.
    pub(super) fn sectors(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, rustix::fs::SeekFrom::End(0))? / 512)
    }
}

/// What a loop device shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shown {
    device: u64,
    inode: u64,
    offset: u64,
    limit: u64,
    flags: u32,
}

/// The loop devices of this machine.
#[derive(Debug)]
pub(super) struct Loops {
    /// `/dev/loop-control`.
    control: File,
    prefix: String,
}

impl Loops {
    pub(super) fn new(control: File, prefix: &str) -> Self {
        Self { control, prefix: prefix.to_owned() }
    }

    /// The read-only device that shows `path` from `offset` on, which all share.
    pub(super) fn shared(&self, path: &Path, offset: u64) -> Result<Loop, DiskError> {
        let failed = |source| DiskError::device("set up the loop device of", &path.to_string_lossy(), source);
        let file = crate::files::open(path).map_err(failed)?;
        for found in self.showing(&file, offset).map_err(failed)? {
            if found.1.flags & (READ_ONLY | AUTOCLEAR) == READ_ONLY | AUTOCLEAR && found.1.limit == 0 {
                return Ok(found.0);
            }
        }
        self.make(&file, offset, Access::ReadOnly).map_err(failed)
    }

    /// A device that shows the open file `path` from `offset` on, to read and to write, for one owner.
    ///
    /// # Errors
    /// [`DiskError::Busy`] where another one shows the file.
    pub(super) fn own(&self, file: &File, path: &Path, offset: u64) -> Result<Loop, DiskError> {
        let failed = |source| DiskError::device("set up the loop device of", &path.to_string_lossy(), source);
        let start = Instant::now();
        // One that was just let go may be held for a moment by somebody who looks at it.
        while !self.showing(file, offset).map_err(failed)?.is_empty() {
            if start.elapsed() >= PATIENCE {
                return Err(DiskError::Busy {
                    what: path.to_string_lossy().into_owned(),
                    seconds: PATIENCE.as_secs(),
                });
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.make(file, offset, Access::ReadWrite).map_err(failed)
    }

    /// Has the device `number` show as much of its file as there is by now.
    pub(super) fn resize(&self, number: DeviceNumber) -> io::Result<()> {
        let device = node::open(&self.prefix, number, Access::ReadWrite)?;
        // SAFETY: the command takes no argument.
        check(unsafe { libc::ioctl(device.as_raw_fd(), SET_CAPACITY, 0) }).map(drop)
    }

    /// Where the file is that the device `number` shows.
    pub(super) fn backing_file(&self, number: DeviceNumber) -> io::Result<PathBuf> {
        let text = std::fs::read_to_string(sysfs(number).join("loop/backing_file"))?;
        let path = PathBuf::from(text.trim_end_matches('\n'));
        let device = node::open(&self.prefix, number, Access::ReadOnly)?;
        let (shown, meta) = (status(&device)?, std::fs::metadata(&path)?);
        match (shown.device, shown.inode) == (meta.dev(), meta.ino()) {
            true => Ok(path),
            false => Err(io::Error::other("its file was moved or deleted")),
        }
    }

    /// All devices that show `file` from `offset` on, open.
    fn showing(&self, file: &File, offset: u64) -> io::Result<Vec<(Loop, Shown)>> {
        let meta = file.metadata()?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/sys/block")? {
            let path = entry?.path();
            // Looked at first, so that nobody else's devices are opened.
            let at = std::fs::read_to_string(path.join("loop/offset"));
            if !at.is_ok_and(|text| text.trim() == offset.to_string()) {
                continue;
            }
            let Ok(number) = read_number(&path) else { continue };
            let Ok(device) = node::open(&self.prefix, number, Access::ReadOnly) else { continue };
            // Only while it is open does it stay what it is.
            if let Ok(shown) = status(&device)
                && (shown.device, shown.inode, shown.offset) == (meta.dev(), meta.ino(), offset)
            {
                found.push((Loop { file: device, number }, shown));
            }
        }
        Ok(found)
    }

    fn make(&self, file: &File, offset: u64, access: Access) -> io::Result<Loop> {
        let flags = if access == Access::ReadOnly { READ_ONLY | AUTOCLEAR } else { AUTOCLEAR };
        let mut config = [0_u8; CONFIG];
        config[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
        config[8 + 24..8 + 32].copy_from_slice(&offset.to_ne_bytes());
        config[8 + 52..8 + 56].copy_from_slice(&flags.to_ne_bytes());
        for _ in 0..RACES {
            // SAFETY: the command takes no argument and answers with a number.
            let free = check(unsafe { libc::ioctl(self.control.as_raw_fd(), GET_FREE, 0) })?;
            let number = read_number(&PathBuf::from(format!("/sys/block/loop{free}")))?;
            let device = node::open(&self.prefix, number, access)?;
            // SAFETY: the command reads a `struct loop_config`, which `config` is, and the descriptor in it is open.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, config.as_ptr()) }) {
                Ok(_) => return Ok(Loop { file: device, number }),
                // Somebody was faster.
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }
}

fn status(device: &File) -> io::Result<Shown> {
    let mut info = [0_u8; INFO];
    // SAFETY: the command writes a `struct loop_info64`, for which `info` has the room.
    check(unsafe { libc::ioctl(device.as_raw_fd(), GET_STATUS64, info.as_mut_ptr()) })?;
    let word = |at: usize| info[at..].first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let flags = info[52..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    Ok(Shown { device: word(0), inode: word(8), offset: word(24), limit: word(32), flags })
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn sysfs(number: DeviceNumber) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{number}"))
}

/// The number of the device with this folder in `/sys`.
fn read_number(folder: &Path) -> io::Result<DeviceNumber> {
    let text = std::fs::read_to_string(folder.join("dev"))?;
    text.trim().parse().map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;

    fn loops() -> Loops {
        let control = node::open_control(Path::new("/dev/loop-control"), "loop-control").unwrap();
        Loops::new(control, "wrenn-disk-test")
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn a_frozen_file_is_shown_once_and_only_while_somebody_looks() {
        let (loops, file) = (loops(), file(&[[1; 4096], [2; 4096]].concat()));
        let one = loops.shared(file.path(), 0).unwrap();
        let two = loops.shared(file.path(), 0).unwrap();
        let other = loops.shared(file.path(), 4096).unwrap();
        assert!(one.number == two.number && one.number != other.number);
        let mut byte = [0];
        other.file.read_exact_at(&mut byte, 0).unwrap();
        assert_eq!(byte, [2]);
        assert!(one.file.write_at(&[3], 0).is_err());
        assert_eq!(loops.backing_file(one.number).unwrap(), file.path());
        drop((one, two));
        assert_eq!(loops.showing(file.as_file(), 0).unwrap().len(), 0);
        assert_eq!(loops.showing(file.as_file(), 4096).unwrap().len(), 1);
    }

    #[test]
    fn a_writable_device_writes_behind_the_offset_and_grows_with_its_file() {
        let (loops, file) = (loops(), file(&[0; 8192]));
        let device = loops.own(file.as_file(), file.path(), 4096).unwrap();
        device.file.write_all_at(&[9; 4096], 0).unwrap();
        device.file.sync_all().unwrap();
        assert!(std::fs::read(file.path()).unwrap() == [[0; 4096], [9; 4096]].concat());
        file.as_file().set_len(1 << 20).unwrap();
        loops.resize(device.number).unwrap();
        let size = std::fs::read_to_string(sysfs(device.number).join("size")).unwrap();
        assert_eq!(size.trim(), (((1 << 20) - 4096) / 512).to_string());
    }
}
