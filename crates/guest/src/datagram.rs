//! The two calls of the host as datagrams: see [`wrenn_protocol::datagram`].
//!
//! A thread of its own serves them with blocking calls: between a restored machine and its first answer lies as little
//! code as can be.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use serde::Serialize;
use wrenn_protocol::datagram::{Answer, Call, MAX_BYTES, Operation};

use crate::error::{Error, Kind, Result};
use crate::http::configure::{self, Machine};
use crate::init::identity::Renamed;

/// Pause after the socket failed, which it does for want of memory at most.
const BREATH: Duration = Duration::from_millis(50);

/// Serves at `address` until the process ends.
pub(crate) fn serve(address: SocketAddr, machine: Machine) -> io::Result<()> {
    let socket = UdpSocket::bind(address)?;
    let serve = move || Server { socket, machine, last: None }.run();
    std::thread::Builder::new().name("datagrams".into()).spawn(serve)?;
    Ok(())
}

struct Server {
    socket: UdpSocket,
    machine: Machine,
    /// The last call that was done, and how it was answered.
    last: Option<(u64, Vec<u8>)>,
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
            self.send(words, peer);
            return;
        }
        match call.operation {
            Operation::Prepare => {
                configure::write_back(&self.machine);
                self.conclude(call.number, answer(call.number, &Ok(None::<()>)), peer);
            }
            Operation::Init => self.init(call, peer),
        }
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

fn answer<T: Serialize>(number: u64, outcome: &Result<Option<T>>) -> Vec<u8> {
    let (status, body) = match outcome {
        Ok(None) => (http::StatusCode::NO_CONTENT, Vec::new()),
        Ok(Some(body)) => (http::StatusCode::OK, serde_json::to_vec(body).unwrap_or_default()),
        Err(error) => (error.status(), serde_json::to_vec(&error.body()).unwrap_or_default()),
    };
    Answer { number, status: status.as_u16(), body: &body }.encode()
}
