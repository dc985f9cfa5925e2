//! A writer of cpio archives in the "newc" format, which the kernel unpacks as its initial file system.
//!
//! Each entry is a header of 13 eight-digit hexadecimal fields, the name with a nul, and the content; name and content
//! are each padded to four bytes. The archive is not compressed: an emulated guest unpacks slower than it reads.

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// An archive in the making. All entries belong to root and have no time stamps: the same content gives the same bytes.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    pub(super) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, REGULAR | mode, (0, 0), content);
    }

    pub(super) fn character_device(&mut self, name: &str, mode: u32, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | mode, (major, minor), &[]);
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        // The field holds 4 GiB less a byte; what goes in here is a thousandth of that.
        let size = u32::try_from(content.len()).unwrap_or(u32::MAX);
        let name_size = u32::try_from(name.len() + 1).unwrap_or(u32::MAX);
        let (inode, links) = (self.entries, 1);
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(MAGIC.bytes());
        self.bytes.extend(fields.iter().flat_map(|field| format!("{field:08X}").into_bytes()));
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (name, mode, content) of each entry, by another reading of the format.
    fn parse(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let total = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * n..14 + 8 * n]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (u32::try_from(field(1)).unwrap(), field(6), field(11));
            let name = String::from_utf8(bytes[110..109 + name_size].to_vec()).unwrap();
            assert_eq!(bytes[109 + name_size], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let content = bytes[start..start + size].to_vec();
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            assert_eq!((total - bytes.len()) % 4, 0);
            if name == TRAILER {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push((name, mode, content));
        }
    }

    #[test]
    fn entries_come_back_in_order_with_modes_and_content() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"12345");
        archive.file("empty", 0o644, b"");
        let entries = parse(&archive.finish());
        let expected = [
            ("dev", 0o040_755, &b""[..]),
            ("dev/console", 0o020_600, b""),
            ("init", 0o100_755, b"12345"),
            ("empty", 0o100_644, b""),
        ];
        assert_eq!(entries, expected.map(|(name, mode, content)| (name.to_owned(), mode, content.to_vec())));
    }

    proptest::proptest! {
        #[test]
        fn any_content_survives(files in proptest::collection::vec(("[a-z]{1,9}", proptest::collection::vec(0u8.., 0..40)), 0..8)) {
            let mut archive = Archive::default();
            files.iter().for_each(|(name, content)| archive.file(name, 0o644, content));
            let read: Vec<_> = parse(&archive.finish()).into_iter().map(|(name, _, content)| (name, content)).collect();
            proptest::prop_assert_eq!(read, files);
        }
    }
}
