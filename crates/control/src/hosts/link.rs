//! The link to one host: follows its `Watch` stream and takes the reports over into the store.

use std::collections::HashMap;
use std::time::Duration;

use connectrpc::ConnectError;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use wrenn_core::{CapsuleId, CapsuleStatus, HostId};
use wrenn_protocol::agent::__buffa::oneof::watch_response::Event;
use wrenn_protocol::agent::{Capsule, CapsulePhase, DestroyCapsuleRequest, WatchRequest};

use super::reconcile::{Cure, Phase, Sight, decide};
use super::{HostTransport, transport};
use crate::capsules::{generation, system_labels};
use crate::state::App;
use crate::store::{Advance, StoreError};

/// The agent sends something at least every five seconds; after this much silence the stream is given up.
const SILENCE: Duration = Duration::from_secs(15);
const RECONCILE_EVERY: Duration = Duration::from_secs(15);
/// Least time between two records of having heard the host.
const HEARD_EVERY: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// States whose capsule has ended when its host says that it stopped.
const ALIVE: [CapsuleStatus; 7] = [
    CapsuleStatus::Running,
    CapsuleStatus::Missing,
    CapsuleStatus::Stopping,
    CapsuleStatus::Pausing,
    CapsuleStatus::Paused,
    CapsuleStatus::Resuming,
    CapsuleStatus::Snapshotting,
];
const BOOTING: [CapsuleStatus; 2] = [CapsuleStatus::Pending, CapsuleStatus::Starting];

/// Follows a host for as long as it is polled.
pub(super) async fn watch(app: App, host: HostId, transport: HostTransport) {
    let mut pause = FIRST_RETRY;
    loop {
        let mut link = Follow {
            app: &app,
            host,
            transport: &transport,
            reported: HashMap::new(),
            absent: HashMap::new(),
            heard: None,
            reconciled: None,
        };
        if let Err(error) = link.follow().await {
            tracing::info!(host.id = %host, error = %describe(&error), "lost the link to host {host}");
        }
        pause = if link.heard.is_some() { FIRST_RETRY } else { (pause * 2).min(LAST_RETRY) };
        tokio::time::sleep(pause).await;
    }
}

fn describe(error: &ConnectError) -> String {
    transport::host_error(error).map_or_else(|| error.to_string(), |cause| format!("{cause:?}"))
}

struct Report {
    phase: Phase,
    generation: i64,
    last_active: i64,
}

struct Follow<'a> {
    app: &'a App,
    host: HostId,
    transport: &'a HostTransport,
    reported: HashMap<CapsuleId, Report>,
    absent: HashMap<CapsuleId, Instant>,
    heard: Option<Instant>,
    reconciled: Option<Instant>,
}

impl Follow<'_> {
    async fn follow(&mut self) -> Result<(), ConnectError> {
        let silent = |_| ConnectError::unavailable("the host has been silent for 15 s");
        let agent = self.transport.agent();
        let mut stream = timeout(SILENCE, agent.watch(WatchRequest::default())).await.map_err(silent)??;
        while let Some(message) = timeout(SILENCE, stream.message()).await.map_err(silent)?? {
            let event = message.to_owned_message().event;
            if let Err(error) = self.take(event).await {
                tracing::warn!(host.id = %self.host, %error, "cannot record what host {} reports", self.host);
            }
        }
        Err(ConnectError::unavailable("the host ended the stream"))
    }

    async fn take(&mut self, event: Option<Event>) -> Result<(), StoreError> {
        self.hear().await?;
        match event {
            Some(Event::All(all)) => {
                self.reported.clear();
                for capsule in all.capsules {
                    self.note(&capsule);
                }
                self.reconciled = None;
            }
            Some(Event::Changed(capsule)) => {
                self.note(&capsule);
                self.apply(&capsule).await?;
            }
            Some(Event::Heartbeat(_)) | None => {}
        }
        if self.reconciled.is_none_or(|at| at.elapsed() >= RECONCILE_EVERY) {
            self.reconcile().await?;
            self.reconciled = Some(Instant::now());
        }
        Ok(())
    }

    async fn hear(&mut self) -> Result<(), StoreError> {
        if self.heard.is_some_and(|at| at.elapsed() < HEARD_EVERY) {
            return Ok(());
        }
        if self.app.store.host_heard(self.host).await? {
            tracing::info!(host.id = %self.host, "host {} is back", self.host);
            self.reconciled = None;
        }
        self.heard = Some(Instant::now());
        Ok(())
    }

    fn note(&mut self, capsule: &Capsule) {
        let Ok(id) = capsule.id.parse::<CapsuleId>() else { return };
        let phase = match capsule.phase.as_known() {
            Some(CapsulePhase::CAPSULE_PHASE_STARTING) => Phase::Starting,
            Some(CapsulePhase::CAPSULE_PHASE_RUNNING) => Phase::Running,
            Some(CapsulePhase::CAPSULE_PHASE_STOPPING) => Phase::Stopping,
            Some(CapsulePhase::CAPSULE_PHASE_STOPPED | CapsulePhase::CAPSULE_PHASE_UNSPECIFIED) | None => {
                self.reported.remove(&id);
                return;
            }
        };
        let report = Report { phase, generation: generation(capsule), last_active: capsule.last_active };
        self.reported.insert(id, report);
    }

    async fn apply(&self, capsule: &Capsule) -> Result<(), StoreError> {
        let Ok(id) = capsule.id.parse::<CapsuleId>() else { return Ok(()) };
        match capsule.phase.as_known() {
            Some(CapsulePhase::CAPSULE_PHASE_RUNNING) => {
                self.app.store.capsule_runs(id, generation(capsule), &system_labels(capsule)).await?;
            }
            Some(CapsulePhase::CAPSULE_PHASE_STOPPED) => {
                let reason = Some(capsule.reason.as_str()).filter(|reason| !reason.is_empty());
                let step = Advance {
                    from: &BOOTING,
                    to: CapsuleStatus::Error,
                    reason,
                    generation: Some(generation(capsule)),
                };
                let failed = self.app.store.advance(id, step).await?;
                let step = Advance { from: &ALIVE, to: CapsuleStatus::Stopped, ..step };
                if !failed && self.app.store.advance(id, step).await? {
                    tracing::info!(capsule.id = %id, "capsule {id} stopped: {}", reason.unwrap_or("as asked"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let rows = self.app.store.host_capsules(self.host).await?;
        let reported = &self.reported;
        self.absent.retain(|id, _| !reported.contains_key(id) && rows.iter().any(|row| row.id == *id));
        for row in &rows {
            let sight = match self.reported.get(&row.id) {
                Some(report) => Sight::Present(report.phase),
                None => Sight::Absent(self.absent.entry(row.id).or_insert_with(Instant::now).elapsed()),
            };
            self.cure(row.id, row.status, decide(row.status, sight)).await?;
        }
        let strangers: Vec<CapsuleId> =
            self.reported.keys().filter(|id| rows.iter().all(|row| row.id != **id)).copied().collect();
        if !strangers.is_empty() {
            for id in self.app.store.ended_among(&strangers).await? {
                self.cure(id, CapsuleStatus::Stopped, Cure::Destroy).await?;
            }
        }
        self.record_activity().await
    }

    async fn cure(&self, id: CapsuleId, from: CapsuleStatus, cure: Cure) -> Result<(), StoreError> {
        match cure {
            Cure::None => {}
            Cure::Runs => {
                let generation = self.reported.get(&id).map_or(0, |report| report.generation);
                let labels = self.labels(id).await;
                self.app.store.capsule_runs(id, generation, &labels).await?;
            }
            Cure::Becomes(to) => {
                tracing::warn!(capsule.id = %id, "capsule {id} was {from}, but its host does not have it: now {to}");
                let reason = Some("the host does not have the capsule");
                let step = Advance { from: &[from], to, reason, generation: None };
                self.app.store.advance(id, step).await?;
            }
            Cure::Destroy => {
                let agent = self.transport.agent();
                self.app.tasks.spawn(async move {
                    let request = DestroyCapsuleRequest { id: id.to_string(), ..Default::default() };
                    if let Ok(Err(error)) = timeout(DESTROY_TIMEOUT, agent.destroy_capsule(request)).await {
                        tracing::warn!(capsule.id = %id, %error, "cannot remove left-over capsule {id}");
                    }
                });
            }
        }
        Ok(())
    }

    /// Versions are asked for anew: the table of reports does not keep them.
    async fn labels(&self, id: CapsuleId) -> std::collections::BTreeMap<String, String> {
        crate::capsules::live(self.transport, id).await.map(|found| system_labels(&found)).unwrap_or_default()
    }

    async fn record_activity(&self) -> Result<(), StoreError> {
        let used: Vec<(CapsuleId, OffsetDateTime)> = self
            .reported
            .iter()
            .filter(|(_, report)| report.phase == Phase::Running && report.last_active > 0)
            .filter_map(|(id, report)| {
                Some((*id, OffsetDateTime::from_unix_timestamp(report.last_active).ok()?))
            })
            .collect();
        if used.is_empty() { Ok(()) } else { self.app.store.capsules_active(&used).await }
    }
}
