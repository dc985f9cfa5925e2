//! `GET /files`: the bytes of one regular file, all or a range.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _};

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::Response;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{MemfdFlags, Mode, OFlags, Stat};
use tokio::sync::mpsc;

use super::FilesQuery;
use super::writer::must_be_file;
use crate::error::{Error, Kind, Result};
use crate::paths;
use crate::settings::Settings;

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// Chunks read ahead of the network.
const AHEAD: usize = 1;

/// Most that a generated file may hold, bytes; its content is kept in memory.
const MAX_GENERATED: u64 = 64 * 1024 * 1024;

/// File systems whose files tell a size that is not that of their content, by their magic numbers: proc and sysfs.
const GENERATED: [u64; 2] = [0x9fa0, 0x6265_6572];

/// A file that was found fit to be read.
struct Source {
    file: File,
    size: u64,
    etag: String,
}

/// Bytes of an open file.
#[derive(Debug)]
pub(super) struct Span {
    /// The file.
    pub(super) file: File,
    /// Where the bytes begin.
    pub(super) start: u64,
    /// How many they are.
    pub(super) length: u64,
}

/// What part of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Whole,
    Range { start: u64, length: u64 },
    Impossible,
}

/// Sends the file. Reads as root.
pub(super) async fn download(
    State(settings): State<Settings>,
    Query(query): Query<FilesQuery>,
    headers: HeaderMap,
) -> Result<Response> {
    let prepared = tokio::task::spawn_blocking(move || prepare(&settings, &query, &headers))
        .await
        .map_err(|e| Error::new(Kind::Internal, format!("the opening was interrupted: {e}")))??;
    Ok(prepared.map(|span| span.map_or_else(Body::empty, send)))
}

/// The answer to a request for a file, with the bytes still in the file. Blocks.
pub(super) fn prepare(
    settings: &Settings,
    query: &FilesQuery,
    headers: &HeaderMap,
) -> Result<http::Response<Option<Span>>> {
    let values = settings.get();
    let user = query.authorise("read", &values, headers)?;
    let given = query.path.as_deref().filter(|path| !path.is_empty());
    let given = given.ok_or_else(|| Error::invalid("the query names no path to read"))?;
    let path = paths::resolve(given, &user, values.default_workdir.as_deref())?;
    let source = open(&path)?;
    Ok(answer(source, &path, headers))
}

fn answer(source: Source, path: &str, headers: &HeaderMap) -> http::Response<Option<Span>> {
    let size = source.size;
    let (status, range, span) = match wanted(&source, headers) {
        None => (StatusCode::NOT_MODIFIED, None, None),
        Some(Part::Impossible) => {
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(format!("bytes */{size}")), Some((0, 0)))
        }
        Some(Part::Whole) => (StatusCode::OK, None, Some((0, size))),
        Some(Part::Range { start, length }) => {
            let range = format!("bytes {start}-{}/{size}", start + length - 1);
            (StatusCode::PARTIAL_CONTENT, Some(range), Some((start, length)))
        }
    };
    let mut response = http::Response::new(None);
    *response.status_mut() = status;
    if let Some((start, length)) = span {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
        *response.body_mut() = Some(Span { file: source.file, start, length });
    }
    let name = utf8_percent_encode(paths::name(path), NON_ALPHANUMERIC);
    let fixed = response.headers_mut();
    fixed.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    fixed.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    fixed.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    for (field, text) in [
        (header::CONTENT_DISPOSITION, format!("inline; filename*=utf-8''{name}")),
        (header::ETAG, source.etag),
        (header::CONTENT_RANGE, range.unwrap_or_default()),
    ] {
        if let Some(value) = HeaderValue::try_from(text).ok().filter(|value| !value.is_empty()) {
            fixed.insert(field, value);
        }
    }
    response
}

/// Finds out what a path is before opening it: opening a FIFO or a device has effects.
fn open(path: &str) -> Result<Source> {
    let failed = |errno| Error::path(path, errno);
    let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let stat = must_be_file(&found, path)?;
    let same = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(same, flags, Mode::empty()).map_err(failed)?);
    let (file, size) = if is_generated(&found, &stat) {
        generate(file, path)?
    } else {
        (file, u64::try_from(stat.st_size).unwrap_or(0))
    };
    let etag = format!("\"{:x}-{:x}-{size:x}\"", stat.st_mtime, stat.st_mtime_nsec);
    Ok(Source { file, size, etag })
}

/// Whether the kernel makes up the content when it is read. Such files are empty by their size, or lie about it.
fn is_generated(found: impl AsFd, stat: &Stat) -> bool {
    stat.st_size == 0
        || rustix::fs::fstatfs(found)
            .is_ok_and(|system| u64::try_from(system.f_type).is_ok_and(|magic| GENERATED.contains(&magic)))
}

/// Reads a generated file at once, for only then its size is known: the content in a file without a name.
fn generate(file: File, path: &str) -> Result<(File, u64)> {
    let content = rustix::fs::memfd_create("content", MemfdFlags::CLOEXEC);
    let mut content = File::from(content.map_err(|errno| Error::path(path, errno))?);
    let copied = io::copy(&mut file.take(MAX_GENERATED + 1), &mut content);
    let size = match copied.and_then(|_| content.stream_position()) {
        // A log that says more only later.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => content.stream_position(),
        size => size,
    }
    .and_then(|size| content.rewind().map(|()| size))
    .map_err(|error| Error::io(path, &error))?;
    if size > MAX_GENERATED {
        let most = MAX_GENERATED / (1024 * 1024);
        return Err(Error::new(Kind::TooMuch, format!("{path}: more than {most} MiB are generated here")));
    }
    Ok((content, size))
}

/// `None` when the client has this very content already.
fn wanted(source: &Source, headers: &HeaderMap) -> Option<Part> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let matches =
        |tags: &str| tags.split(',').any(|tag| matches!(tag.trim(), t if t == "*" || t == source.etag));
    if text(header::IF_NONE_MATCH).is_some_and(matches) {
        return None;
    }
    let stale = text(header::IF_RANGE).is_some_and(|tag| tag != source.etag);
    Some(match text(header::RANGE) {
        Some(range) if !stale => part(range, source.size),
        _ => Part::Whole,
    })
}

/// Reads `bytes=a-b`, `bytes=a-` and `bytes=-n`. Anything else, several ranges included, is answered with everything,
/// which the client has to be ready for.
fn part(range: &str, size: u64) -> Part {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Part::Whole;
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
        (Ok(start), Err(_)) if last.is_empty() => (start, size),
        (Err(_), Ok(suffix)) if first.is_empty() => (size.saturating_sub(suffix), size),
        _ => return Part::Whole,
    };
    if start >= end {
        return Part::Impossible;
    }
    Part::Range { start, length: end - start }
}

/// A body read by one blocking thread, a chunk ahead of the network. A file that shrinks meanwhile breaks the
/// connection, for the promised length cannot be kept.
fn send(Span { file, start, length }: Span) -> Body {
    if length == 0 {
        return Body::empty();
    }
    let (sender, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || read(file, start, length, &sender));
    Body::from_stream(stream::unfold(receiver, |mut receiver| async {
        let chunk: io::Result<Bytes> = receiver.recv().await?;
        Some((chunk, receiver))
    }))
}

fn read(mut file: File, start: u64, length: u64, chunks: &mpsc::Sender<io::Result<Bytes>>) {
    if start > 0
        && let Err(error) = file.seek(SeekFrom::Start(start))
    {
        // A reader that has left does not need to hear of the error.
        let _ = chunks.blocking_send(Err(error));
        return;
    }
    let mut left = length;
    while left > 0 {
        let wanted = left.min(CHUNK as u64);
        let chunk = read_chunk(&mut file, wanted);
        left -= wanted;
        let failed = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}

fn read_chunk(file: &mut File, wanted: u64) -> io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or(CHUNK));
    file.take(wanted).read_to_end(&mut chunk)?;
    if (chunk.len() as u64) < wanted {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(chunk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_files_are_read_although_they_seem_empty() {
        let mut source = open("/proc/version").unwrap();
        let mut text = String::new();
        source.file.read_to_string(&mut text).unwrap();
        assert_eq!(text, std::fs::read_to_string("/proc/version").unwrap());
        assert_eq!(source.size, text.len() as u64);
        let found = std::fs::read("/sys/kernel/mm/transparent_hugepage/enabled");
        if let Ok(content) = found {
            let source = open("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
            assert_eq!(source.size, content.len() as u64);
        }
    }

    #[test]
    fn ranges_are_read_as_http_defines_them() {
        assert_eq!(part("bytes=0-3", 10), Part::Range { start: 0, length: 4 });
        assert_eq!(part("bytes=4-", 10), Part::Range { start: 4, length: 6 });
        assert_eq!(part("bytes=-3", 10), Part::Range { start: 7, length: 3 });
        assert_eq!(part("bytes=2-99", 10), Part::Range { start: 2, length: 8 });
        assert_eq!(part("bytes=10-", 10), Part::Impossible);
        assert_eq!(part("bytes=-5", 0), Part::Impossible);
        for odd in ["bytes=5-2", "bytes=a-b", "bytes=0-1,4-5", "lines=1-2", "bytes=-"] {
            assert_eq!(part(odd, 10), Part::Whole, "{odd}");
        }
    }
}
