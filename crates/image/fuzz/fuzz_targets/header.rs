//! Headers made of anything: `cargo +nightly fuzz run header` in `crates/image`.
//!
//! Each input is tried as it is and with a right checksum, without which the parser would stop at the door.

#![no_main]

use libfuzzer_sys::fuzz_target;
use wrenn_image::{BLOCK_BYTES, Header};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let mut sealed = bytes.to_vec();
    sealed.extend(crc32c::crc32c(bytes).to_le_bytes());
    check(&sealed);
});

fn check(bytes: &[u8]) {
    let Ok(header) = Header::parse(bytes) else { return };
    let mut free = 0;
    for extent in &header.extents {
        assert!(extent.count > 0 && extent.block >= free);
        free = extent.end();
    }
    assert!(free <= header.size_bytes / BLOCK_BYTES as u64);
    assert_eq!(header.encode().as_deref(), Ok(bytes), "one header has one form");
}
