//! The ELF kernel inside a bzImage.
//!
//! The header (the kernel's `Documentation/arch/x86/boot.rst`) says where the compressed kernel lies. Debian's cloud
//! kernel uses the legacy LZ4 stream: a magic number, then blocks of at most 8 MiB, each preceded by its compressed size.

const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;
/// A kernel unpacks to some 60 MiB; a damaged length must not take the machine's memory.
const MAX_KERNEL: usize = 512 << 20;

/// The uncompressed kernel; `None` where the file is not a bzImage, or is compressed in another way.
pub(super) fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(SETUP_SECTORS)? {
        // The oldest loaders' default.
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + number(image, PAYLOAD_OFFSET)?;
    let payload = image.get(start..)?.get(..number(image, PAYLOAD_LENGTH)?)?;
    let kernel = unpack_lz4(payload)?;
    kernel.starts_with(b"\x7fELF").then_some(kernel)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(four)).ok()
}

/// The last four bytes of a kernel's payload are its unpacked size.
fn unpack_lz4(payload: &[u8]) -> Option<Vec<u8>> {
    let (stream, size) = payload.split_at_checked(payload.len().checked_sub(4)?)?;
    let size = number(size, 0).filter(|size| *size <= MAX_KERNEL)?;
    let mut rest = stream.strip_prefix(&LZ4_LEGACY)?;
    let mut kernel = vec![0; size];
    let mut filled = 0;
    while !rest.is_empty() {
        let length = number(rest, 0)?;
        let block = rest.get(4..)?.get(..length)?;
        let end = size.min(filled + LZ4_BLOCK);
        filled += lz4_flex::block::decompress_into(block, kernel.get_mut(filled..end)?).ok()?;
        rest = rest.get(4 + length..)?;
    }
    (filled == size).then_some(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block of one run of literals.
    fn block(text: &[u8]) -> Vec<u8> {
        assert!(text.len() < 15);
        let token = u8::try_from(text.len() << 4).unwrap();
        let length = u32::try_from(text.len() + 1).unwrap();
        [&length.to_le_bytes()[..], &[token], text].concat()
    }

    fn image(magic: [u8; 4], blocks: &[&[u8]]) -> Vec<u8> {
        let stream: Vec<u8> = blocks.iter().flat_map(|text| block(text)).collect();
        let size = u32::try_from(blocks.iter().map(|text| text.len()).sum::<usize>()).unwrap();
        let payload = [&magic[..], &stream, &size.to_le_bytes()].concat();
        let mut image = vec![0; 1024];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn the_kernel_is_put_together_from_its_blocks() {
        let found = unpack(&image(LZ4_LEGACY, &[b"\x7fELF and", b" the rest"]));
        assert_eq!(found.as_deref(), Some(&b"\x7fELF and the rest"[..]));
    }

    #[test]
    fn other_compressions_other_contents_and_damage_are_passed_over() {
        assert_eq!(unpack(&image(*b"\xfd7zX", &[b"\x7fELF"])), None);
        assert_eq!(unpack(&image(LZ4_LEGACY, &[b"no kernel"])), None);
        assert_eq!(unpack(b"short"), None);
        let whole = image(LZ4_LEGACY, &[b"\x7fELF and"]);
        assert!((0..whole.len()).all(|length| unpack(&whole[..length]).is_none()));
    }
}
