//! The devices of copy-on-write disks, with the kernel's own device-mapper: it writes, and the reader of the tests judges.
//!
//! Where there is no device-mapper nothing of this can be known, so these tests are not run without being asked for:
//! `scripts/lab.sh` has a machine for them.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod bench;
#[path = "../common/mod.rs"]
mod common;
mod failures;
mod stacks;
mod tops;

use wrenn_disk::{Devices, DiskError};

#[test]
fn a_machine_without_the_device_mapper_is_told_what_it_lacks() {
    let misc = std::fs::read_to_string("/proc/misc").unwrap();
    match (misc.contains("device-mapper"), Devices::open("wrenn-test")) {
        (true, opened) => drop(opened.unwrap()),
        (false, opened) => {
            let error = opened.unwrap_err();
            assert!(matches!(error, DiskError::KernelLacks { .. }), "{error}");
            assert!(error.to_string().contains("modprobe dm-mod dm-snapshot"), "{error}");
        }
    }
    assert!(matches!(Devices::open("a/b"), Err(DiskError::BadName { .. })));
}
