//! Copying within the kernel, holes kept.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, copy_file_range, seek};
use rustix::io::Errno;

use crate::fields::in_memory;
use crate::footer::read_at;
use crate::{ImageError, RUN_BYTES};

/// The first range of data within `range`, as the file system sees it.
pub(crate) fn next_data(
    file: &File,
    path: &Path,
    range: Range<u64>,
) -> Result<Option<Range<u64>>, ImageError> {
    let io = |errno: Errno| ImageError::io("look for data in", path, errno.into());
    if range.is_empty() {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(range.start)) {
        Ok(start) if start < range.end => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(errno) => return Err(io(errno)),
    };
    let end = seek(file, SeekFrom::Hole(start)).map_err(io)?;
    Ok(Some(start..end.min(range.end)))
}

/// Copies a range of bytes to the same place in another file, leaving holes out; returns the bytes copied.
pub(crate) fn copy_sparse(
    from: (&File, &Path),
    to: (&File, &Path),
    range: Range<u64>,
) -> Result<u64, ImageError> {
    let (mut at, mut copied) = (range.start, 0);
    while let Some(data) = next_data(from.0, from.1, at..range.end)? {
        copy_bytes(from, to, data.clone())?;
        copied += data.end - data.start;
        at = data.end;
    }
    Ok(copied)
}

fn copy_bytes(from: (&File, &Path), to: (&File, &Path), range: Range<u64>) -> Result<(), ImageError> {
    let (mut read_from, mut write_to) = (range.start, range.start);
    while read_from < range.end {
        let rest = in_memory(range.end - read_from);
        match copy_file_range(from.0, Some(&mut read_from), to.0, Some(&mut write_to), rest) {
            Ok(0) => return Err(ImageError::damaged(from.1, "it ends before the data that it should hold")),
            Ok(_) | Err(Errno::INTR) => {}
            // Different file systems, or one that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_through_memory(from, to, read_from..range.end);
            }
            Err(errno) => return Err(ImageError::io("copy into", to.1, errno.into())),
        }
    }
    Ok(())
}

fn copy_through_memory(
    from: (&File, &Path),
    to: (&File, &Path),
    range: Range<u64>,
) -> Result<(), ImageError> {
    let mut buf = vec![0; RUN_BYTES];
    let mut at = range.start;
    while at < range.end {
        let part = in_memory(range.end - at).min(RUN_BYTES);
        let part = &mut buf[..part];
        read_at(from.0, from.1, at, part)?;
        to.0.write_all_at(part, at).map_err(|source| ImageError::io("write", to.1, source))?;
        at += part.len() as u64;
    }
    Ok(())
}
