//! The initial file system: the guest daemon as `/init`, and the modules it loads.

use std::fs;
use std::path::Path;

use super::cpio::Archive;
use super::definition::short_hash;
use super::kernel::Kernel;
use super::store::Store;
use super::{ImageError, KernelImage};

/// See [`wrenn_vmm::qemu::INITRD_ALIGNMENT`].
const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == wrenn_vmm::qemu::INITRD_ALIGNMENT);

/// What `build.rs` found; empty where the daemon had not been built.
static GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/wrenn-guest"));

/// The guest daemon that this binary carries, a static ELF program.
///
/// # Errors
/// [`ImageError::NoGuestDaemon`] where this binary was built without it.
pub fn guest_binary() -> Result<&'static [u8], ImageError> {
    if GUEST.is_empty() { Err(ImageError::NoGuestDaemon) } else { Ok(GUEST) }
}

/// Makes the initial file system for `kernel` with this binary's daemon. Older ones stay until
/// [`prune`](super::prune::prune), because a VM may have been started with one.
pub(super) fn ensure(store: &Store, kernel: Kernel) -> Result<KernelImage, ImageError> {
    let archive = build(guest_binary()?, &kernel.modules)?;
    let initramfs = kernel.dir.join(format!("initramfs-{}", short_hash([&*archive])));
    store.write(&initramfs, &archive)?;
    Ok(KernelImage {
        version: kernel.version,
        kernel: kernel.file,
        initramfs,
        cmdline: wrenn_vmm::qemu::KERNEL_CMDLINE.to_owned(),
    })
}

/// `modules` holds the modules under names that sort in load order.
fn build(guest: &[u8], modules: &Path) -> Result<Vec<u8>, ImageError> {
    let mut archive = Archive::default();
    archive.directory("dev");
    // The kernel opens it for the first process, before anything is mounted.
    archive.character_device("dev/console", 0o600, 5, 1);
    archive.file("init", 0o755, guest);
    archive.directory("modules");
    let io = |source| ImageError::io("read", modules, source);
    let mut names = fs::read_dir(modules)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>())
        .map_err(io)?;
    names.sort();
    for name in names {
        let content = fs::read(modules.join(&name)).map_err(io)?;
        archive.file(&format!("modules/{}", name.display()), 0o644, &content);
    }
    let mut bytes = archive.finish();
    // The kernel passes over zeros behind the end of an archive.
    bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
    Ok(bytes)
}
