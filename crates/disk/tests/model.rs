//! Random lives of a disk, compared with an array of bytes.
#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]

mod common;

use common::{Cow, Kind, Lab, Qcow2, noise};
use proptest::prelude::*;
use wrenn_disk::{MIB, RootDisks};

/// Not a multiple of a cluster, so that one is half in the base.
const BASE_BYTES: usize = (1 << 20) + 4096 + 512;
const CLUSTER: usize = 1 << 16;
const START_MB: u32 = 2;

#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, length: usize, value: u8 },
    Zero { at: usize, length: usize },
    Discard { cluster: usize, count: usize },
    Push { more_mb: Option<u32> },
    Flatten { keep: usize },
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0..1024_usize, 1..80_usize);
    prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((at, length), value)| Step::Write { at: at * 4096, length: length * 4096, value }),
        2 => place().prop_map(|(at, length)| Step::Zero { at: at * 4096, length: length * 4096 }),
        2 => (0..64_usize, 1..10_usize).prop_map(|(cluster, count)| Step::Discard { cluster, count }),
        3 => prop::option::of(prop_oneof![6 => 1..3_u32, 1 => 510..515_u32]).prop_map(|more_mb| Step::Push { more_mb }),
        2 => (0..4_usize).prop_map(|keep| Step::Flatten { keep }),
        1 => Just(Step::Move),
    ]
}

/// The part of a range that is on a disk of `size` bytes, if any.
fn clip(at: usize, length: usize, size: usize) -> Option<(usize, usize)> {
    (at < size).then(|| (at, length.min(size - at)))
}

async fn live<K: Kind>(steps: Vec<Step>) {
    let lab = Lab::<K>::new(BASE_BYTES);
    let mut chain = lab.disks.create(&lab.dir("0"), &lab.base(), START_MB).await.unwrap();
    let mut model = noise(BASE_BYTES);
    model.resize(usize::try_from(u64::from(START_MB) * MIB).unwrap(), 0);
    for (index, step) in steps.into_iter().enumerate() {
        let size = model.len();
        match step {
            Step::Write { at, length, value } => {
                let Some((at, length)) = clip(at, length, size) else { continue };
                K::write(&chain, at, length, value);
                model[at..at + length].fill(value);
            }
            Step::Zero { at, length } => {
                let Some((at, length)) = clip(at, length, size) else { continue };
                K::write(&chain, at, length, 0);
                model[at..at + length].fill(0);
            }
            Step::Discard { cluster, count } => {
                let Some((at, length)) = clip(cluster * CLUSTER, count * CLUSTER, size) else { continue };
                if K::discard(&chain, at, length) {
                    model[at..at + length].fill(0);
                }
            }
            Step::Push { more_mb } => {
                let mb = u32::try_from(chain.virtual_bytes / MIB).unwrap();
                chain = lab.disks.push(&chain, more_mb.map(|more| mb + more)).await.unwrap();
                model.resize(usize::try_from(chain.virtual_bytes).unwrap(), 0);
            }
            Step::Flatten { keep } => {
                chain = lab.disks.flatten(&chain, keep).await.unwrap();
                lab.disks.remove_unlisted(chain.base.parent().unwrap(), &chain).await.unwrap();
            }
            Step::Move => {
                let old = chain.base.parent().unwrap().to_path_buf();
                let linked = lab.disks.link(&chain, &lab.dir(&(index + 1).to_string())).await.unwrap();
                std::fs::remove_dir_all(old).unwrap();
                chain = lab.disks.push(&linked, None).await.unwrap();
            }
        }
    }
    K::assert_sound(&chain);
    let dir = chain.base.parent().unwrap();
    assert_eq!(lab.disks.open(dir, chain.top_name()).await.unwrap(), chain);
    assert!(K::content(&chain) == model);
    let flat = lab.disks.flatten(&chain, 0).await.unwrap();
    K::assert_sound(&flat);
    assert!(K::content(&flat) == model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_qcow2_disk_reads_back_what_was_last_written_whatever_happens_to_its_layers(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(live::<Qcow2>(steps));
    }

    #[test]
    fn a_copy_on_write_disk_reads_back_what_was_last_written_whatever_happens_to_its_layers(
        steps in prop::collection::vec(step(), 1..25),
    ) {
        tokio::runtime::Runtime::new().unwrap().block_on(live::<Cow>(steps));
    }
}
