//! The life of capsules.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use tokio::time::Instant;
use wrenn_core::{CapsuleId, CapsuleStatus};

use crate::client::Client;
use crate::error::Error;
use crate::types::{Capsule, CreateCapsule, ForkCapsule, Health};

/// Pause between two looks at a capsule that is waited for.
const POLL: Duration = Duration::from_millis(500);
/// How long [`Client::create_running`] waits: what the platform allows a boot.
const BOOT: Duration = Duration::from_secs(600);
/// Deadline of a request to pause, resume or fork; the server answers within seconds.
const TURN_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a pause or a resume is waited for: what the platform allows, and a little more.
const TURN: Duration = Duration::from_secs(330);

/// Answer to a fork.
#[derive(Deserialize)]
struct Copies {
    capsules: Vec<Capsule>,
}

impl Client {
    /// Whether the server is there, and which version it has. Needs no valid key.
    ///
    /// # Errors
    /// [`Error::Unreachable`] where nothing answers.
    pub async fn health(&self) -> Result<Health, Error> {
        self.get_json(&self.url("/health")).await
    }

    /// Asks for a capsule. The answer is `running`, or `starting` where that takes longer than a moment.
    ///
    /// # Errors
    /// `not_found` for an unknown template, `host_unavailable` where no host has room, `invalid_request` for sizes
    /// and labels outside the limits.
    pub async fn create(&self, request: &CreateCapsule) -> Result<Capsule, Error> {
        let response = self.post(&self.url("/v1/capsules"), request, None).await?;
        self.json(response).await
    }

    /// [`Client::create`], then waits until the capsule runs.
    ///
    /// # Errors
    /// Those of [`Client::create`] and [`Client::wait_for`].
    pub async fn create_running(&self, request: &CreateCapsule) -> Result<Capsule, Error> {
        let capsule = self.create(request).await?;
        if capsule.status == CapsuleStatus::Running {
            return Ok(capsule);
        }
        self.wait_for(capsule.id, CapsuleStatus::Running, BOOT).await
    }

    /// The capsules of the key's team that are not gone, newest first.
    ///
    /// # Errors
    /// `unauthorized` for a bad key.
    pub async fn list(&self) -> Result<Vec<Capsule>, Error> {
        self.get_json(&self.url("/v1/capsules")).await
    }

    /// One capsule.
    ///
    /// # Errors
    /// `not_found` where the team has no such capsule.
    pub async fn get(&self, id: CapsuleId) -> Result<Capsule, Error> {
        self.get_json(&self.capsule_url(id, "")).await
    }

    /// Asks for a capsule to be destroyed; repeating it is harmless. It may be `stopping` for a while afterwards.
    ///
    /// # Errors
    /// `not_found` where the team has no such capsule.
    pub async fn destroy(&self, id: CapsuleId) -> Result<(), Error> {
        self.idempotent(Method::DELETE, &self.capsule_url(id, "")).await.map(drop)
    }

    /// Puts off the capsule's inactivity time-out.
    ///
    /// # Errors
    /// `invalid_state` where it does not run.
    pub async fn ping(&self, id: CapsuleId) -> Result<(), Error> {
        let request = self.request(Method::POST, &self.capsule_url(id, "/ping"));
        self.send(request.timeout(Duration::from_secs(30))).await.map(drop)
    }

    /// Asks for a running capsule to be paused: its memory goes to disk, and its processes stand still. The answer is
    /// `paused`, or `pausing` where that takes longer than a moment. One that is paused already is success.
    ///
    /// # Errors
    /// `invalid_state` where it does not run, `agent_error` where its host cannot pause it, `host_unavailable`.
    pub async fn pause(&self, id: CapsuleId) -> Result<Capsule, Error> {
        self.turn(id, "/pause").await
    }

    /// [`Client::pause`], then waits until the capsule is paused.
    ///
    /// # Errors
    /// Those of [`Client::pause`]; [`Error::Lost`] where it runs on or ended, [`Error::TooSlow`].
    pub async fn pause_and_wait(&self, id: CapsuleId) -> Result<Capsule, Error> {
        let capsule = self.pause(id).await?;
        self.turned(capsule, CapsuleStatus::Pausing, CapsuleStatus::Paused).await
    }

    /// Asks for a paused capsule to go on. The answer is `running`, or `resuming` where that takes longer than a moment.
    /// One that runs already is success.
    ///
    /// # Errors
    /// `invalid_state` where it is not paused, `host_unavailable` where its host has no room or is away.
    pub async fn resume(&self, id: CapsuleId) -> Result<Capsule, Error> {
        self.turn(id, "/resume").await
    }

    /// [`Client::resume`], then waits until the capsule runs.
    ///
    /// # Errors
    /// Those of [`Client::resume`]; [`Error::Lost`] where it stays paused or ended, [`Error::TooSlow`].
    pub async fn resume_and_wait(&self, id: CapsuleId) -> Result<Capsule, Error> {
        let capsule = self.resume(id).await?;
        self.turned(capsule, CapsuleStatus::Resuming, CapsuleStatus::Running).await
    }

    async fn turn(&self, id: CapsuleId, call: &str) -> Result<Capsule, Error> {
        let request = self.request(Method::POST, &self.capsule_url(id, call));
        let response = self.send(request.timeout(TURN_TIMEOUT)).await?;
        self.json(response).await
    }

    async fn turned(
        &self,
        capsule: Capsule,
        during: CapsuleStatus,
        wanted: CapsuleStatus,
    ) -> Result<Capsule, Error> {
        let id = capsule.id;
        let capsule =
            if capsule.status == during { self.wait_past(id, during, TURN).await? } else { capsule };
        match capsule.status {
            status if status == wanted => Ok(capsule),
            status => Err(Error::Lost { id, status, wanted }),
        }
    }

    /// Asks for running copies of a running capsule, all of them or none. They are `running`, or `starting` where that
    /// takes longer than a moment.
    ///
    /// # Errors
    /// `invalid_state` where the source does not run, `host_unavailable` where its host has no room for the copies.
    pub async fn fork(&self, id: CapsuleId, request: &ForkCapsule) -> Result<Vec<Capsule>, Error> {
        let response = self.post(&self.capsule_url(id, "/fork"), request, Some(TURN_TIMEOUT)).await?;
        Ok(self.json::<Copies>(response).await?.capsules)
    }

    /// [`Client::fork`], then waits until all copies run.
    ///
    /// # Errors
    /// Those of [`Client::fork`] and [`Client::wait_for`].
    pub async fn fork_and_wait(&self, id: CapsuleId, request: &ForkCapsule) -> Result<Vec<Capsule>, Error> {
        let mut copies = self.fork(id, request).await?;
        for copy in &mut copies {
            if copy.status != CapsuleStatus::Running {
                *copy = self.wait_for(copy.id, CapsuleStatus::Running, BOOT).await?;
            }
        }
        Ok(copies)
    }

    /// Waits until a capsule is in another state than `during`, and returns it.
    pub(crate) async fn wait_past(
        &self,
        id: CapsuleId,
        during: CapsuleStatus,
        patience: Duration,
    ) -> Result<Capsule, Error> {
        let start = Instant::now();
        loop {
            let capsule = self.get(id).await?;
            if capsule.status != during {
                return Ok(capsule);
            }
            if start.elapsed() >= patience {
                return Err(Error::TooSlow { id, status: during, waited: patience });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until the capsule is in a state, and returns it.
    ///
    /// # Errors
    /// [`Error::Lost`] where it ended or went missing instead, [`Error::TooSlow`] after `patience`.
    pub async fn wait_for(
        &self,
        id: CapsuleId,
        wanted: CapsuleStatus,
        patience: Duration,
    ) -> Result<Capsule, Error> {
        let start = Instant::now();
        loop {
            let capsule = self.get(id).await?;
            let status = capsule.status;
            if status == wanted {
                return Ok(capsule);
            }
            if status.is_terminal() || status == CapsuleStatus::Missing {
                return Err(Error::Lost { id, status, wanted });
            }
            if start.elapsed() >= patience {
                return Err(Error::TooSlow { id, status, waited: patience });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a capsule that is being destroyed is gone.
    ///
    /// # Errors
    /// Those of [`Client::wait_for`]; a capsule that the server no longer knows is gone.
    pub async fn wait_gone(&self, id: CapsuleId, patience: Duration) -> Result<(), Error> {
        match self.wait_for(id, CapsuleStatus::Stopped, patience).await {
            Ok(_) => Ok(()),
            // Failed for good: nothing of it is left either.
            Err(Error::Lost { status: CapsuleStatus::Error, .. }) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
