//! What a process does, as one sequence whether it was started or attached to.

use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::ServerStream;
use hyper::body::Incoming;
use wrenn_protocol::process::__buffa::oneof::process_event::Event as ProtoEvent;
use wrenn_protocol::process::__buffa::oneof::process_event::data_event::Output;
use wrenn_protocol::process::__buffa::view::{ConnectResponseView, StartResponseView};
use wrenn_protocol::process::{ProcessEvent, process_event::EndEvent};

/// Exit code reported for a process that a signal ended.
const SIGNALLED: i32 = -1;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// Its exit code, or [`SIGNALLED`].
    pub(crate) exit_code: i32,
}

impl From<EndEvent> for End {
    fn from(end: EndEvent) -> Self {
        Self { exit_code: if end.exited { end.exit_code } else { SIGNALLED } }
    }
}

/// One thing that a process does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Stdout(Bytes),
    Stderr(Bytes),
    Terminal(Bytes),
    End(End),
}

/// The sequence.
pub(crate) enum Events {
    Started(Box<ServerStream<Incoming, StartResponseView<'static>>>),
    Attached(Box<ServerStream<Incoming, ConnectResponseView<'static>>>),
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// Waits for the first event, which tells the PID.
    pub(super) async fn begun(mut self) -> Result<(u32, Self), ConnectError> {
        match self.message().await? {
            Some(ProtoEvent::Start(start)) => Ok((start.pid, self)),
            _ => Err(ConnectError::internal("the guest did not say which process it started")),
        }
    }

    /// The next event; `None` once the sequence is over.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, ConnectError> {
        loop {
            let event = match self.message().await? {
                None => return Ok(None),
                Some(ProtoEvent::Start(_) | ProtoEvent::Keepalive(_)) => continue,
                Some(ProtoEvent::End(end)) => Event::End((*end).into()),
                Some(ProtoEvent::Data(data)) => match data.output {
                    None => continue,
                    Some(Output::Stdout(data)) => Event::Stdout(data.into()),
                    Some(Output::Stderr(data)) => Event::Stderr(data.into()),
                    Some(Output::Pty(data)) => Event::Terminal(data.into()),
                },
            };
            return Ok(Some(event));
        }
    }

    async fn message(&mut self) -> Result<Option<ProtoEvent>, ConnectError> {
        loop {
            let event: Option<ProcessEvent> = match self {
                Self::Started(stream) => match stream.message().await? {
                    Some(message) => message.to_owned_message().event.into_option(),
                    None => return Ok(None),
                },
                Self::Attached(stream) => match stream.message().await? {
                    Some(message) => message.to_owned_message().event.into_option(),
                    None => return Ok(None),
                },
            };
            if let Some(event) = event.and_then(|event| event.event) {
                return Ok(Some(event));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn death_by_signal_is_minus_one() {
        let end = EndEvent { exit_code: 9, exited: false, ..Default::default() };
        assert_eq!(End::from(end).exit_code, -1);
        let end = EndEvent { exit_code: 9, exited: true, ..Default::default() };
        assert_eq!(End::from(end).exit_code, 9);
    }
}
