//! Pausing and resuming: the two ways between `running` and `paused`.
//!
//! A host also pauses by itself, when a capsule's inactivity time-out has passed; the link to the host takes that over.

use std::time::Duration;

use connectrpc::ConnectError;
use wrenn_core::{CapsuleId, CapsuleStatus, TeamId};
use wrenn_protocol::agent::{Capsule, PauseCapsuleRequest, ResumeCapsuleRequest};

use super::work::{Failed, ask, settled, unless_destroyed, work_failure};
use super::{Outcome, find, generation, placement, system_labels, transport};
use crate::api::ApiError;
use crate::auth::Caller;
use crate::hosts::HostTransport;
use crate::state::App;
use crate::store::{Advance, CapsuleRow};

/// For a pause and for a resume.
const DEADLINE: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Pause,
    Resume,
}

impl Turn {
    const fn from(self) -> CapsuleStatus {
        match self {
            Self::Pause => CapsuleStatus::Running,
            Self::Resume => CapsuleStatus::Paused,
        }
    }

    const fn during(self) -> CapsuleStatus {
        match self {
            Self::Pause => CapsuleStatus::Pausing,
            Self::Resume => CapsuleStatus::Resuming,
        }
    }

    const fn to(self) -> CapsuleStatus {
        match self {
            Self::Pause => CapsuleStatus::Paused,
            Self::Resume => CapsuleStatus::Running,
        }
    }

    const fn done(self) -> &'static str {
        match self {
            Self::Pause => "paused",
            Self::Resume => "resumed",
        }
    }
}

/// Pauses a running capsule; answers when it is paused, or with what is known after the settle window.
pub(crate) async fn pause(app: &App, caller: &Caller, id: CapsuleId) -> Result<Outcome, ApiError> {
    let team = caller.team;
    let row = find(app, team, id).await?;
    if row.status == CapsuleStatus::Paused {
        return Ok(Outcome::Settled(row));
    }
    let step = Advance::asked(&[CapsuleStatus::Running], CapsuleStatus::Pausing, &caller.actor);
    if !app.store.advance(id, step).await? {
        return Err(refused(app, team, id, Turn::Pause).await);
    }
    turn(app, team, row, Turn::Pause).await
}

/// Resumes a paused capsule; answers when it runs, or with what is known after the settle window.
pub(crate) async fn resume(app: &App, caller: &Caller, id: CapsuleId) -> Result<Outcome, ApiError> {
    let team = caller.team;
    let row = find(app, team, id).await?;
    if row.status == CapsuleStatus::Running {
        return Ok(Outcome::Settled(row));
    }
    let reserve = app.config.reserve;
    let admit = |status, load: &_| placement::admit_resumed(status, load, reserve);
    match app.store.begin_resume(team, id, row.host, &caller.actor, admit).await? {
        Ok(true) => turn(app, team, row, Turn::Resume).await,
        Ok(false) => Err(refused(app, team, id, Turn::Resume).await),
        Err(lack) => Err(ApiError::host_unavailable(format!("capsule {id} cannot be resumed now: {lack}"))),
    }
}

/// The capsule is in another state than the one that the call needs.
async fn refused(app: &App, team: TeamId, id: CapsuleId, turn: Turn) -> ApiError {
    match find(app, team, id).await {
        Ok(row) => ApiError::invalid_state(format!(
            "capsule {id} is {}; only one that is {} can be {}",
            row.status,
            turn.from(),
            turn.done()
        )),
        Err(error) => error,
    }
}

async fn turn(app: &App, team: TeamId, row: CapsuleRow, turn: Turn) -> Result<Outcome, ApiError> {
    let id = row.id;
    if let Err(error) = settled(app, app.tasks.spawn(run(app.clone(), row, turn))).await {
        return Err(unless_destroyed(app, team, id, error).await);
    }
    Ok(Outcome::of(find(app, team, id).await?, turn.to()))
}

/// The task that has a host do it.
async fn run(app: App, row: CapsuleRow, turn: Turn) -> Result<(), ApiError> {
    let host = transport(&app, &row).await;
    let error = match &host {
        Ok(host) => match call(host, row.id, turn).await {
            Ok(capsule) => return finish(&app, row.id, turn, &capsule).await,
            Err(error) => work_failure(&error),
        },
        Err(error) => error.clone(),
    };
    tracing::warn!(capsule.id = %row.id, "capsule {} was not {}: {}", row.id, turn.done(), error.message);
    let host = host.as_ref().ok();
    let failed = Failed { id: row.id, during: turn.during(), back: turn.from(), cause: &error.message };
    if failed.recover(&app, host).await? { Ok(()) } else { Err(error) }
}

async fn call(host: &HostTransport, id: CapsuleId, turn: Turn) -> Result<Capsule, ConnectError> {
    let (agent, id) = (host.agent(), id.to_string());
    let capsule = match turn {
        Turn::Pause => {
            let request = PauseCapsuleRequest { id, ..Default::default() };
            let answer =
                ask(DEADLINE, |options| agent.pause_capsule_with_options(request.clone(), options)).await?;
            answer.into_owned().capsule
        }
        Turn::Resume => {
            let request = ResumeCapsuleRequest { id, ..Default::default() };
            let answer =
                ask(DEADLINE, |options| agent.resume_capsule_with_options(request.clone(), options)).await?;
            answer.into_owned().capsule
        }
    };
    Ok(capsule.into_option().unwrap_or_default())
}

/// Takes over a success. The host's own report of it may have come first.
async fn finish(app: &App, id: CapsuleId, turn: Turn, capsule: &Capsule) -> Result<(), ApiError> {
    match turn {
        Turn::Pause => {
            let step = Advance {
                generation: Some(generation(capsule)),
                ..Advance::new(&[CapsuleStatus::Pausing], CapsuleStatus::Paused)
            };
            app.store.advance(id, step).await?;
        }
        Turn::Resume => {
            app.store.capsule_runs(id, generation(capsule), &system_labels(capsule)).await?;
        }
    }
    Ok(())
}
