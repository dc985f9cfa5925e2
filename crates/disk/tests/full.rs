//! What happens on a file system of its own: one that is full, and one that cannot link to another.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use std::path::Path;

use common::ext4::Ext4;
use common::{Cow, Kind, Lab, for_both_kinds, names, noise};
use wrenn_disk::{AHEAD, DiskError, MIB, Room, RootDisks, allocated_bytes, keep_room};

for_both_kinds!(
    a_base_on_another_file_system_is_copied,
    a_full_disk_is_told_apart_and_no_attempt_leaves_a_file,
);

fn disk_files(dir: &Path) -> usize {
    names(dir).iter().filter(|name| name.starts_with("disk-")).count()
}

async fn a_base_on_another_file_system_is_copied<K: Kind>() {
    let lab = Lab::<K>::new(3 << 20);
    let fs = Ext4::mount(&lab, K::SMALL_SYSTEM);
    let chain = lab.disks.create(&fs.0, &lab.base(), 8).await.unwrap();
    K::assert_sound(&chain);
    assert!(K::content(&chain)[..3 << 20] == noise(3 << 20));
    let linked = lab.disks.link(&chain, &lab.dir("back")).await.unwrap();
    K::assert_sound(&linked);
    assert_eq!(linked.top_name(), chain.top_name());
}

async fn a_full_disk_is_told_apart_and_no_attempt_leaves_a_file<K: Kind>() {
    let lab = Lab::<K>::new(1 << 20);
    let fs = Ext4::mount(&lab, K::SMALL_SYSTEM);
    let dir = fs.0.join("a");
    std::fs::create_dir(&dir).unwrap();
    let one = lab.disks.create(&dir, &lab.base(), 64).await.unwrap();
    K::write(&one, 0, 4 << 20, 1);
    let two = lab.disks.push(&one, None).await.unwrap();
    let before = K::content(&two);
    fs.fill();
    let full = |error: DiskError| assert!(matches!(error, DiskError::Full { .. }), "{error}");
    full(lab.disks.flatten(&two, 0).await.unwrap_err());
    full(lab.disks.push(&two, None).await.unwrap_err());
    let other = lab.dir("empty");
    std::fs::rename(lab.base(), other.join("base")).unwrap();
    full(lab.disks.create(&fs.0, &other.join("base"), 64).await.unwrap_err());
    assert_eq!((disk_files(&dir), disk_files(&fs.0)), (3, 0));
    assert!(K::content(&two) == before);
}

#[tokio::test]
async fn a_layer_can_be_written_where_everything_else_finds_the_disk_full() {
    let lab = Lab::<Cow>::new(1 << 20);
    let fs = Ext4::mount(&lab, Cow::SMALL_SYSTEM);
    let chain = lab.disks.create(&fs.0, &lab.base(), 256).await.unwrap();
    assert!(allocated_bytes(chain.top()).unwrap() >= AHEAD);
    fs.fill();
    // Nothing is used, so the room that the layer was made with is still ahead.
    let first_free = 2 * 4096;
    assert_eq!(keep_room(chain.top(), first_free).unwrap(), Room::Taken);
    assert_eq!(keep_room(chain.top(), first_free + 8 * MIB).unwrap(), Room::Short);
    Cow::write(&chain, 0, 31 << 20, 7);
    std::fs::File::open(chain.top()).unwrap().sync_all().unwrap();
    assert!(Cow::content(&chain)[..31 << 20].iter().all(|byte| *byte == 7));
    std::fs::remove_dir_all(fs.0.join("lost+found")).unwrap();
    for name in names(&fs.0).iter().filter(|name| !name.starts_with("disk-")) {
        std::fs::remove_file(fs.0.join(name)).unwrap();
    }
    assert_eq!(keep_room(chain.top(), 32 * MIB).unwrap(), Room::Taken);
    assert!(allocated_bytes(chain.top()).unwrap() >= 60 * MIB);
}

#[tokio::test]
async fn no_room_is_taken_where_there_is_plenty() {
    let lab = Lab::<Cow>::new(1 << 20);
    let chain = lab.disks.create(&lab.dir("a"), &lab.base(), 256).await.unwrap();
    let system = rustix::fs::statvfs(chain.top()).unwrap();
    let plenty = system.f_bavail * system.f_frsize >= wrenn_disk::PLENTY;
    let room = keep_room(chain.top(), 8192).unwrap();
    assert_eq!(room, if plenty { Room::Plenty } else { Room::Taken });
    assert_eq!(allocated_bytes(chain.top()).unwrap() < MIB, plenty);
}
