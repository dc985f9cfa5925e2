//! Holes stay holes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use wrenn_image::{BLOCK_BYTES, BaseWriter, Image, LayerWriter};

/// 1 GiB.
const BLOCKS: u64 = 1 << 18;
const SIZE: u64 = BLOCKS * BLOCK_BYTES as u64;

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn an_image_takes_the_room_of_its_data_and_so_do_its_copies() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut base = BaseWriter::create(&path("base"), SIZE).unwrap();
    // A mebibyte in which every other block is zero, then a lone block near the end.
    let mut piece = vec![7; 1 << 20];
    for zero in piece.chunks_mut(2 * BLOCK_BYTES) {
        zero[..BLOCK_BYTES].fill(0);
    }
    base.write(1000, &piece).unwrap();
    base.write(BLOCKS - 3, &[1; BLOCK_BYTES]).unwrap();
    let written = base.finish(false).unwrap();
    assert_eq!((written.data_blocks, written.zero_blocks), (129, BLOCKS - 129));

    let mut layer = LayerWriter::create(&path("layer"), SIZE).unwrap();
    layer.write(500, &[2; 4 * BLOCK_BYTES]).unwrap();
    layer.zero(2000, 100_000).unwrap();
    layer.write(BLOCKS - 1, &[3; BLOCK_BYTES]).unwrap();
    let written = layer.finish(false).unwrap();
    assert_eq!((written.data_blocks, written.zero_blocks), (5, 100_000));
    assert_eq!(written.bytes, fs::metadata(path("layer")).unwrap().len());

    let image = Image::create(&path("image"), &path("base"), &[&path("layer")], false).unwrap();
    let flat = image.materialise(&path("flat"), false).unwrap();
    assert_eq!(flat.data_blocks, 134);
    image.verify_base().unwrap();
    // Data, the table of sums (82 KiB), and what the file system needs to find them.
    let room = 1 << 20;
    assert!(allocated(&path("base")) < room, "{}", allocated(&path("base")));
    assert!(allocated(&path("flat")) < room, "{}", allocated(&path("flat")));
    assert!(image.allocated_bytes().unwrap() < room);
    assert_eq!(fs::metadata(path("flat")).unwrap().len(), fs::metadata(path("base")).unwrap().len());
}

#[test]
fn a_layer_costs_little_more_than_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = vec![5; 512 * BLOCK_BYTES];
    for stride in [1, 2] {
        let mut layer = LayerWriter::create(&dir.path().join("layer"), SIZE).unwrap();
        for (index, block) in blocks.chunks(BLOCK_BYTES).enumerate() {
            layer.write(index as u64 * stride, block).unwrap();
        }
        let written = layer.finish(false).unwrap();
        assert!(written.bytes * 100 <= blocks.len() as u64 * 102, "{written:?}");
    }
}
