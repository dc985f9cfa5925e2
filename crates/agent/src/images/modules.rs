//! Which kernel modules a guest needs, and in which order they must be loaded.
//!
//! A module's `.modinfo` section lists what it depends on, as nul-terminated `key=value` strings. Reading it needs no
//! `depmod`, which a package that is only unpacked has not been through.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What every guest needs: the transport, the disk, the network, entropy, and the root file system. What of it a kernel
/// has built in, it needs no module for.
pub(super) const WANTED: [&str; 5] = ["virtio_mmio", "virtio_blk", "virtio_net", "virtio_rng", "ext4"];

/// A module that is neither built in nor in the package.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no module {0}")]
pub(super) struct Missing(pub(super) String);

/// The modules of one kernel.
#[derive(Debug, Default)]
pub(super) struct Modules {
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
}

/// File names and dependencies spell a module's name with `-` or `_`, at random.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn name_of(path: &Path) -> Option<String> {
    Some(normal(path.file_name()?.to_str()?.strip_suffix(".ko")?))
}

impl Modules {
    /// The modules below `dir`, which is the package's `lib/modules/<version>`.
    pub(super) fn read(dir: &Path) -> std::io::Result<Self> {
        let built_in = std::fs::read_to_string(dir.join("modules.builtin"))?;
        let built_in = built_in.lines().filter_map(|line| name_of(Path::new(line))).collect();
        let (mut files, mut pending) = (BTreeMap::new(), vec![dir.join("kernel")]);
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(dir)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = name_of(&entry.path()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files, built_in })
    }

    /// The files to load for `wanted`, each after what it depends on. `read` gives a module's content.
    pub(super) fn in_order(
        &self,
        wanted: &[&str],
        read: impl Fn(&Path) -> std::io::Result<Vec<u8>>,
    ) -> Result<Vec<(String, PathBuf)>, Missing> {
        let mut order = Order { modules: self, read, seen: BTreeSet::new(), list: Vec::new() };
        for name in wanted {
            order.add(name, Need::Hard)?;
        }
        Ok(order.list)
    }
}

/// Whether a module cannot do without another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Hard,
    /// It would like it first (`softdep`); the name may be an alias that only `depmod` resolves.
    Soft,
}

struct Order<'a, R> {
    modules: &'a Modules,
    read: R,
    seen: BTreeSet<String>,
    list: Vec<(String, PathBuf)>,
}

impl<R: Fn(&Path) -> std::io::Result<Vec<u8>>> Order<'_, R> {
    fn add(&mut self, name: &str, need: Need) -> Result<(), Missing> {
        let name = normal(name);
        if self.modules.built_in.contains(&name) || !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.modules.files.get(&name) else {
            return if need == Need::Soft { Ok(()) } else { Err(Missing(name)) };
        };
        let bytes = (self.read)(path).map_err(|_| Missing(name.clone()))?;
        for (dependency, need) in dependencies(&bytes) {
            self.add(&dependency, need)?;
        }
        self.list.push((name, path.clone()));
        Ok(())
    }
}

fn dependencies(module: &[u8]) -> Vec<(String, Need)> {
    let strings = module.split(|byte| *byte == 0).filter_map(|string| std::str::from_utf8(string).ok());
    let list = strings.filter_map(|string| {
        let hard = string.strip_prefix("depends=").map(|names| (names, ',', Need::Hard));
        hard.or_else(|| string.strip_prefix("softdep=pre: ").map(|names| (names, ' ', Need::Soft)))
    });
    let names =
        list.flat_map(|(names, separator, need)| names.split(separator).map(move |name| (name, need)));
    names.filter(|(name, _)| !name.is_empty()).map(|(name, need)| (name.to_owned(), need)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel whose modules have the given `.modinfo` strings, and whose module `core` is built in.
    fn order(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>, Missing> {
        let files = modules.iter().map(|(name, _)| (normal(name), PathBuf::from(name))).collect();
        let kernel = Modules { files, built_in: BTreeSet::from(["core".to_owned()]) };
        let read = |path: &Path| {
            let (_, info) = modules.iter().find(|(name, _)| Path::new(name) == path).unwrap();
            Ok(format!("\x7fELF\0license=GPL\0{info}\0\0name=x\0").into_bytes())
        };
        Ok(kernel.in_order(wanted, read)?.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn every_module_comes_after_what_it_needs_and_once() {
        let modules = [
            ("virtio_net", "depends=virtio_ring,virtio,net_failover"),
            ("net_failover", "depends=failover"),
            ("failover", "depends="),
            ("virtio", "depends=virtio_ring"),
            ("virtio_ring", "depends="),
            ("virtio-rng", "depends=virtio,core"),
        ];
        let list = order(&modules, &["virtio_rng", "virtio_net", "core"]).unwrap();
        assert_eq!(list, ["virtio_ring", "virtio", "virtio_rng", "failover", "net_failover", "virtio_net"]);
    }

    #[test]
    fn a_missing_dependency_is_named_and_a_missing_soft_one_passed_over() {
        assert_eq!(order(&[("a", "depends=b")], &["a"]), Err(Missing("b".to_owned())));
        assert_eq!(order(&[("a", "softdep=pre: b core")], &["a"]).unwrap(), ["a"]);
        assert_eq!(order(&[("a", "softdep=pre: b"), ("b", "")], &["a"]).unwrap(), ["b", "a"]);
    }
}
