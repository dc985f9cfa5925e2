//! Watches directories through inotify.
//!
//! The kernel watches single directories, so a recursive watch is one per directory, and directories made later are
//! added when their creation is seen. What was put into a new directory before its watch stood is found by looking
//! into it and told as created; the kernel's own notice of the same creation, if it comes too, is dropped.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use wrenn_protocol::filesystem::{EventType, FilesystemEvent};

use super::entry::describe;
use crate::accounts::Names;
use crate::error::{Error, Kind, Result};
use crate::paths;

/// Events kept for a reader that does not come; the oldest go first.
const MAX_QUEUED: usize = 65_536;

/// Room for some hundred raw events.
const BUFFER_BYTES: usize = 32 * 1024;

/// File systems that live on another machine or in another program: they do not report what happens there.
const NETWORK_MAGIC: [u64; 6] = [0x6969, 0x517B, 0xFE53_4D42, 0xFF53_4D42, 0x6573_5546, 0x0102_1997];

/// What a watch is asked to do.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Directory to watch, absolute.
    pub(super) path: String,
    /// Whether everything below counts too.
    pub(super) recursive: bool,
    /// Whether events describe their file.
    pub(super) include_entry: bool,
    /// Whether a network file system is acceptable.
    pub(super) allow_network_mounts: bool,
}

/// A standing watch and the events not yet taken.
#[derive(Debug)]
pub(super) struct Watch {
    options: Options,
    inotify: Arc<AsyncFd<OwnedFd>>,
    directories: HashMap<i32, String>,
    already_told: HashSet<String>,
    queue: VecDeque<FilesystemEvent>,
}

impl Watch {
    /// Sets the watch up. Blocks while the tree is walked; needs the runtime's context.
    pub(super) fn new(options: Options) -> Result<Self> {
        let metadata = std::fs::metadata(&options.path).map_err(|e| Error::io(&options.path, &e))?;
        if !metadata.is_dir() {
            return Err(Error::invalid(format!("{}: not a directory", options.path)));
        }
        if !options.allow_network_mounts && is_network(&options.path)? {
            let text = format!("{}: on a network file system, which reports no changes", options.path);
            return Err(Error::invalid(text));
        }
        let failed = |e: io::Error| Error::new(Kind::Internal, format!("no watch can be set up: {e}"));
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(|errno| failed(errno.into()))?;
        // SAFETY: an OwnedFd is open and the same until it is dropped, which the AsyncFd does.
        let inotify = unsafe { AsyncFd::register(inotify) }.map_err(|e| failed(e.into()))?;
        let inotify = Arc::new(inotify);
        let mut watch = Self {
            options,
            inotify,
            directories: HashMap::new(),
            already_told: HashSet::new(),
            queue: VecDeque::new(),
        };
        watch.add("").map_err(|errno| Error::path(&watch.options.path, errno))?;
        if watch.options.recursive {
            watch.add_below("", false);
        }
        Ok(watch)
    }

    /// The next event, waiting for it.
    pub(super) async fn next(&mut self) -> io::Result<FilesystemEvent> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            self.inotify.readable().await?.clear_ready();
            self.drain();
        }
    }

    /// The descriptor that tells when to [`drain`](Self::drain).
    pub(super) fn readiness(&self) -> Arc<AsyncFd<OwnedFd>> {
        Arc::clone(&self.inotify)
    }

    /// Everything that has happened up to now and was not taken yet.
    pub(super) fn take(&mut self) -> Vec<FilesystemEvent> {
        self.drain();
        self.queue.drain(..).collect()
    }

    /// Reads the kernel's queue empty.
    pub(super) fn drain(&mut self) {
        for (directory, flags, name) in self.read_raw() {
            self.translate(&directory, flags, &name);
        }
    }

    fn read_raw(&mut self) -> Vec<(String, ReadFlags, String)> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER_BYTES];
        let mut reader = inotify::Reader::new(&*self.inotify, &mut buffer);
        let mut raw = Vec::new();
        // The descriptor does not block: any error, above all that there is nothing more, ends the reading.
        while let Ok(event) = reader.next() {
            if event.events().contains(ReadFlags::IGNORED) {
                self.directories.remove(&event.wd());
                continue;
            }
            let Some(directory) = self.directories.get(&event.wd()) else { continue };
            if let Some(name) = event.file_name() {
                let name = OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned();
                raw.push((directory.clone(), event.events(), name));
            }
        }
        raw
    }

    fn translate(&mut self, directory: &str, flags: ReadFlags, name: &str) {
        let relative = if directory.is_empty() { name.to_owned() } else { paths::join(directory, name) };
        let created = flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if created && !self.already_told.remove(&relative) {
            self.tell(&relative, EventType::EVENT_TYPE_CREATE);
        }
        for (flag, event) in [
            (ReadFlags::MODIFY, EventType::EVENT_TYPE_WRITE),
            (ReadFlags::DELETE, EventType::EVENT_TYPE_REMOVE),
            (ReadFlags::MOVED_FROM, EventType::EVENT_TYPE_RENAME),
            (ReadFlags::ATTRIB, EventType::EVENT_TYPE_CHMOD),
        ] {
            if flags.contains(flag) {
                self.tell(&relative, event);
            }
        }
        if created
            && self.options.recursive
            && flags.contains(ReadFlags::ISDIR)
            && self.add(&relative).is_ok()
        {
            self.add_below(&relative, true);
        }
    }

    fn tell(&mut self, relative: &str, event: EventType) {
        let describes = !matches!(event, EventType::EVENT_TYPE_REMOVE | EventType::EVENT_TYPE_RENAME);
        let entry = (self.options.include_entry && describes)
            .then(|| self.absolute(relative))
            .and_then(|path| describe(&path, &path, &Names::load()).ok());
        if self.queue.len() == MAX_QUEUED {
            self.queue.pop_front();
        }
        self.queue.push_back(FilesystemEvent {
            name: relative.to_owned(),
            r#type: event.into(),
            entry: entry.into(),
            ..FilesystemEvent::default()
        });
    }

    fn add(&mut self, relative: &str) -> Result<(), Errno> {
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::MODIFY
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::ONLYDIR;
        let descriptor = inotify::add_watch(&*self.inotify, self.absolute(relative), flags)?;
        self.directories.insert(descriptor, relative.to_owned());
        Ok(())
    }

    /// Watches every directory below `relative`; `tell` reports what is there as just created. Directories that
    /// cannot be watched (gone, or the kernel's limit) are left out.
    fn add_below(&mut self, relative: &str, tell: bool) {
        let Ok(listing) = std::fs::read_dir(self.absolute(relative)) else { return };
        for entry in listing.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if relative.is_empty() { name } else { paths::join(relative, &name) };
            let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
            let watched = !is_dir || self.add(&path).is_ok();
            if tell {
                self.already_told.insert(path.clone());
                self.tell(&path, EventType::EVENT_TYPE_CREATE);
            }
            if is_dir && watched {
                self.add_below(&path, tell);
            }
        }
    }

    fn absolute(&self, relative: &str) -> String {
        if relative.is_empty() {
            self.options.path.clone()
        } else {
            paths::join(&self.options.path, relative)
        }
    }
}

fn is_network(path: &str) -> Result<bool> {
    let statistics = rustix::fs::statfs(path).map_err(|errno| Error::path(path, errno))?;
    Ok(NETWORK_MAGIC.contains(&u64::try_from(statistics.f_type).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(path: &str, recursive: bool) -> Watch {
        let path = path.to_owned();
        Watch::new(Options { path, recursive, include_entry: true, allow_network_mounts: false }).unwrap()
    }

    fn told(watch: &mut Watch) -> Vec<(String, EventType)> {
        watch.take().into_iter().map(|e| (e.name, e.r#type.as_known().unwrap())).collect()
    }

    #[tokio::test]
    async fn a_new_file_is_created_then_written_and_described() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = watch(directory.path().to_str().unwrap(), false);
        std::fs::write(directory.path().join("f"), "x").unwrap();
        let events = watch.take();
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].entry.as_option().unwrap().name, "f");
        assert!(watch.take().is_empty());
    }

    #[tokio::test]
    async fn directories_made_later_are_watched_and_nothing_is_told_twice() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = watch(directory.path().to_str().unwrap(), true);
        std::fs::create_dir_all(directory.path().join("a/b")).unwrap();
        std::fs::write(directory.path().join("a/b/early"), "").unwrap();
        let created = |name: &str| (name.to_owned(), EventType::EVENT_TYPE_CREATE);
        assert_eq!(told(&mut watch), [created("a"), created("a/b"), created("a/b/early")]);
        std::fs::write(directory.path().join("a/b/late"), "").unwrap();
        std::fs::rename(directory.path().join("a/b/late"), directory.path().join("a/moved")).unwrap();
        std::fs::remove_file(directory.path().join("a/moved")).unwrap();
        let events = told(&mut watch);
        assert_eq!(
            events,
            [
                created("a/b/late"),
                ("a/b/late".into(), EventType::EVENT_TYPE_RENAME),
                created("a/moved"),
                ("a/moved".into(), EventType::EVENT_TYPE_REMOVE),
            ]
        );
    }

    #[test]
    fn only_directories_can_be_watched() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let options = Options { path, recursive: false, include_entry: false, allow_network_mounts: false };
        assert_eq!(Watch::new(options.clone()).unwrap_err().kind(), Kind::Invalid);
        let gone = Options { path: "/no/such/place".into(), ..options };
        assert_eq!(Watch::new(gone).unwrap_err().kind(), Kind::NotFound);
    }
}
