//! What the host says to the guest around a snapshot.
//!
//! Both are called by HTTP or, by a host in a hurry, as [datagrams](crate::datagram).
//!
//! `POST /prepare` comes before it: what processes wrote goes to the disk, and connections that nobody uses are closed.
//!
//! `POST /init` comes after every boot and every restore: it tells the guest who and when it is, for a clone wakes up
//! with another's clock, another's name and another's random numbers. A client waits for it, in a machine that may be
//! emulated and has run nothing yet: so what is right already is left alone, and nothing here starts a thread or writes
//! to the disk unless something changed.
//!
//! Two things it cannot do. Generators that processes keep in their own memory (a seeded library, a TLS session) go on
//! with the numbers that every clone has; only those who ask the kernel get new ones. And a process keeps the
//! environment that it was started with, its capsule's id included.
//!
//! A step of the clock disturbs no timer of the daemon: all of them are monotonic, and that clock stood still with the
//! machine.

use axum::body::Bytes;
use axum::extract::State;
use axum::{Extension, Json};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, Timespec};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wrenn_protocol::guest::{InitRequest, InitResponse};

use crate::connections::{Connections, Peer};
use crate::error::{Error, Kind, Result};
use crate::init::identity::Renamed;
use crate::init::{disk, identity};
use crate::settings::Settings;

/// Least randomness that is worth crediting, bytes.
const MIN_ENTROPY: usize = 32;
/// Most that is taken at once, bytes.
const MAX_ENTROPY: usize = 4096;

/// `RNDADDENTROPY` of linux/random.h.
const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
/// `RNDRESEEDCRNG` of linux/random.h.
const RNDRESEEDCRNG: libc::Ioctl = 0x5207;

/// What the two calls work on.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) settings: Settings,
    pub(crate) connections: Connections,
}

/// Ends idle conversations and writes everything back, in this order: the caller may have given up by the time that the
/// disk is done, and then nothing must change any more.
pub(super) async fn prepare(State(machine): State<Machine>) -> Result<StatusCode> {
    machine.connections.close_idle();
    let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
    synced.map_err(|error| Error::new(Kind::Internal, format!("the disk was not written back: {error}")))?;
    Ok(StatusCode::NO_CONTENT)
}

/// Applies what the request holds; an absent field leaves what was set before.
pub(super) async fn init(
    State(machine): State<Machine>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<InitResponse>> {
    let (response, renamed) = apply(&machine, parse(&body)?, Some(peer))?;
    if let Some(renamed) = renamed {
        renamed.write_files();
    }
    Ok(Json(response))
}

/// The work of `/init`, which came by the connection from `peer` if by any. What is left to do is to write the files of a
/// machine that was renamed.
pub(crate) fn apply(
    machine: &Machine,
    request: InitRequest,
    peer: Option<Peer>,
) -> Result<(InitResponse, Option<Renamed>)> {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let response = InitResponse { version: env!("CARGO_PKG_VERSION").to_owned(), kernel, datagrams: true };
    let mut restored = machine.settings.restored();
    let number = request.restore_number;
    if number.is_some() && *restored == number {
        // Whoever has connected since must not be cut off.
        catch_up(&request);
        return Ok((response, None));
    }
    let renamed = take_in(machine, request, peer)?;
    *restored = number.or(*restored);
    Ok((response, renamed))
}

/// Takes the time from another attempt of a restore whose news was taken in: the first may have waited for seconds in the
/// host's queue before the machine ran, and those that waited behind it are younger.
pub(crate) fn catch_up(request: &InitRequest) {
    let told = request.timestamp.as_deref().filter(|_| request.restored).map(parse_time);
    if let Some(Ok(time)) = told
        && time > OffsetDateTime::now_utc()
    {
        // It was possible a moment ago. A clock that stays behind is no reason to refuse the attempt.
        let _ = step_clock(time);
    }
}

fn take_in(
    Machine { settings, connections }: &Machine,
    request: InitRequest,
    peer: Option<Peer>,
) -> Result<Option<Renamed>> {
    let timestamp = request.timestamp.as_deref().map(parse_time).transpose()?;
    let entropy = request.entropy.as_deref().map(parse_entropy).transpose()?;
    if let Some(time) = timestamp {
        step_clock(time)?;
    }
    if let Some(entropy) = entropy {
        feed_entropy(&entropy)?;
    }
    if request.restored {
        connections.sever_others(peer);
    }
    if let Some(bytes) = request.disk_bytes {
        disk::grow_to(bytes);
    }
    let rename = |name: String| {
        identity::rename(&name).map_err(|error| Error::invalid(format!("hostname {name:?}: {error}")))
    };
    let renamed = request.hostname.map(rename).transpose()?.flatten();
    settings.update(|values| {
        if let Some(token) = request.access_token {
            values.token = Some(token).filter(|t| !t.is_empty()).or(values.token.take());
        }
        values.default_user = request.default_user.or(values.default_user.take());
        values.default_workdir = request.default_workdir.or(values.default_workdir.take());
        if let Some(env) = request.env_vars {
            values.env = env;
        }
    });
    Ok(renamed)
}

pub(crate) fn parse(body: &[u8]) -> Result<InitRequest> {
    if body.is_empty() {
        return Ok(InitRequest::default());
    }
    serde_json::from_slice(body).map_err(|e| Error::invalid(format!("the body does not parse: {e}")))
}

fn parse_time(text: &str) -> Result<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|e| Error::invalid(format!("timestamp {text:?} is not RFC 3339: {e}")))
}

fn parse_entropy(text: &str) -> Result<Vec<u8>> {
    let bytes = STANDARD.decode(text).map_err(|e| Error::invalid(format!("entropy is not base64: {e}")))?;
    if (MIN_ENTROPY..=MAX_ENTROPY).contains(&bytes.len()) {
        return Ok(bytes);
    }
    Err(Error::invalid(format!(
        "entropy must have {MIN_ENTROPY} to {MAX_ENTROPY} bytes, not {}",
        bytes.len()
    )))
}

fn step_clock(time: OffsetDateTime) -> Result<()> {
    let now = Timespec { tv_sec: time.unix_timestamp(), tv_nsec: i64::from(time.nanosecond()) };
    rustix::time::clock_settime(ClockId::Realtime, now).map_err(|errno| Error::path("clock", errno))
}

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct PoolInfo {
    entropy_bits: libc::c_int,
    size: libc::c_int,
    bytes: [u8; MAX_ENTROPY],
}

/// Credits `entropy` to the kernel's pool and has the generator take it up at once.
fn feed_entropy(entropy: &[u8]) -> Result<()> {
    let failed = |errno| Error::path("/dev/urandom", errno);
    let device =
        rustix::fs::open("/dev/urandom", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    let size = libc::c_int::try_from(entropy.len()).unwrap_or(0);
    let mut info = PoolInfo { entropy_bits: size * 8, size, bytes: [0; MAX_ENTROPY] };
    info.bytes[..entropy.len()].copy_from_slice(entropy);
    call(&device, RNDADDENTROPY, std::ptr::from_ref(&info).cast())?;
    call(&device, RNDRESEEDCRNG, std::ptr::null())
}

fn call(device: &std::os::fd::OwnedFd, request: libc::Ioctl, argument: *const libc::c_void) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: RNDADDENTROPY reads `size` bytes behind the header, which PoolInfo has; RNDRESEEDCRNG reads nothing.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, argument) };
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Error::new(Kind::Internal, format!("the random generator refused: {error}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_fields_are_refused_before_anything_is_applied() {
        assert!(parse(b"{").is_err());
        assert!(parse_time("yesterday").is_err());
        assert!(parse_time("2026-01-02T03:04:05.123456789Z").is_ok());
        assert!(parse_entropy("AAAA").is_err());
        assert_eq!(parse_entropy(&STANDARD.encode([7; 32])).unwrap(), [7; 32]);
    }

    #[test]
    fn an_empty_body_changes_nothing() {
        assert_eq!(parse(b"").unwrap(), InitRequest::default());
        assert_eq!(parse(b"{}").unwrap(), InitRequest::default());
    }
}
