//! The two calls of the host as datagrams: see [`wrenn_protocol::datagram`].
//!
//! A thread of its own serves them with blocking calls: between a restored machine and its first answer lies as little
//! code as can be.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use wrenn_protocol::datagram::{Answer, Call, MAX_BYTES, Operation};

use crate::error::{Error, Kind, Result};
use crate::http::configure::{self, Machine};
use crate::init::identity::Renamed;

/// Pause after the socket failed, which it does for want of memory at most.
const BREATH: Duration = Duration::from_millis(50);

/// How long after a restore the next pause is rehearsed: the first commands of whoever has waited for the machine are over.
const UNTIL_REHEARSAL: Duration = Duration::from_millis(500);

/// Serves at `address` until the process ends.
pub(crate) fn serve(address: SocketAddr, machine: Machine) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let serve = move || Server { socket: Arc::new(socket), machine, last: None, prepared: None }.run();
    std::thread::Builder::new().name("datagrams".into()).spawn(serve)?;
    Ok(())
}

struct Server {
    socket: Arc<UdpSocket>,
    machine: Machine,
    /// The last `init` that was done, and how it was answered.
    last: Option<(u64, Vec<u8>)>,
    /// The last `prepare`, and whether it is done.
    prepared: Option<(u64, Arc<AtomicBool>)>,
}

impl Server {
    fn run(mut self) {
        let mut buffer = vec![0; MAX_BYTES];
        loop {
            let Ok((length, peer)) = self.socket.recv_from(&mut buffer) else {
                std::thread::sleep(BREATH);
                continue;
            };
            // Whatever else arrives is nobody's to answer.
            if let Some(call) = Call::decode(&buffer[..length]) {
                self.obey(&call, peer);
            }
        }
    }

    fn obey(&mut self, call: &Call<'_>, peer: SocketAddr) {
        if !self.machine.settings.get().admits(Some(call.token)) {
            let refusal = Error::new(Kind::Unauthenticated, "the access token is missing or wrong");
            self.send(&answer::<()>(call.number, &Err(refusal)), peer);
            return;
        }
        if let Some((number, words)) = &self.last
            && *number == call.number
        {
            if let Ok(request) = configure::parse(call.body) {
                configure::catch_up(&request);
            }
            self.send(words, peer);
            return;
        }
        match call.operation {
            Operation::Prepare => self.prepare(call.number, peer),
            Operation::Init => {
                self.init(call, peer);
                rehearse();
            }
        }
    }

    /// Writes back on a thread of its own: the disk may take for ever, and a call that waited here behind another would be
    /// done when nobody wants it any more.
    fn prepare(&mut self, number: u64, peer: SocketAddr) {
        let words = answer(number, &Ok(None::<()>));
        if let Some((last, done)) = &self.prepared
            && *last == number
        {
            if done.load(Ordering::Acquire) {
                self.send(&words, peer);
            }
            return;
        }
        self.machine.connections.close_idle();
        let done = Arc::new(AtomicBool::new(false));
        self.prepared = Some((number, Arc::clone(&done)));
        let socket = Arc::clone(&self.socket);
        let write_back = move || {
            rustix::fs::sync();
            done.store(true, Ordering::Release);
            // As with any answer: one that is lost is asked for again.
            let _ = socket.send_to(&words, peer);
        };
        // Without a thread the caller waits in vain, and calls by HTTP.
        let _ = std::thread::Builder::new().name("write back".into()).spawn(write_back);
    }

    fn init(&mut self, call: &Call<'_>, peer: SocketAddr) {
        let applied =
            configure::parse(call.body).and_then(|request| configure::apply(&self.machine, request, None));
        let (outcome, renamed) = match applied {
            Ok((response, renamed)) => (Ok(Some(response)), renamed),
            Err(error) => (Err(error), None),
        };
        let words = answer(call.number, &outcome);
        let Some(renamed) = renamed else { return self.conclude(call.number, words, peer) };
        // Writing files takes longer than all of the rest: who connects from now on waits for them, who waits for the
        // answer does not.
        let settings = self.machine.settings.clone();
        let unsettled = settings.unsettle();
        self.conclude(call.number, words, peer);
        Renamed::write_files(&renamed);
        drop(unsettled);
    }

    fn conclude(&mut self, number: u64, words: Vec<u8>, peer: SocketAddr) {
        self.send(&words, peer);
        self.last = Some((number, words));
    }

    fn send(&self, words: &[u8], peer: SocketAddr) {
        // An answer that is lost is asked for again.
        let _ = self.socket.send_to(words, peer);
    }
}

/// Writes back once, soon, when nobody waits for it. Where the machine is emulated, code that runs for the first time since
/// a restore takes several times as long, and the next to write back is a pause, for which somebody does wait.
fn rehearse() {
    let write_back = || {
        std::thread::sleep(UNTIL_REHEARSAL);
        rustix::fs::sync();
    };
    // Without it a pause takes its time.
    let _ = std::thread::Builder::new().name("rehearsal".into()).spawn(write_back);
}

fn answer<T: Serialize>(number: u64, outcome: &Result<Option<T>>) -> Vec<u8> {
    let (status, body) = match outcome {
        Ok(None) => (http::StatusCode::NO_CONTENT, Vec::new()),
        Ok(Some(body)) => (http::StatusCode::OK, serde_json::to_vec(body).unwrap_or_default()),
        Err(error) => (error.status(), serde_json::to_vec(&error.body()).unwrap_or_default()),
    };
    Answer { number, status: status.as_u16(), body: &body }.encode()
}
