//! A typed client of the public API.
//!
//! ```no_run
//! use wrenn_client::{Client, Command, CreateCapsule};
//!
//! # async fn example() -> Result<(), wrenn_client::Error> {
//! let client = Client::new("http://127.0.0.1:8080", "wrn_…")?;
//! let capsule = client.create_running(&CreateCapsule::new("minimal")).await?;
//! let result = client.exec(capsule.id, &Command::shell("uname -a")).await?;
//! println!("{}", result.stdout_text());
//! client.destroy(capsule.id).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A credential is an API key, which speaks for a team, or the token of a person, which [`Client::login`] gives and which
//! accounts, teams, API keys, the audit log and the platform's administration demand.
//!
//! Three kinds of call exist, each with its own failure rules:
//!
//! - Plain requests end within a deadline. GET and DELETE are tried up to three times when the connection fails,
//!   because the API makes them idempotent; POST never is, because a lost answer does not mean lost work.
//! - Transfers ([`Client::upload`], [`Client::download`]) stream in both directions, hold no file in memory and
//!   have no deadline.
//! - Sessions ([`Client::exec_stream`], [`Client::attach`], [`Client::pty`]) are WebSockets. Their handshake goes
//!   through the same HTTP stack as everything else, so TLS, trust roots and time-outs are configured once.
//!   `https` trusts the certificate authorities of the system; `SSL_CERT_FILE` names others.

mod account;
mod admin;
mod audit;
mod capsules;
mod client;
mod error;
mod exec;
mod files;
mod keys;
mod pty;
mod socket;
mod stream;
mod teams;
mod templates;
mod types;
mod when;

pub use account::{Me, SignIn};
pub use admin::{AdminTeam, AdminTemplate, AdminUser, Page};
pub use audit::{AuditEntry, AuditPage, AuditQuery};
pub use client::{Client, normalise as normalise_base_url};
pub use error::{ApiError, Error};
pub use keys::ApiKey;
pub use pty::{Pty, PtyCommand, PtyEvent, PtyReader, PtyWriter};
pub use stream::{ProcessEvent, ProcessStream};
pub use teams::{Member, Team, TeamDetails, TeamRole, UserFound};
pub use templates::{CreateSnapshot, Snapshot, Template, TemplateKind};
pub use types::{
    Capsule, Command, CreateCapsule, ExecResult, FileEntry, FileKind, ForkCapsule, Health, ProcessInfo,
    StartedProcess, TerminalSize,
};
pub use wrenn_core::{ApiKeyId, CapsuleId, TeamId, UserId, state::CapsuleStatus};
