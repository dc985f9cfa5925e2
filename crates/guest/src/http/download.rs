//! `GET /files`: the bytes of one regular file, all or a range.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom};
use std::os::fd::AsRawFd as _;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::Response;
use futures::stream;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{Mode, OFlags};
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
    let file = rustix::fs::open(same, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let etag = format!("\"{:x}-{:x}-{size:x}\"", stat.st_mtime, stat.st_mtime_nsec);
    Ok(Source { file: file.into(), size, etag })
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
        let chunk: std::io::Result<Bytes> = receiver.recv().await?;
        Some((chunk, receiver))
    }))
}

fn read(mut file: File, start: u64, length: u64, chunks: &mpsc::Sender<std::io::Result<Bytes>>) {
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

fn read_chunk(file: &mut File, wanted: u64) -> std::io::Result<Bytes> {
    let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or(CHUNK));
    file.take(wanted).read_to_end(&mut chunk)?;
    if (chunk.len() as u64) < wanted {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(chunk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

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
