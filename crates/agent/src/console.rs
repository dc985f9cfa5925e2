//! The console log of a guest: kept, but bounded, because a guest can write to it for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// File name of the log in the capsule's directory.
pub const FILE: &str = "console.log";
/// A log larger than this is trimmed.
pub const LIMIT: u64 = 1024 * 1024;
/// What is left of a trimmed log.
const KEPT: u64 = 256 * 1024;

/// The last `lines` lines of a capsule's console, printable characters only; empty where there is none.
pub fn tail(dir: &Path, lines: usize) -> String {
    let Ok(bytes) = read_end(&dir.join(FILE), 16 * 1024) else { return String::new() };
    let text = String::from_utf8_lossy(&bytes);
    let clean: String = text.chars().filter(|c| *c == '\n' || *c == '\t' || !c.is_control()).collect();
    let all: Vec<&str> = clean.lines().filter(|line| !line.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Makes the log in `other`, into which a VMM is about to write, the one of `dir`, behind what was logged there.
///
/// # Errors
/// Where a log cannot be read, written or moved.
pub(crate) fn continue_in(dir: &Path, other: &Path) -> io::Result<()> {
    let (old, new) = (dir.join(FILE), other.join(FILE));
    match read_end(&old, KEPT) {
        Ok(before) => OpenOptions::new().append(true).open(&new)?.write_all(&before)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    std::fs::rename(new, old)
}

/// Cuts a log that has outgrown [`LIMIT`] down to its end. The VMM appends (`O_APPEND`), so it goes on behind what
/// is left; what it writes during the cut may be lost.
///
/// # Errors
/// Where the log cannot be read or written.
pub fn trim(dir: &Path) -> io::Result<()> {
    let path = dir.join(FILE);
    if std::fs::metadata(&path)?.len() <= LIMIT {
        return Ok(());
    }
    let end = read_end(&path, KEPT)?;
    let mut file = OpenOptions::new().write(true).open(&path)?;
    file.set_len(0)?;
    file.write_all(&end)
}

fn read_end(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_without_control_characters() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(tail(dir.path(), 3), "");
        std::fs::write(dir.path().join(FILE), "one\r\n\x1b[31mtwo\n\nthree\nfour\n").unwrap();
        assert_eq!(tail(dir.path(), 3), "[31mtwo\nthree\nfour");
    }

    #[test]
    fn a_flooded_log_is_cut_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![b'a'; usize::try_from(LIMIT).unwrap()];
        bytes.extend_from_slice(b"the end\n");
        std::fs::write(dir.path().join(FILE), bytes).unwrap();
        trim(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), KEPT);
        assert_eq!(tail(dir.path(), 1).len(), 16 * 1024 - 1);
        assert!(tail(dir.path(), 1).ends_with("the end"));
    }
}
