//! Loads the drivers that the initramfs carries, in the order of their names.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use super::{InitError, Step};

/// Where the image builder puts them, as `00-name.ko`, in the order of their dependencies.
const DIRECTORY: &str = "/modules";

/// Loads every module; none there is fine, for the kernel may have its drivers built in.
pub(super) fn load() -> Result<(), InitError> {
    let listing = match std::fs::read_dir(DIRECTORY) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).step(format!("read {DIRECTORY}")),
    };
    let mut modules: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    modules.retain(|path| path.extension().is_some_and(|e| e == "ko"));
    modules.sort();
    for module in modules {
        let file = File::open(&module).step(format!("open {}", module.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).step(format!("load {}", module.display())),
        }
    }
    Ok(())
}
