//! Keeps the worked example of `docs/image-format.md` true: the files are made, dumped and looked for in the document.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::{BLOCK_BYTES, BaseWriter, Image, LayerWriter};

const DOCUMENT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/image-format.md"));

#[test]
fn the_example_in_the_document_is_what_the_code_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let size = 3 * BLOCK_BYTES as u64;
    let mut base = BaseWriter::with_id(&path("m.base"), size, [0xB0; 16]).unwrap();
    base.write(0, &[0x11; BLOCK_BYTES]).unwrap();
    base.finish(false).unwrap();
    let mut layer = LayerWriter::with_id(&path("m.layer"), size, [0xA1; 16]).unwrap();
    layer.zero(0, 1).unwrap();
    layer.write(1, &[0x22; BLOCK_BYTES]).unwrap();
    layer.finish(false).unwrap();
    Image::create(&path("m.image"), &path("m.base"), &[&path("m.layer")], false).unwrap();

    for name in ["m.base", "m.layer", "m.image"] {
        let dump = dump(&path(name));
        assert!(DOCUMENT.contains(&dump), "docs/image-format.md should show {name} as\n{dump}");
    }
}

/// The bytes of a file as `hexdump -C` shows them.
fn dump(path: &Path) -> String {
    let bytes = fs::read(path).unwrap();
    let (mut out, mut last, mut starred) = (String::new(), None, false);
    for (index, row) in bytes.chunks(16).enumerate() {
        if last == Some(row) {
            out.push_str(if starred { "" } else { "*\n" });
            starred = true;
            continue;
        }
        (last, starred) = (Some(row), false);
        write!(out, "{:08x} ", index * 16).unwrap();
        for column in 0..16 {
            let gap = if column == 8 { " " } else { "" };
            let cell = row.get(column).map_or("   ".to_owned(), |byte| format!(" {byte:02x}"));
            write!(out, "{gap}{cell}").unwrap();
        }
        let text: String =
            row.iter().map(|byte| if (32..127).contains(byte) { char::from(*byte) } else { '.' }).collect();
        writeln!(out, "  |{text}|").unwrap();
    }
    writeln!(out, "{:08x}", bytes.len()).unwrap();
    out
}
