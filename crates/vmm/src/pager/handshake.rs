//! The one message of the VMM: where its memory lies, and the userfaultfd by which to fill it.
//!
//! Firecracker connects, sends a JSON array with the descriptor beside it, and never says anything more. The array has an
//! object for each region of guest memory, in the order in which the regions lie in the image.

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::Deserialize;

use super::PagerError;
use super::guest::BLOCK;

/// A VMM hands over its memory at the start of a restore.
const LIMIT: Duration = Duration::from_secs(60);
/// Longer than the message for any machine: Firecracker has at most a handful of regions.
const MESSAGE_BYTES: usize = 64 << 10;

/// A region of guest memory, as Firecracker describes it. What else it says of one is not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) struct Mapping {
    /// Address of its first byte in the VMM.
    #[serde(rename = "base_host_virt_addr")]
    pub(super) address: u64,
    /// Bytes.
    pub(super) size: u64,
    /// Offset of its first byte in the image.
    pub(super) offset: u64,
    /// Bytes of a page.
    page_size: u64,
}

impl Mapping {
    /// The address behind its last byte. The handshake has been checked by then, so this does not overflow.
    fn end(&self) -> u64 {
        self.address + self.size
    }
}

/// Waits for the VMM to connect and takes what it hands over, not checked yet. None if the VMM ends instead.
pub(super) fn receive(
    listener: UnixListener,
    vmm: BorrowedFd<'_>,
) -> Result<Option<(String, OwnedFd)>, PagerError> {
    let waiting = Waiting { vmm, until: Instant::now() + LIMIT };
    let failed = |error| PagerError::system("accept the VMM's connection", error);
    listener.set_nonblocking(true).map_err(failed)?;
    let mut stream = loop {
        if !waiting.for_input(listener.as_fd())? {
            return Ok(None);
        }
        match listener.accept() {
            Ok((stream, _)) => break stream,
            // It is gone again, or never was.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    };
    // One VMM, one connection: the next one is refused, not left waiting.
    drop(listener);
    if !waiting.for_input(stream.as_fd())? {
        return Ok(None);
    }
    let (mut text, descriptor) = first_part(&stream)?;
    while !is_whole(&text) {
        if !waiting.for_input(stream.as_fd())? {
            return Ok(None);
        }
        more(&mut stream, &mut text)?;
    }
    let descriptor = descriptor.ok_or_else(|| PagerError::handshake("no descriptor came with it"))?;
    let text = String::from_utf8(text).map_err(|error| PagerError::handshake(error.to_string()))?;
    Ok(Some((text, descriptor)))
}

/// The mappings of a message, checked against the image's size.
pub(super) fn mappings(text: &str, image: &Path, size: u64) -> Result<Vec<Mapping>, PagerError> {
    let mappings: Vec<Mapping> = serde_json::from_str(text)
        .map_err(|error| PagerError::handshake(format!("it cannot be read ({error})")))?;
    let mut offset = 0u64;
    for mapping in &mappings {
        let &Mapping { address, size, offset: at, page_size } = mapping;
        if page_size != BLOCK {
            return Err(PagerError::handshake(format!(
                "its pages have {page_size} bytes, and only {BLOCK} can be served: configure the machine without huge pages"
            )));
        }
        if size == 0 || !size.is_multiple_of(BLOCK) || !address.is_multiple_of(BLOCK) {
            let problem = format!("{size} bytes at {address:#x} are not whole pages");
            return Err(PagerError::handshake(problem));
        }
        if at != offset {
            let problem = format!("a mapping begins at {at} of the image, where {offset} follows");
            return Err(PagerError::handshake(problem));
        }
        let ends = (offset.checked_add(size), address.checked_add(size));
        let (Some(end), Some(_)) = ends else {
            return Err(PagerError::handshake(format!(
                "{size} bytes at {address:#x} are beyond all addresses"
            )));
        };
        offset = end;
    }
    let mut sorted = mappings.clone();
    sorted.sort_by_key(|mapping| mapping.address);
    if sorted.windows(2).any(|pair| pair[0].end() > pair[1].address) {
        return Err(PagerError::handshake("two of its mappings overlap"));
    }
    if offset != size {
        return Err(PagerError::Size { memory: offset, image: image.to_path_buf(), size });
    }
    Ok(mappings)
}

/// What all waits of a handshake have in common.
struct Waiting<'a> {
    vmm: BorrowedFd<'a>,
    until: Instant,
}

impl Waiting<'_> {
    /// Waits for something to read. False if the VMM ended instead.
    fn for_input(&self, fd: BorrowedFd<'_>) -> Result<bool, PagerError> {
        loop {
            let rest = self.until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Err(PagerError::Silent { after: LIMIT });
            }
            let rest = Timespec::try_from(rest)
                .map_err(|error| PagerError::system("wait for the VMM", std::io::Error::other(error)))?;
            let mut fds = [PollFd::new(&self.vmm, PollFlags::IN), PollFd::new(&fd, PollFlags::IN)];
            match poll(&mut fds, Some(&rest)) {
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(PagerError::system("wait for the VMM", errno)),
                Ok(_) => {}
            }
            // What it sent before it ended has no reader any more.
            if !fds[0].revents().is_empty() {
                return Ok(false);
            }
            if !fds[1].revents().is_empty() {
                return Ok(true);
            }
        }
    }
}

/// Reads what came first; the descriptor comes with the first byte.
fn first_part(stream: &UnixStream) -> Result<(Vec<u8>, Option<OwnedFd>), PagerError> {
    let mut text = vec![0; MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut text)];
    let received = recvmsg(stream, &mut parts, &mut beside, RecvFlags::CMSG_CLOEXEC)
        .map_err(|errno| PagerError::system("receive the VMM's handshake", errno))?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if descriptors.len() > 1 || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(PagerError::handshake("more than one descriptor came with it"));
    }
    if received.bytes == 0 {
        return Err(PagerError::handshake("the VMM closed the connection without a word"));
    }
    text.truncate(received.bytes);
    Ok((text, descriptors.pop()))
}

/// Reads what follows.
fn more(stream: &mut UnixStream, text: &mut Vec<u8>) -> Result<(), PagerError> {
    let mut part = [0; 4096];
    let count =
        stream.read(&mut part).map_err(|error| PagerError::system("receive the VMM's handshake", error))?;
    if count == 0 {
        return Err(PagerError::handshake("the VMM closed the connection in the middle of it"));
    }
    text.extend(&part[..count]);
    if text.len() > MESSAGE_BYTES {
        return Err(PagerError::handshake(format!("it has no end within {MESSAGE_BYTES} bytes")));
    }
    Ok(())
}

/// Whether nothing can follow: the text is a value, or can never become one.
fn is_whole(text: &[u8]) -> bool {
    match serde_json::from_slice::<serde::de::IgnoredAny>(text) {
        Ok(_) => true,
        Err(error) => !error.is_eof(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(address: u64, size: u64, offset: u64, page_size: u64) -> serde_json::Value {
        serde_json::json!({
            "base_host_virt_addr": address, "size": size, "offset": offset,
            "page_size": page_size, "page_size_kib": page_size,
        })
    }

    fn parse(regions: &[serde_json::Value], size: u64) -> Result<Vec<Mapping>, PagerError> {
        mappings(&serde_json::to_string(regions).unwrap(), Path::new("/image"), size)
    }

    #[test]
    fn two_regions_with_a_hole_between_their_addresses_are_one_image() {
        let regions = [region(0x10_0000, 0x8000, 0, 4096), region(0x1_0000, 0x4000, 0x8000, 4096)];
        let found = parse(&regions, 0xC000).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].address, found[1].size, found[1].offset), (0x1_0000, 0x4000, 0x8000));
    }

    #[test]
    fn what_does_not_fit_is_refused_for_its_own_reason() {
        let refused = |why: &str, regions: &[serde_json::Value], size| {
            let error = parse(regions, size).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
        };
        refused("0 bytes of memory", &[], 0x4000);
        refused("without huge pages", &[region(0, 0x4000, 0, 2 << 20)], 0x4000);
        refused("whole pages", &[region(0, 0x4001, 0, 4096)], 0x4001);
        refused("whole pages", &[region(1, 0x4000, 0, 4096)], 0x4000);
        refused("whole pages", &[region(0, 0, 0, 4096)], 0x4000);
        refused("where 0 follows", &[region(0, 0x4000, 0x1000, 4096)], 0x4000);
        refused("beyond all", &[region(u64::MAX - 0xFFF, 0x4000, 0, 4096)], 0x4000);
        refused(
            "where 8192 follows",
            &[region(0, 0x2000, 0, 4096), region(0x8000, 0x2000, 0x1000, 4096)],
            0x4000,
        );
        refused("overlap", &[region(0, 0x2000, 0, 4096), region(0x1000, 0x2000, 0x2000, 4096)], 0x4000);
        refused("16384 bytes of memory", &[region(0, 0x4000, 0, 4096)], 0x8000);
        for text in
            ["{}", "[{}]", "[1]", r#"[{"base_host_virt_addr":-1,"size":0,"offset":0,"page_size":4096}]"#]
        {
            let error = mappings(text, Path::new("/image"), 0x1000).unwrap_err().to_string();
            assert!(error.contains("cannot be read"), "{text}: {error}");
        }
    }

    #[test]
    fn an_end_is_waited_for_only_where_one_can_come() {
        assert!(is_whole(b"[]") && is_whole(br#"[{"size":1}]"#) && is_whole(b"nonsense") && is_whole(b"[} "));
        assert!(!is_whole(b"[") && !is_whole(br#"[{"size":1"#) && !is_whole(b""));
    }
}
