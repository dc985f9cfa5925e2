//! Snapshots of small guests with the real QEMU: saved, restored, forked, again and again.

#![expect(clippy::unwrap_used, reason = "a failed step of a test's set-up fails the test")]
#![expect(dead_code, reason = "the tests of one file do not need all of the bench")]

mod common;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use common::{Bench, Guest};
use wrenn_image::{BLOCK_BYTES, BaseWriter, Image};
use wrenn_vmm::{Machine, MemoryTarget, RunState, VmmError};

/// Each letter that [`Guest::Counts`] prints follows the one before it.
fn is_consecutive(console: &str) -> bool {
    let letters: Vec<u8> = console.lines().filter(|line| *line != "hello").flat_map(str::bytes).collect();
    letters.windows(2).all(|pair| (pair[0] - b'a' + 1) % 16 == pair[1] - b'a')
}

async fn letters(bench: &Bench, more: usize) {
    let before = bench.console().len();
    bench.console_until(|text| text.len() >= before + more).await;
}

/// Stops the machine and writes a whole snapshot of it.
async fn save(bench: &Bench, machine: &dyn Machine, name: &str) -> Arc<Image> {
    machine.pause().await.unwrap();
    let base = bench.path(&format!("{name}.base"));
    machine.save_memory(MemoryTarget::Base(base.clone())).await.unwrap();
    readable(&base);
    machine.save_devices(&bench.path(&format!("{name}.state"))).await.unwrap();
    Arc::new(Image::create(&bench.path(&format!("{name}.image")), &base, &[], false).unwrap())
}

/// Adds what changed since `parent` as a layer.
async fn save_more(bench: &Bench, machine: &dyn Machine, parent: &Arc<Image>, name: &str) -> Arc<Image> {
    machine.pause().await.unwrap();
    let path = bench.path(&format!("{name}.layer"));
    let target = MemoryTarget::Layer { path: path.clone(), parent: Arc::clone(parent) };
    let saved = machine.save_memory(target).await.unwrap();
    assert!(saved.data_blocks > 0 && saved.data_blocks <= saved.dirty_blocks);
    machine.save_devices(&bench.path(&format!("{name}.state"))).await.unwrap();
    let mut layers = parent.layer_paths();
    layers.push(path);
    let layers: Vec<&Path> = layers.iter().map(|path| &**path).collect();
    let header = bench.path(&format!("{name}.image"));
    Arc::new(Image::create(&header, &parent.base_path(), &layers, false).unwrap())
}

fn readable(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
    let dir = path.parent().unwrap();
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711)).unwrap();
}

async fn load(machine: &dyn Machine, image: &Arc<Image>, devices: &Path) -> Result<(), VmmError> {
    machine.load_memory(Arc::clone(image)).await?;
    machine.load_devices(devices).await
}

async fn restore(bench: &Bench, image: &Arc<Image>, name: &str) -> Arc<dyn Machine> {
    let machine = bench.start(bench.restore_spec(&image.base_path())).await.unwrap();
    load(&*machine, image, &bench.path(&format!("{name}.state"))).await.unwrap();
    assert_eq!(machine.status().await.unwrap(), RunState::Paused);
    machine.cont().await.unwrap();
    machine
}

#[tokio::test]
async fn a_guest_goes_on_where_it_was_saved_again_and_again() {
    let bench = Bench::new().await;
    let mut machine = bench.boot(Guest::Counts).await;
    letters(&bench, 20).await;
    let mut image = save(&bench, &*machine, "g0").await;
    machine.kill().await.unwrap();
    for generation in 1..=4 {
        machine = restore(&bench, &image, &format!("g{}", generation - 1)).await;
        letters(&bench, 20).await;
        image = save_more(&bench, &*machine, &image, &format!("g{generation}")).await;
        assert_eq!(image.layers(), generation);
        machine.kill().await.unwrap();
    }
    let console = bench.console();
    assert!(is_consecutive(&console) && console.matches("hello").count() == 1, "{console}");
}

#[tokio::test]
async fn a_layer_holds_what_changed_and_nothing_else() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Counts).await;
    letters(&bench, 5).await;
    let base = save(&bench, &*machine, "g0").await;
    machine.kill().await.unwrap();
    let machine = restore(&bench, &base, "g0").await;
    letters(&bench, 5).await;
    let first = save_more(&bench, &*machine, &base, "g1").await;
    machine.kill().await.unwrap();
    // Patched pages are dirty too, and the same as what is saved.
    let machine = bench.start(bench.restore_spec(&first.base_path())).await.unwrap();
    load(&*machine, &first, &bench.path("g1.state")).await.unwrap();
    let target = MemoryTarget::Layer { path: bench.path("same.layer"), parent: Arc::clone(&first) };
    let saved = machine.save_memory(target).await.unwrap();
    assert!(saved.dirty_blocks > 0);
    assert_eq!(saved.data_blocks, 0);
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_running_guest_is_saved_in_two_passes_and_goes_on() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Counts).await;
    letters(&bench, 5).await;
    let empty = bench.path("empty.base");
    BaseWriter::create(&empty, 64 << 20).unwrap().finish(false).unwrap();
    let nothing = Arc::new(Image::create(&bench.path("empty.image"), &empty, &[], false).unwrap());
    let (live, rest) = (bench.path("live.layer"), bench.path("rest.layer"));
    let target = MemoryTarget::Layer { path: live.clone(), parent: nothing };
    let first = machine.save_memory(target).await.unwrap();
    let passed = Arc::new(Image::create(&bench.path("live.image"), &empty, &[&*live], false).unwrap());
    letters(&bench, 5).await;
    machine.pause().await.unwrap();
    let target = MemoryTarget::Layer { path: rest.clone(), parent: passed };
    let second = machine.save_memory(target).await.unwrap();
    machine.save_devices(&bench.path("both.state")).await.unwrap();
    machine.cont().await.unwrap();
    assert!(second.data_blocks > 0 && second.data_blocks < first.data_blocks, "{first:?} {second:?}");
    letters(&bench, 5).await;
    machine.kill().await.unwrap();
    assert!(is_consecutive(&bench.console()));

    let both = Image::create(&bench.path("both.image"), &empty, &[&*live, &*rest], false).unwrap();
    let flat = bench.path("flat.base");
    both.materialise(&flat, false).unwrap();
    readable(&flat);
    let image = Arc::new(Image::create(&bench.path("flat.image"), &flat, &[], false).unwrap());
    let clone = restore(&bench, &image, "both").await;
    letters(&bench, 20).await;
    clone.kill().await.unwrap();
}

#[tokio::test]
async fn a_new_layer_takes_the_writes_of_a_stopped_machine() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Ticks).await;
    machine.pause().await.unwrap();
    assert_eq!(machine.disk_top().await.unwrap(), "disk-1.qcow2");
    let layer = bench.make_layer("disk-2.qcow2", "disk-1.qcow2", "qcow2");
    machine.stage_disk(&layer).await.unwrap();
    machine.unstage_disk(&layer).await.unwrap();
    assert_eq!(machine.disk_top().await.unwrap(), "disk-1.qcow2");
    machine.stage_disk(&layer).await.unwrap();
    machine.push_disk(&layer).await.unwrap();
    assert_eq!(machine.disk_top().await.unwrap(), "disk-2.qcow2");
    machine.resize_disk(32 << 20).await.unwrap();
    machine.cont().await.unwrap();
    let mut check = std::process::Command::new("qemu-img");
    check.args(["check", "-q", "-f", "qcow2"]).arg(bench.path("disk-1.qcow2"));
    assert!(check.status().unwrap().success(), "the frozen layer is free for others");
    let missing = machine.stage_disk(&bench.path("disk-3.qcow2")).await.unwrap_err();
    assert!(matches!(missing, VmmError::Io { .. }), "{missing}");
    assert_eq!(machine.disk_top().await.unwrap(), "disk-2.qcow2");
    machine.kill().await.unwrap();
    let grown = std::process::Command::new("qemu-img")
        .args(["info", "--output=json", "-f", "qcow2"])
        .arg(bench.path("disk-2.qcow2"))
        .output()
        .unwrap();
    let info: serde_json::Value = serde_json::from_slice(&grown.stdout).unwrap();
    assert_eq!(info["virtual-size"], 32 << 20);
}

#[tokio::test]
async fn damage_is_refused_before_the_guest_runs() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Counts).await;
    letters(&bench, 5).await;
    let base = save(&bench, &*machine, "g0").await;
    machine.kill().await.unwrap();
    let machine = restore(&bench, &base, "g0").await;
    letters(&bench, 5).await;
    let image = save_more(&bench, &*machine, &base, "g1").await;
    machine.kill().await.unwrap();

    let state = bench.path("g1.state");
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    let machine = bench.start(bench.restore_spec(&image.base_path())).await.unwrap();
    let error = load(&*machine, &image, &state).await.unwrap_err();
    assert!(matches!(error, VmmError::Restore { .. }), "{error}");
    machine.kill().await.unwrap();
    std::fs::write(&state, &whole).unwrap();

    let layer = std::fs::OpenOptions::new().write(true).open(bench.path("g1.layer")).unwrap();
    let middle = layer.metadata().unwrap().len() / 3;
    layer.write_all_at(&[0xaa; BLOCK_BYTES], middle).unwrap();
    let machine = bench.start(bench.restore_spec(&image.base_path())).await.unwrap();
    let error = load(&*machine, &image, &state).await.unwrap_err();
    assert!(matches!(error, VmmError::Image(_)), "{error}");
    machine.kill().await.unwrap();
}

#[tokio::test]
async fn a_snapshot_of_another_size_is_refused() {
    let bench = Bench::new().await;
    let machine = bench.boot(Guest::Counts).await;
    letters(&bench, 2).await;
    let image = save(&bench, &*machine, "g0").await;
    machine.kill().await.unwrap();
    let mut spec = bench.restore_spec(&image.base_path());
    spec.memory_mb = 32;
    let machine = bench.start(spec).await.unwrap();
    let error = load(&*machine, &image, &bench.path("g0.state")).await.unwrap_err();
    assert!(matches!(error, VmmError::MemorySize { .. }), "{error}");
    machine.kill().await.unwrap();
}
