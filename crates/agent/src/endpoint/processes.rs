//! Running a program to its end by the daemon's process service.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use connectrpc::ConnectError;
use connectrpc::client::{ClientConfig, HttpClient};
use http::header::AUTHORIZATION;
use wrenn_protocol::process::__buffa::oneof::process_event::Event;
use wrenn_protocol::process::{ProcessClient, ProcessConfig, StartRequest, StartResponse};
use wrenn_protocol::tunnel::ACCESS_TOKEN_HEADER;

use super::{Endpoint, EndpointError, chain};

/// A daemon's process service, in the encoding in which the control plane speaks with it. Keeps connections of its own.
#[derive(Clone)]
pub struct Processes(ProcessClient<HttpClient>);

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes").finish_non_exhaustive()
    }
}

impl Endpoint {
    /// The process service of this daemon, where programs run as `user`, or as the default user.
    ///
    /// # Errors
    /// As [`uri`](Self::uri).
    pub fn processes(&self, user: Option<&str>) -> Result<Processes, http::Error> {
        let config = ClientConfig::new(self.uri("/")?).proto();
        let mut config = config.with_default_header(ACCESS_TOKEN_HEADER, self.token.clone());
        if let Some(user) = user {
            let credentials = format!("Basic {}", STANDARD.encode(format!("{user}:")));
            config = config.with_default_header(AUTHORIZATION, credentials);
        }
        Ok(Processes(ProcessClient::new(HttpClient::plaintext(), config)))
    }
}

impl Processes {
    /// Runs a program without input and returns its exit code; nobody sees what it writes.
    ///
    /// # Errors
    /// [`EndpointError::Process`] where the daemon does not answer, does not start it or does not say how it ended.
    pub async fn run(&self, program: &str, args: &[&str]) -> Result<i32, EndpointError> {
        let args = args.iter().map(|&arg| arg.to_owned()).collect();
        let process = ProcessConfig { cmd: program.to_owned(), args, ..ProcessConfig::default() };
        let request = StartRequest { process: process.into(), stdin: Some(false), ..StartRequest::default() };
        let failed = |error| EndpointError::Process { program: program.to_owned(), why: chain(&error) };
        let mut events = self.0.start(request).await.map_err(failed)?;
        let mut code = None;
        while let Some(message) = events.message::<StartResponse>().await.map_err(failed)? {
            let event = message.to_owned_message().event.into_option().and_then(|event| event.event);
            if let Some(Event::End(end)) = event {
                code = Some(end.exit_code);
            }
        }
        code.ok_or_else(|| failed(ConnectError::aborted("the daemon did not say how it ended")))
    }
}
