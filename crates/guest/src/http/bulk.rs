//! Whole files without the HTTP library.
//!
//! Where every copied byte costs (a guest under software emulation), the way through an asynchronous HTTP library is
//! half as fast as the network: pieces are allocated, handed from thread to thread and copied once more. So each
//! connection is looked at before it is given to the library: as long as its next request is a plain download or
//! upload of one file, one blocking thread serves it, from page cache to socket (`sendfile`) or from socket to disk
//! through one buffer, past the page cache where the file is large. Rights, paths and answers are those of the ordinary routes.
//!
//! The first request that is anything else is left unread, and the connection goes to the library for good.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream as Connection;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use axum::extract::Query;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::FilesQuery;
use super::body::{Body, Framing};
use super::download::{Span, prepare};
use super::pages::{HUGE_PAGE, Pages};
use super::upload::{Plan, content_type, is_gzip};
use super::writer::{PAGE, Target, Writer, bypass_cache};
use crate::auth;
use crate::error::{Error, Kind, Result};
use crate::settings::Settings;

/// Transfers at once; each holds two threads and a few MiB. Further ones go through the library.
const MAX_TRANSFERS: usize = 8;
/// Longest request head looked at, bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Most header fields looked at.
const MAX_FIELDS: usize = 64;
/// Bytes of an upload written at once. Small enough to stay in the CPU's cache.
const BUFFER: usize = 256 * 1024;
/// Beginning of an upload that stays in the page cache, bytes; what comes after it goes straight to the disk.
const SMALL: usize = 4 * 1024 * 1024;
/// Smallest download that may pass the page cache by, bytes.
const DIRECT: u64 = 4 * 1024 * 1024;
/// A peer that is silent in the middle of a transfer is given up on.
const STALL: Duration = Duration::from_secs(600);

/// Serves whole files on new connections.
#[derive(Debug, Clone)]
pub(crate) struct Bulk {
    settings: Settings,
    transfers: Arc<Semaphore>,
    idle: Duration,
}

/// The head of a request that is served here.
#[derive(Debug)]
struct Head {
    /// Bytes of the head itself.
    length: usize,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    framing: Framing,
}

/// What becomes of the connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    Close,
}

impl Bulk {
    /// Serves with these settings, on connections that stay silent for at most `idle`.
    pub(crate) fn new(settings: Settings, idle: Duration) -> Self {
        Self { settings, transfers: Arc::new(Semaphore::new(MAX_TRANSFERS)), idle }
    }

    /// Serves downloads and uploads until another request comes, and returns the connection with that one unread.
    pub(crate) async fn serve(&self, mut stream: TcpStream) -> Option<TcpStream> {
        loop {
            let mut buffer = [0; MAX_HEAD];
            let peeked = tokio::time::timeout(self.idle, stream.peek(&mut buffer)).await.ok()?.ok()?;
            if peeked == 0 {
                return None;
            }
            let Some(head) = Head::parse(&buffer[..peeked]) else { return Some(stream) };
            let Ok(permit) = Arc::clone(&self.transfers).try_acquire_owned() else { return Some(stream) };
            let connection = stream.into_std().ok()?;
            let settings = self.settings.clone();
            let served = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                transfer(connection, &head, &settings)
            });
            // A broken connection is the peer's matter; there is nobody left to tell.
            stream = TcpStream::from_std(served.await.ok()?.ok()??).ok()?;
        }
    }
}

impl Head {
    /// `None` for everything that is not a complete, plain request for one file.
    fn parse(bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(b"GET /files?") && !bytes.starts_with(b"POST /files?") {
            return None;
        }
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if request.version == Some(1) => length,
            _ => return None,
        };
        let mut headers = HeaderMap::with_capacity(request.headers.len());
        for field in request.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
        }
        let method = Method::from_bytes(request.method?.as_bytes()).ok()?;
        let framing = plain_body(&method, &headers)?;
        Some(Self { length, method, uri: request.path?.parse().ok()?, headers, framing })
    }

    fn closes(&self) -> After {
        let close = self.headers.get_all(header::CONNECTION).iter().any(|value| {
            value
                .to_str()
                .is_ok_and(|tokens| tokens.split(',').any(|t| t.trim().eq_ignore_ascii_case("close")))
        });
        if close { After::Close } else { After::Keep }
    }

    fn query(&self) -> Result<FilesQuery> {
        let query = Query::try_from_uri(&self.uri);
        query.map(|Query(query)| query).map_err(|e| Error::invalid(format!("the query does not parse: {e}")))
    }
}

/// How the body comes, if it is one that can be taken as it is.
fn plain_body(method: &Method, headers: &HeaderMap) -> Option<Framing> {
    if headers.contains_key(header::EXPECT) || headers.contains_key(header::UPGRADE) {
        return None;
    }
    let framing = framing(headers)?;
    match *method {
        Method::GET => (framing == Framing::Length(0)).then_some(framing),
        Method::POST => takes_as_is(headers).then_some(framing),
        _ => None,
    }
}

/// A request that says it in two ways may mean something else to somebody in between: it is left to the library.
fn framing(headers: &HeaderMap) -> Option<Framing> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (lengths.next(), lengths.next(), codings.next(), codings.next()) {
        (None, None, None, None) => Some(Framing::Length(0)),
        (Some(length), None, None, None) => Some(Framing::Length(length.to_str().ok()?.parse().ok()?)),
        (None, None, Some(coding), None) => (coding == "chunked").then_some(Framing::Chunked),
        _ => None,
    }
}

fn takes_as_is(headers: &HeaderMap) -> bool {
    content_type(headers) == "application/octet-stream" && matches!(is_gzip(headers), Ok(false))
}

/// Serves one request; the connection comes back if it can serve another.
fn transfer(mut connection: Connection, head: &Head, settings: &Settings) -> io::Result<Option<Connection>> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(STALL))?;
    connection.set_write_timeout(Some(STALL))?;
    connection.read_exact(&mut vec![0; head.length])?;
    let admitted = auth::admit(&settings.get(), &head.method, head.uri.path(), &head.headers);
    let after = if head.method == Method::GET {
        download(&mut connection, head, admitted, settings)?;
        head.closes()
    } else {
        upload(&mut connection, head, admitted, settings)?
    };
    if after == After::Close {
        return Ok(None);
    }
    connection.set_nonblocking(true)?;
    Ok(Some(connection))
}

fn download(
    connection: &mut Connection,
    head: &Head,
    admitted: Result<()>,
    settings: &Settings,
) -> io::Result<()> {
    match admitted.and_then(|()| prepare(settings, &head.query()?, &head.headers)) {
        Ok(answer) => send_file(connection, head, answer),
        Err(error) => refuse(connection, head, &error),
    }
}

fn upload(
    connection: &mut Connection,
    head: &Head,
    admitted: Result<()>,
    settings: &Settings,
) -> io::Result<After> {
    let mut body = Body::new(&*connection, head.framing);
    let uploaded = admitted.and_then(|()| receive(&mut body, head, settings));
    // What is left of a refused body has to go, or the client would see a broken connection and no answer.
    let discarded = body.discard();
    let after = if body.is_exhausted() && discarded.is_ok() { head.closes() } else { After::Close };
    drop(body);
    match uploaded {
        Ok(answer) => send_text(connection, head, StatusCode::OK, &answer)?,
        Err(error) => refuse(connection, head, &error)?,
    }
    Ok(after)
}

fn send_file(connection: &mut Connection, head: &Head, answer: Response<Option<Span>>) -> io::Result<()> {
    let (parts, span) = answer.into_parts();
    connection.write_all(&head_bytes(head, parts.status, &parts.headers))?;
    let Some(Span { file, start, length }) = span else { return Ok(()) };
    let direct = if length >= DIRECT { Some(Pages::new()) } else { None };
    Sender { connection, file, offset: start, end: start + length, direct }.run()
}

/// A file on its way out.
struct Sender<'a> {
    connection: &'a mut Connection,
    file: File,
    offset: u64,
    end: u64,
    /// Where pages are read to past the page cache; `None` where that does not pay or does not work.
    direct: Option<Pages>,
}

impl Sender<'_> {
    /// Sends what is in memory from there and the rest from the disk: filling the page cache would cost more than the
    /// sending.
    fn run(mut self) -> io::Result<()> {
        while self.offset < self.end {
            let whole = self.end - self.offset >= HUGE_PAGE as u64 && self.offset.is_multiple_of(PAGE as u64);
            match self.direct.take() {
                Some(pages) if whole && !self.is_cached() => self.send_uncached(pages)?,
                direct => {
                    self.direct = direct;
                    self.send_cached()?;
                }
            }
        }
        Ok(())
    }

    fn send_cached(&mut self) -> io::Result<()> {
        let wanted = usize::try_from(self.end - self.offset).map_or(HUGE_PAGE, |left| left.min(HUGE_PAGE));
        // A file that shrinks breaks the connection, for the promised length cannot be kept.
        match rustix::fs::sendfile(&*self.connection, &self.file, Some(&mut self.offset), wanted)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Keeps the pages for the next time if the file system can be read so.
    fn send_uncached(&mut self, mut pages: Pages) -> io::Result<()> {
        if !bypass_cache(&self.file, true) {
            return Ok(());
        }
        let read = rustix::io::pread(&self.file, pages.bytes(), self.offset);
        bypass_cache(&self.file, false);
        match read {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                self.connection.write_all(&pages.bytes()[..read])?;
                self.offset += read as u64;
            }
            // The file system takes the flag and not this alignment.
            Err(Errno::INVAL) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.direct = Some(pages);
        Ok(())
    }

    /// Whether the next byte is in memory.
    fn is_cached(&self) -> bool {
        let mut byte = [0];
        let mut buffers = [io::IoSliceMut::new(&mut byte)];
        rustix::io::preadv2(&self.file, &mut buffers, self.offset, ReadWriteFlags::NOWAIT).is_ok()
    }
}

fn receive(body: &mut Body<&Connection>, head: &Head, settings: &Settings) -> Result<String> {
    let target = Plan::new(settings, head.query()?, &head.headers)?.only_target(false)?;
    let mut writer = target.open()?;
    let mut buffer = vec![0; head.framing.length().map_or(BUFFER, |length| length.min(BUFFER))];
    for _ in 0..SMALL / BUFFER {
        let filled = body.fill(&mut buffer).map_err(broke_off)?;
        writer.write(&buffer[..filled])?;
        if filled < BUFFER {
            return answer(writer, &target);
        }
    }
    drop(buffer);
    answer(pipeline(body, writer)?, &target)
}

fn answer(writer: Writer, target: &Target) -> Result<String> {
    writer.finish()?;
    serde_json::to_string(&[target.uploaded()])
        .map_err(|e| Error::invalid(format!("the answer cannot be written: {e}")))
}

/// Writes one buffer while the next is being filled: the disk and the network are both waited for.
fn pipeline(body: &mut Body<&Connection>, mut writer: Writer) -> Result<Writer> {
    let (full, to_write) = mpsc::sync_channel::<(Pages, usize)>(0);
    let (empty, to_fill) = mpsc::sync_channel(2);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            for (mut pages, filled) in to_write {
                writer.write_pages(&pages.bytes()[..filled])?;
                // Nobody fills any more once the last one is here.
                let _ = empty.send(pages);
            }
            Ok(writer)
        });
        let mut fresh = vec![Pages::new(), Pages::new()];
        let received = loop {
            // A writer that has ended says why below.
            let Some(mut pages) = fresh.pop().or_else(|| to_fill.recv().ok()) else { break Ok(()) };
            match body.fill(pages.bytes()) {
                Ok(filled) if full.send((pages, filled)).is_err() || filled < HUGE_PAGE => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(broke_off(error)),
            }
        };
        drop(full);
        let written =
            writing.join().unwrap_or_else(|_| Err(Error::new(Kind::Internal, "the writing was interrupted")));
        received.and(written)
    })
}

fn broke_off(error: io::Error) -> Error {
    Error::invalid(format!("the body broke off: {error}"))
}

fn send_text(connection: &mut Connection, head: &Head, status: StatusCode, json: &str) -> io::Result<()> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_LENGTH, json.len().into());
    let mut answer = head_bytes(head, status, &headers);
    answer.extend_from_slice(json.as_bytes());
    connection.write_all(&answer)
}

fn refuse(connection: &mut Connection, head: &Head, error: &Error) -> io::Result<()> {
    let text = serde_json::to_string(&error.body()).unwrap_or_default();
    send_text(connection, head, error.status(), &text)
}

fn head_bytes(head: &Head, status: StatusCode, headers: &HeaderMap) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 {status}\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    if head.closes() == After::Close {
        bytes.extend_from_slice(b"connection: close\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(fields: &str) -> Option<Head> {
        Head::parse(format!("{fields}\r\n\r\n").as_bytes())
    }

    #[test]
    fn whole_files_are_served_here() {
        let head = parsed("GET /files?path=/a HTTP/1.1\r\nHost: x\r\nRange: bytes=0-1").unwrap();
        assert_eq!((head.method.as_str(), head.framing), ("GET", Framing::Length(0)));
        assert_eq!(head.query().unwrap().path.as_deref(), Some("/a"));
        let upload = "POST /files?path=/a HTTP/1.1\r\nContent-Type: application/octet-stream";
        let framing = |field: &str| parsed(&format!("{upload}\r\n{field}")).unwrap().framing;
        assert_eq!(framing("Content-Length: 7"), Framing::Length(7));
        assert_eq!(framing("Transfer-Encoding: chunked"), Framing::Chunked);
    }

    #[test]
    fn everything_else_is_left_to_the_library() {
        let octets = "POST /files?path=/a HTTP/1.1\r\ncontent-type: application/octet-stream\r\n";
        for other in [
            "GET /health HTTP/1.1".to_owned(),
            "GET /files HTTP/1.1".to_owned(),
            "GET /files?path=/a HTTP/1.0".to_owned(),
            "GET /files?path=/a HTTP/1.1\r\nupgrade: x".to_owned(),
            "POST /files?path=/a HTTP/1.1\r\ncontent-type: multipart/form-data\r\ncontent-length: 7"
                .to_owned(),
            format!("{octets}transfer-encoding: gzip, chunked"),
            format!("{octets}transfer-encoding: chunked\r\ncontent-length: 7"),
            format!("{octets}content-length: 7\r\ncontent-length: 8"),
            format!("{octets}content-length: 7\r\ncontent-encoding: gzip"),
            format!("{octets}content-length: 7\r\nexpect: 100-continue"),
        ] {
            assert!(parsed(&other).is_none(), "{other}");
        }
        assert!(Head::parse(b"GET /files?path=/a HTTP/1.1\r\nhost:").is_none());
        assert!(Head::parse(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").is_none());
    }

    #[test]
    fn a_closing_request_is_answered_as_one() {
        let head = parsed("GET /files?path=/a HTTP/1.1\r\nConnection: Keep-Alive, Close").unwrap();
        assert_eq!(head.closes(), After::Close);
        let bytes = head_bytes(&head, StatusCode::OK, &HeaderMap::new());
        assert_eq!(bytes, b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
    }
}
