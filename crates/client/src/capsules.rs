//! The life of capsules.

use std::time::Duration;

use reqwest::Method;
use tokio::time::Instant;
use wrenn_core::{CapsuleId, CapsuleStatus};

use crate::client::Client;
use crate::error::Error;
use crate::types::{Capsule, CreateCapsule, Health};

/// Pause between two looks at a capsule that is waited for.
const POLL: Duration = Duration::from_millis(500);
/// How long [`Client::create_running`] waits: what the platform allows a boot.
const BOOT: Duration = Duration::from_secs(600);

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
