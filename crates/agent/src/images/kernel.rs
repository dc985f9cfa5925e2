//! The guests' kernel: Debian's, for clouds, unpacked from its package.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::modules::{Modules, WANTED};
use super::store::Store;
use super::tool::{Tool, retry};
use super::{ImageError, Progress, bzimage};

/// Depends on the newest kernel package of the host's Debian release.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

const APT_GET: Tool = Tool("apt-get", "apt");
const APT_CACHE: Tool = Tool("apt-cache", "apt");
const DPKG_DEB: Tool = Tool("dpkg-deb", "dpkg");

/// The uncompressed kernel, or the package's own where its compression is unknown.
const FILES: [&str; 2] = ["vmlinux", "bzImage"];

/// A kernel in a store.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) version: String,
    pub(super) dir: PathBuf,
    pub(super) file: PathBuf,
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// The kernel in `dir`, whose name is its version.
    fn at(dir: PathBuf) -> Option<Self> {
        let version = dir.file_name()?.to_str()?.to_owned();
        let file = FILES.map(|name| dir.join(name)).into_iter().find(|path| path.exists())?;
        let modules = dir.join("modules");
        modules.is_dir().then_some(Self { version, dir, file, modules })
    }
}

/// The newest kernel below `root`. Each was put there whole.
pub(super) fn newest(root: &Path) -> Option<Kernel> {
    let entries = fs::read_dir(root.join("kernels")).ok()?;
    let kernels = entries.filter_map(|entry| Kernel::at(entry.ok()?.path()));
    kernels.max_by_key(|kernel| numbers(&kernel.version))
}

/// `6.1.0-9` is older than `6.1.0-10`.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

/// The kernel in use: the newest one there is, or else a new one, made in the cache where there is one.
pub(super) fn ensure(store: &Store, cache: Option<&Store>, progress: Progress) -> Result<Kernel, ImageError> {
    if let Some(kernel) = newest(store.root()) {
        return Ok(kernel);
    }
    let Some(cache) = cache else { return make(store, progress) };
    let made = match newest(cache.root()) {
        Some(kernel) => kernel,
        None => make(cache, progress)?,
    };
    let dir = store.path("kernels").join(&made.version);
    store.take(&made.dir, &dir)?;
    found(dir)
}

fn found(dir: PathBuf) -> Result<Kernel, ImageError> {
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    Kernel::at(dir.clone()).ok_or_else(|| ImageError::io("find the kernel in", &dir, missing))
}

fn make(store: &Store, progress: Progress) -> Result<Kernel, ImageError> {
    let staging = store.staging()?;
    let package = download(staging.path(), progress)?;
    progress("unpacking the kernel");
    let unpacked = staging.path().join("package");
    DPKG_DEB.run(DPKG_DEB.command().arg("-x").args([&package, &unpacked]), &|_| {})?;
    let made = staging.path().join("kernel");
    let version = collect(&unpacked, &made).map_err(|error| match error {
        Collect::Io(source) => ImageError::io("read the kernel package in", &unpacked, source),
        Collect::Shape(reason) => ImageError::Kernel { package: META_PACKAGE.to_owned(), reason },
    })?;
    let dir = store.path("kernels").join(&version);
    store.publish(&made, &dir)?;
    found(dir)
}

/// Downloads the newest kernel package into `dir` and says where it is. Stale package lists are renewed.
fn download(dir: &Path, progress: Progress) -> Result<PathBuf, ImageError> {
    let mut update = false;
    retry(progress, || {
        if std::mem::replace(&mut update, true) {
            progress("renewing apt's package lists");
            APT_GET.run(APT_GET.command().args(["update", "-q"]), &|_| {})?;
        }
        let name = resolve()?;
        progress(&format!("downloading {name}"));
        // As root from the start: apt's own user may not enter this directory.
        let options = ["-q", "-o", "APT::Sandbox::User=root", "download"];
        APT_GET.run(APT_GET.command().args(options).arg(&name).current_dir(dir), &|_| {})?;
        let entries = fs::read_dir(dir).map_err(|source| ImageError::io("list", dir, source))?;
        let mut packages = entries.filter_map(|entry| Some(entry.ok()?.path()));
        packages.find(|path| path.extension().is_some_and(|extension| extension == "deb")).ok_or_else(|| {
            ImageError::Kernel { package: name, reason: "apt-get downloaded nothing".to_owned() }
        })
    })
}

/// The package that the meta package stands for.
fn resolve() -> Result<String, ImageError> {
    let text = APT_CACHE.run(APT_CACHE.command().args(["depends", META_PACKAGE]), &|_| {})?;
    let mut depends = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    depends.find(|name| name.starts_with("linux-image-")).map(str::to_owned).ok_or_else(|| ImageError::Tool {
        program: "apt-cache".to_owned(),
        status: "no answer".to_owned(),
        said: format!("{META_PACKAGE} depends on no kernel"),
    })
}

/// Why a package could not be used.
#[derive(Debug)]
enum Collect {
    Io(std::io::Error),
    Shape(String),
}

impl From<std::io::Error> for Collect {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// Puts the kernel and the modules of an unpacked package into `made`, and says which version they are.
fn collect(package: &Path, made: &Path) -> Result<String, Collect> {
    let (version, image) = fs::read_dir(package.join("boot"))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned(), path))
        })
        .next()
        .ok_or_else(|| Collect::Shape("it has no /boot/vmlinuz".to_owned()))?;
    let modules = made.join("modules");
    fs::create_dir_all(&modules)?;
    let bytes = fs::read(image)?;
    match bzimage::unpack(&bytes) {
        Some(kernel) => write(&made.join(FILES[0]), &kernel)?,
        None => write(&made.join(FILES[1]), &bytes)?,
    }
    let list = Modules::read(&package.join("lib/modules").join(&version))?
        .in_order(&WANTED, |path| fs::read(path))
        .map_err(|missing| Collect::Shape(missing.to_string()))?;
    for (index, (name, path)) in list.iter().enumerate() {
        write(&modules.join(format!("{index:02}-{name}.ko")), &fs::read(path)?)?;
    }
    for dir in [made, &modules] {
        fs::set_permissions(dir, Permissions::from_mode(0o755))?;
    }
    Ok(version)
}

fn write(path: &Path, content: &[u8]) -> std::io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o444))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_kernel_is_chosen_by_number_not_by_letter() {
        let root = tempfile::tempdir().unwrap();
        for (version, file) in
            [("6.1.0-9-cloud", "vmlinux"), ("6.1.0-10-cloud", "bzImage"), ("6.1.0-11-cloud", "x")]
        {
            let dir = root.path().join("kernels").join(version);
            fs::create_dir_all(dir.join("modules")).unwrap();
            fs::write(dir.join(file), "").unwrap();
        }
        let kernel = newest(root.path()).unwrap();
        assert_eq!(kernel.version, "6.1.0-10-cloud");
        assert!(kernel.file.ends_with("bzImage"));
        assert!(newest(Path::new("/nowhere")).is_none());
    }
}
