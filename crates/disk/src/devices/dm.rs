//! The device-mapper's own interface: ioctls on `/dev/mapper/control`.
//!
//! Source: `include/uapi/linux/dm-ioctl.h` of Linux, interface 4.0.0, which every 4.x kernel speaks. A request and its
//! answer are one piece of memory: a fixed head, then targets or a list. Nothing is known of a device but what the
//! kernel says, so nothing can differ from it after a crash.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::DeviceNumber;

/// `struct dm_ioctl`.
const HEAD: usize = 312;
const NAME: std::ops::Range<usize> = 48..176;
const UUID: std::ops::Range<usize> = 176..305;
/// `struct dm_target_spec` without the parameters behind it.
const SPEC: usize = 40;
/// Bytes that an answer may have before it is asked for again with more.
const ROOM: usize = 16 << 10;

const READ_ONLY: u32 = 1 << 0;
const SUSPEND: u32 = 1 << 1;
const TABLE: u32 = 1 << 4;
const BUFFER_FULL: u32 = 1 << 8;

/// Nobody probes these devices: udev's rules for file systems, for disks and for the rest leave them alone. The kernel
/// hands the upper half of the event number on to udev.
const QUIET: u32 = (0x0002 | 0x0004 | 0x0008) << 16;

/// Held while a table is loaded. To read a store, the kernel makes a cache and destroys it again; where two do so at
/// once, Linux 6.1 finds the name of the one still taken by the other ("cannot create duplicate filename
/// '/kernel/slab/…'"), and says that there is no memory. Other processes may load tables too, hence the attempts.
static LOADING: Mutex<()> = Mutex::new(());
const LOAD_ATTEMPTS: usize = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Command {
    Version = 0,
    List = 2,
    Create = 3,
    Remove = 4,
    Suspend = 6,
    Info = 7,
    Load = 9,
    Clear = 10,
    Status = 12,
    TargetVersion = 17,
}

impl Command {
    /// `_IOWR(0xfd, command, struct dm_ioctl)`.
    const fn code(self) -> libc::c_ulong {
        3 << 30 | (HEAD as libc::c_ulong) << 16 | 0xfd << 8 | self as libc::c_ulong
    }
}

/// A stretch of a device. All numbers are sectors of 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) kind: String,
    /// The parameters in a table, the state in a status.
    pub(super) says: String,
}

/// What the kernel says of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) number: DeviceNumber,
    pub(super) suspended: bool,
    pub(super) uuid: String,
}

/// Whether a table lets through what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    ReadOnly,
    ReadWrite,
}

/// The open control device.
#[derive(Debug)]
pub(super) struct Control(File);

impl Control {
    /// Takes the control device and asks for the version, which fails where it is none.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let control = Self(file);
        control.call(Command::Version, &Request::default()).map(|_| control)
    }

    /// Whether the kernel has the target `kind`; loads its module.
    pub(super) fn check_target(&self, kind: &str) -> io::Result<()> {
        self.call(Command::TargetVersion, &Request { name: kind, ..Request::default() }).map(drop)
    }

    /// Every device of this machine, in no order.
    pub(super) fn list(&self) -> io::Result<Vec<(String, DeviceNumber)>> {
        Ok(parse_list(self.call(Command::List, &Request::default())?.data()))
    }

    /// Makes a device without a table.
    pub(super) fn create(&self, name: &str, uuid: &str) -> io::Result<DeviceNumber> {
        Ok(self.call(Command::Create, &Request { name, uuid, ..Request::default() })?.number())
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Command::Remove, &Request { name, ..Request::default() }).map(drop)
    }

    /// Gives a device the table that it has from the next [`resume`](Self::resume) on.
    pub(super) fn load(&self, name: &str, access: Access, targets: &[Target]) -> io::Result<()> {
        let flags = if access == Access::ReadOnly { READ_ONLY } else { 0 };
        let request = Request { name, flags, targets, ..Request::default() };
        let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 1..LOAD_ATTEMPTS {
            match self.call(Command::Load, &request) {
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => std::thread::sleep(LOAD_PAUSE),
                result => return result.map(drop),
            }
        }
        self.call(Command::Load, &request).map(drop)
    }

    /// Takes a table back that was loaded and not resumed.
    pub(super) fn clear(&self, name: &str) -> io::Result<()> {
        self.call(Command::Clear, &Request { name, ..Request::default() }).map(drop)
    }

    /// Waits for everything on its way through a device, and lets nothing through until it is resumed.
    pub(super) fn suspend(&self, name: &str) -> io::Result<()> {
        self.call(Command::Suspend, &Request { name, flags: SUSPEND, ..Request::default() }).map(drop)
    }

    /// Lets a device work, with the table that was loaded last.
    pub(super) fn resume(&self, name: &str) -> io::Result<()> {
        self.call(Command::Suspend, &Request { name, ..Request::default() }).map(drop)
    }

    /// What there is of the device `name`, if there is one.
    pub(super) fn info(&self, name: &str) -> io::Result<Option<Info>> {
        match self.call(Command::Info, &Request { name, ..Request::default() }) {
            Ok(answer) => Ok(Some(answer.info())),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The table that a device works with.
    pub(super) fn table(&self, name: &str) -> io::Result<Vec<Target>> {
        let answer = self.call(Command::Status, &Request { name, flags: TABLE, ..Request::default() })?;
        Ok(parse_targets(answer.data(), answer.u32(20)))
    }

    /// How the targets of a device are.
    pub(super) fn status(&self, name: &str) -> io::Result<Vec<Target>> {
        let answer = self.call(Command::Status, &Request { name, ..Request::default() })?;
        Ok(parse_targets(answer.data(), answer.u32(20)))
    }

    fn call(&self, command: Command, request: &Request<'_>) -> io::Result<Answer> {
        let mut room = ROOM;
        loop {
            let mut bytes = request.encode(room)?;
            // SAFETY: the command reads and writes the memory that it is given and no more than the length in the
            // head, which is that of `bytes`.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), command.code(), bytes.as_mut_ptr()) };
            let answer = Answer(bytes);
            match io::Error::last_os_error() {
                _ if result == 0 && answer.u32(28) & BUFFER_FULL == 0 => return Ok(answer),
                _ if result == 0 => room *= 2,
                error if error.kind() == ErrorKind::Interrupted => {}
                error => return Err(error),
            }
        }
    }
}

#[derive(Debug, Default)]
struct Request<'a> {
    name: &'a str,
    uuid: &'a str,
    flags: u32,
    targets: &'a [Target],
}

impl Request<'_> {
    /// The request with room for an answer of `room` bytes behind the head.
    fn encode(&self, room: usize) -> io::Result<Vec<u8>> {
        let too_long = || io::Error::from(ErrorKind::InvalidInput);
        if self.name.len() >= NAME.len() || self.uuid.len() >= UUID.len() {
            return Err(too_long());
        }
        let mut bytes = vec![0; HEAD];
        for target in self.targets {
            encode_target(&mut bytes, target).ok_or_else(too_long)?;
        }
        let length = bytes.len().max(HEAD + room);
        bytes.resize(length, 0);
        let numbers = [
            (0, 4),
            (12, u32::try_from(length).map_err(|_| too_long())?),
            (16, 312),
            (20, u32::try_from(self.targets.len()).map_err(|_| too_long())?),
            (28, self.flags),
            (32, QUIET),
        ];
        for (at, value) in numbers {
            bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes[NAME.start..NAME.start + self.name.len()].copy_from_slice(self.name.as_bytes());
        bytes[UUID.start..UUID.start + self.uuid.len()].copy_from_slice(self.uuid.as_bytes());
        Ok(bytes)
    }
}

fn encode_target(bytes: &mut Vec<u8>, target: &Target) -> Option<()> {
    // The parameters end with a zero, and the next target starts at a multiple of 8.
    let length = (SPEC + target.says.len() + 1).next_multiple_of(8);
    let mut kind = [0; 16];
    kind.get_mut(..target.kind.len())?.copy_from_slice(target.kind.as_bytes());
    let end = bytes.len() + length;
    bytes.extend(target.start.to_ne_bytes());
    bytes.extend(target.length.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(u32::try_from(length).ok()?.to_ne_bytes());
    bytes.extend(kind);
    bytes.extend(target.says.as_bytes());
    bytes.resize(end, 0);
    Some(())
}

#[derive(Debug)]
struct Answer(Vec<u8>);

impl Answer {
    fn u32(&self, at: usize) -> u32 {
        u32_at(&self.0, at).unwrap_or(0)
    }

    fn number(&self) -> DeviceNumber {
        DeviceNumber::from_kernel(u64_at(&self.0, 40).unwrap_or(0))
    }

    fn info(&self) -> Info {
        let uuid = text(&self.0[UUID]);
        Info { number: self.number(), suspended: self.u32(28) & SUSPEND != 0, uuid }
    }

    fn data(&self) -> &[u8] {
        let start = usize::try_from(self.u32(16)).unwrap_or(usize::MAX);
        self.0.get(start..).unwrap_or_default()
    }
}

/// `struct dm_name_list`: a number, where the next one is, a name. An empty list is one of number 0.
fn parse_list(data: &[u8]) -> Vec<(String, DeviceNumber)> {
    let mut found = Vec::new();
    let mut at = 0;
    while let (Some(number), Some(next)) = (u64_at(data, at), u32_at(data, at + 8)) {
        if number != 0 {
            found.push((text(&data[at + 12..]), DeviceNumber::from_kernel(number)));
        }
        match usize::try_from(next) {
            Ok(next) if next > 0 => at += next,
            _ => break,
        }
    }
    found
}

fn parse_targets(data: &[u8], count: u32) -> Vec<Target> {
    let mut found = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let Some(spec) = data.get(at..at + SPEC) else { break };
        let (Some(start), Some(length), Some(next)) = (u64_at(spec, 0), u64_at(spec, 8), u32_at(spec, 20))
        else {
            break;
        };
        found.push(Target { start, length, kind: text(&spec[24..]), says: text(&data[at + SPEC..]) });
        // Counted from the first target.
        at = usize::try_from(next).unwrap_or(usize::MAX / 2);
    }
    found
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

/// What stands before the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(start: u64, length: u64, kind: &str, says: &str) -> Target {
        Target { start, length, kind: kind.to_owned(), says: says.to_owned() }
    }

    #[test]
    fn codes_are_those_of_the_header_file() {
        // As `strace dmsetup` shows DM_VERSION and DM_TABLE_STATUS.
        assert_eq!((Command::Version.code(), Command::Status.code()), (0xc138_fd00, 0xc138_fd0c));
    }

    #[test]
    fn targets_are_written_where_the_kernel_looks_for_them() {
        let targets = [target(0, 8, "linear", "7:0 0"), target(8, 16, "zero", "")];
        let bytes = Request { name: "x", targets: &targets, ..Request::default() }.encode(0).unwrap();
        let first = &bytes[HEAD..];
        let next = usize::try_from(u32_at(first, 20).unwrap()).unwrap();
        assert_eq!((next, text(&first[24..]), text(&first[SPEC..])), (48, "linear".into(), "7:0 0".into()));
        assert_eq!((u64_at(first, next), text(&first[next + 24..])), (Some(8), "zero".into()));
        assert_eq!((u32_at(&bytes, 12).unwrap(), u32_at(&bytes, 20)), (312 + 96, Some(2)));
        let long = "x".repeat(128);
        assert!(Request { name: &long, ..Request::default() }.encode(0).is_err());
    }

    #[test]
    fn a_list_and_its_end_are_read() {
        let mut data = 0xfd03_u64.to_ne_bytes().to_vec();
        data.extend(16_u32.to_ne_bytes());
        data.extend(b"abc\0");
        data.extend((1_u64 << 20 | 0xfd << 8 | 1).to_ne_bytes());
        data.extend([0; 4]);
        data.extend(b"de\0\0");
        let one = DeviceNumber { major: 0xfd, minor: 3 };
        let two = DeviceNumber { major: 0xfd, minor: 257 };
        assert_eq!(parse_list(&data), [("abc".to_owned(), one), ("de".to_owned(), two)]);
        assert_eq!(parse_list(&[0; 312]), []);
        assert_eq!(parse_list(&data[..10]), []);
    }
}
