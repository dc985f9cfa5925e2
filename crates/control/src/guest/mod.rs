//! Typed access to the daemon inside a running capsule, through the tunnel of its host.

mod error;
mod events;
mod files;

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use connectrpc::ConnectError;
use connectrpc::client::{CallOptions, ServiceTransport};
use wrenn_core::CapsuleId;
use wrenn_protocol::filesystem::FilesystemClient;
use wrenn_protocol::process::__buffa::oneof::process_input::Input;
use wrenn_protocol::process::__buffa::oneof::process_selector::Selector as ProtoSelector;
use wrenn_protocol::process::{
    ConnectRequest, ListRequest, PTY, ProcessClient, ProcessConfig, ProcessInfo, ProcessInput,
    ProcessSelector, SendInputRequest, SendSignalRequest, Signal, StartRequest, UpdateRequest, pty,
};

use crate::hosts::HostTransport;

pub(crate) use error::{GuestError, failure};
pub(crate) use events::{Event, Events};
pub(crate) use files::{Upload, check_path};

type Rpc = ServiceTransport<HostTransport>;

/// Which process is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selector {
    Pid(u32),
    Tag(String),
}

impl Selector {
    /// A decimal that fits a PID is one, anything else is a tag.
    pub(crate) fn parse(text: &str) -> Self {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        match text.parse() {
            Ok(pid) if digits => Self::Pid(pid),
            _ => Self::Tag(text.to_owned()),
        }
    }

    fn proto(&self) -> ProcessSelector {
        let selector = match self {
            Self::Pid(pid) => ProtoSelector::Pid(*pid),
            Self::Tag(tag) => ProtoSelector::Tag(tag.clone()),
        };
        ProcessSelector { selector: Some(selector), ..Default::default() }
    }
}

/// Where a process gets its terminal from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TerminalSize {
    pub(crate) cols: u32,
    pub(crate) rows: u32,
}

impl TerminalSize {
    fn proto(self) -> PTY {
        PTY {
            size: pty::Size { cols: self.cols, rows: self.rows, ..Default::default() }.into(),
            ..Default::default()
        }
    }
}

/// A process about to be started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Command {
    pub(crate) cmd: String,
    pub(crate) args: Vec<String>,
    pub(crate) envs: BTreeMap<String, String>,
    pub(crate) cwd: Option<String>,
    pub(crate) tag: Option<String>,
    /// `None` for pipes.
    pub(crate) terminal: Option<TerminalSize>,
    /// `None` for the template's default user.
    pub(crate) user: Option<String>,
}

impl Command {
    /// Refuses what no process can be given.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let variables = self.envs.iter().flat_map(|(name, value)| [name, value]);
        let mut strings = self.args.iter().chain(variables).chain(&self.cwd).chain([&self.cmd]);
        if strings.any(|text| text.contains('\0')) {
            return Err("cmd, args, envs and cwd must not contain NUL characters");
        }
        if self.envs.keys().any(|name| name.is_empty() || name.contains('=')) {
            return Err("the names in envs must not be empty or contain =");
        }
        Ok(())
    }
}

/// A running capsule's daemon.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    transport: HostTransport,
    capsule: CapsuleId,
}

impl Guest {
    pub(crate) fn new(transport: HostTransport, capsule: CapsuleId) -> Self {
        Self { transport, capsule }
    }

    pub(crate) fn capsule(&self) -> CapsuleId {
        self.capsule
    }

    fn processes(&self) -> ProcessClient<Rpc> {
        ProcessClient::new(
            ServiceTransport::new(self.transport.clone()),
            self.transport.guest_rpc(self.capsule),
        )
    }

    fn filesystem(&self) -> FilesystemClient<Rpc> {
        FilesystemClient::new(
            ServiceTransport::new(self.transport.clone()),
            self.transport.guest_rpc(self.capsule),
        )
    }

    /// Starts a process and waits until it runs: its PID, and what it does from then on.
    pub(crate) async fn start(&self, command: Command) -> Result<(u32, Events), ConnectError> {
        let mut options = CallOptions::default();
        if let Some(user) = &command.user {
            let basic = format!("Basic {}", STANDARD.encode(format!("{user}:")));
            options = options
                .try_with_header("authorization", basic)
                .map_err(|_| ConnectError::invalid_argument("the user's name cannot be sent"))?;
        }
        let config = ProcessConfig {
            cmd: command.cmd,
            args: command.args,
            envs: command.envs.into_iter().collect(),
            cwd: command.cwd,
            ..Default::default()
        };
        let request = StartRequest {
            process: config.into(),
            pty: command.terminal.map(TerminalSize::proto).into(),
            tag: command.tag,
            stdin: Some(command.terminal.is_some()),
            ..Default::default()
        };
        let stream = self.processes().start_with_options(request, options).await?;
        Events::Started(Box::new(stream)).begun().await
    }

    /// Attaches to a running process: its PID, and what it does from now on.
    pub(crate) async fn attach(&self, selector: &Selector) -> Result<(u32, Events), ConnectError> {
        let request = ConnectRequest { process: selector.proto().into(), ..Default::default() };
        let stream = self.processes().connect(request).await?;
        Events::Attached(Box::new(stream)).begun().await
    }

    /// Live processes.
    pub(crate) async fn list(&self) -> Result<Vec<ProcessInfo>, ConnectError> {
        Ok(self.processes().list(ListRequest::default()).await?.into_owned().processes)
    }

    /// Signals a process and what it started.
    pub(crate) async fn signal(&self, selector: &Selector, signal: Signal) -> Result<(), ConnectError> {
        let request = SendSignalRequest {
            process: selector.proto().into(),
            signal: signal.into(),
            ..Default::default()
        };
        self.processes().send_signal(request).await.map(drop)
    }

    /// Types into a process's terminal.
    pub(crate) async fn type_in(&self, selector: &Selector, data: Bytes) -> Result<(), ConnectError> {
        let input = ProcessInput { input: Some(Input::Pty(data.into())), ..Default::default() };
        let request =
            SendInputRequest { process: selector.proto().into(), input: input.into(), ..Default::default() };
        self.processes().send_input(request).await.map(drop)
    }

    /// Changes the size of a process's terminal.
    pub(crate) async fn resize(&self, selector: &Selector, size: TerminalSize) -> Result<(), ConnectError> {
        let request = UpdateRequest {
            process: selector.proto().into(),
            pty: size.proto().into(),
            ..Default::default()
        };
        self.processes().update(request).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_that_fits_is_a_pid_and_anything_else_a_tag() {
        assert_eq!(Selector::parse("42"), Selector::Pid(42));
        assert_eq!(Selector::parse("4294967295"), Selector::Pid(u32::MAX));
        for tag in ["4294967296", "-1", "+1", "proc-1", "", " 1"] {
            assert_eq!(Selector::parse(tag), Selector::Tag(tag.into()));
        }
    }
}
