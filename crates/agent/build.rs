//! Puts the guest daemon's binary where `include_bytes!` finds it.
//!
//! `make build` makes the daemon first, for another target than the host's. Where it has not been made (a plain
//! `cargo check`), an empty file stands in, and the image builder refuses it at run time.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const BUILT: &str = "x86_64-unknown-linux-musl/guest/wrenn-guest";

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let binary = env::var_os("WRENN_GUEST_BIN").map(PathBuf::from).unwrap_or_else(|| default_path(&out));
    println!("cargo::rerun-if-env-changed=WRENN_GUEST_BIN");
    println!("cargo::rerun-if-changed={}", binary.display());
    let bytes = if binary.exists() { fs::read(&binary)? } else { Vec::new() };
    fs::write(out.join("wrenn-guest"), bytes)?;
    Ok(())
}

/// In the target directory in use: the nearest one above `out` that cargo marked as such.
fn default_path(out: &Path) -> PathBuf {
    let target = out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").exists() && !dir.join("deps").exists());
    // With `--target`, cargo marks the directory of that target as well; the daemon lies beside it.
    let is_triple = |dir: &Path| dir.parent().is_some_and(|parent| parent.join("CACHEDIR.TAG").exists());
    let root = target.map(|dir| if is_triple(dir) { dir.parent().unwrap_or(dir) } else { dir });
    root.unwrap_or(out).join(BUILT)
}
