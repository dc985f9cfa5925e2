//! The link to one host: follows its `Watch` stream and takes the reports over into the store.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use connectrpc::ConnectError;
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};
use wrenn_core::{CapsuleId, HostId};
use wrenn_protocol::agent::__buffa::oneof::watch_response::Event;
use wrenn_protocol::agent::{Capsule, CapsulePhase, DestroyCapsuleRequest, WatchRequest};

use super::reconcile::{Cure, End, Phase, Sight, decide};
use super::{HostTransport, transport};
use crate::capsules::{generation, system_labels};
use crate::state::App;
use crate::store::{HostCapsule, StoreError, TakeOver};
use crate::templates;

/// The agent sends something at least every five seconds; after this much silence the stream is given up.
const SILENCE: Duration = Duration::from_secs(15);
const RECONCILE_EVERY: Duration = Duration::from_secs(15);
/// Least time between two records of having heard the host.
const HEARD_EVERY: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(5);
const DESTROY_TIMEOUT: Duration = Duration::from_secs(60);

/// Moves that one report may lead to, and looks at a row that others change at the same time.
const MOVES: usize = 4;

/// How the reason of a host begins that removed a capsule because its time-out had passed and it could not be paused.
const TIMED_OUT: [&str; 2] = ["ttl_expired", "pause_failed"];

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

/// What a host says of a capsule.
#[derive(Clone)]
struct Report {
    sight: Sight,
    generation: i64,
    last_active: i64,
    reason: Option<String>,
    labels: BTreeMap<String, String>,
}

impl Report {
    /// `None` for what no host should say.
    fn read(capsule: &Capsule) -> Option<(CapsuleId, Self)> {
        let id = capsule.id.parse().ok()?;
        let generation = generation(capsule);
        let present = |phase| Sight::Present(phase, generation);
        let sight = match capsule.phase.as_known()? {
            CapsulePhase::CAPSULE_PHASE_UNSPECIFIED => return None,
            CapsulePhase::CAPSULE_PHASE_STARTING => present(Phase::Starting),
            CapsulePhase::CAPSULE_PHASE_RUNNING => present(Phase::Running),
            CapsulePhase::CAPSULE_PHASE_PAUSING => present(Phase::Pausing),
            CapsulePhase::CAPSULE_PHASE_PAUSED => present(Phase::Paused),
            CapsulePhase::CAPSULE_PHASE_RESUMING => present(Phase::Resuming),
            CapsulePhase::CAPSULE_PHASE_STOPPING => present(Phase::Stopping),
            CapsulePhase::CAPSULE_PHASE_STOPPED
                if TIMED_OUT.iter().any(|why| capsule.reason.starts_with(why)) =>
            {
                Sight::Ended(End::TimedOut)
            }
            CapsulePhase::CAPSULE_PHASE_STOPPED => Sight::Ended(End::Other),
        };
        let reason = Some(capsule.reason.clone()).filter(|reason| !reason.is_empty());
        let labels = system_labels(capsule);
        Some((id, Self { sight, generation, last_active: capsule.last_active, reason, labels }))
    }

    fn runs(&self) -> bool {
        matches!(self.sight, Sight::Present(Phase::Running, _))
    }
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
                self.reported = all.capsules.iter().filter_map(Report::read).collect();
                self.reconciled = None;
            }
            Some(Event::Changed(capsule)) => self.change(&capsule).await?,
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

    /// Remembers a change before it is recorded: where the store fails, the next reconciliation finds it.
    async fn change(&mut self, capsule: &Capsule) -> Result<(), StoreError> {
        let Some((id, report)) = Report::read(capsule) else { return Ok(()) };
        if matches!(report.sight, Sight::Ended(_)) {
            self.reported.remove(&id);
        } else {
            self.reported.insert(id, report.clone());
        }
        for _ in 0..MOVES {
            let Some(row) = self.app.store.host_capsule(self.host, id).await? else { break };
            // What must be removed again is left to the reconciliation: a destroy may be under way.
            if self.align(row, report.sight, Some(&report)).await? != Aligned::Changed {
                break;
            }
        }
        Ok(())
    }

    async fn reconcile(&mut self) -> Result<(), StoreError> {
        let rows = self.app.store.host_capsules(self.host).await?;
        let reported = &self.reported;
        self.absent.retain(|id, _| !reported.contains_key(id) && rows.iter().any(|row| row.id == *id));
        for row in &rows {
            let report = self.reported.get(&row.id);
            let sight = match report {
                Some(report) => report.sight,
                None => Sight::Absent(self.absent.entry(row.id).or_insert_with(Instant::now).elapsed()),
            };
            if self.align(*row, sight, report).await? == Aligned::Unwanted {
                self.destroy(row.id);
            }
        }
        let strangers: Vec<CapsuleId> =
            self.reported.keys().filter(|id| rows.iter().all(|row| row.id != **id)).copied().collect();
        if !strangers.is_empty() {
            self.app.store.ended_among(&strangers).await?.into_iter().for_each(|id| self.destroy(id));
        }
        self.app.tasks.spawn(templates::remove_left_over(self.app.clone(), self.host));
        self.record_activity().await
    }

    /// Brings a row in line with what the host says.
    async fn align(
        &self,
        mut row: HostCapsule,
        sight: Sight,
        report: Option<&Report>,
    ) -> Result<Aligned, StoreError> {
        let unlabelled = BTreeMap::new();
        let generation = report.map(|report| report.generation);
        for _ in 0..MOVES {
            let cure = decide(&row, sight);
            let (to, generation) = match cure {
                Cure::None => return Ok(Aligned::Settled),
                Cure::Destroy => return Ok(Aligned::Unwanted),
                Cure::Note => {
                    let noted = generation.unwrap_or(row.generation);
                    return self.app.store.note_generation(&row, noted).await.map(Aligned::of);
                }
                Cure::Becomes(to) => (to, generation),
                Cure::Via(to) | Cure::GivenUp(to) => (to, None),
            };
            tell(&row, cure, report);
            let reason = match cure {
                Cure::GivenUp(_) => Some("the host does not have the capsule"),
                _ => report.and_then(|report| report.reason.as_deref()),
            };
            let versions = report.map_or(&unlabelled, |report| &report.labels);
            let step = TakeOver { to, generation, reason, versions };
            if !self.app.store.take_over(&row, step).await? {
                return Ok(Aligned::Changed);
            }
            if !matches!(cure, Cure::Via(_)) {
                return Ok(Aligned::Settled);
            }
            row = HostCapsule { status: to, age: Duration::ZERO, ..row };
        }
        Ok(Aligned::Settled)
    }

    fn destroy(&self, id: CapsuleId) {
        let agent = self.transport.agent();
        self.app.tasks.spawn(async move {
            let request = DestroyCapsuleRequest { id: id.to_string(), ..Default::default() };
            if let Ok(Err(error)) = timeout(DESTROY_TIMEOUT, agent.destroy_capsule(request)).await {
                tracing::warn!(capsule.id = %id, %error, "cannot remove left-over capsule {id}");
            }
        });
    }

    async fn record_activity(&self) -> Result<(), StoreError> {
        let used: Vec<(CapsuleId, OffsetDateTime)> = self
            .reported
            .iter()
            .filter(|(_, report)| report.runs() && report.last_active > 0)
            .filter_map(|(id, report)| {
                Some((*id, OffsetDateTime::from_unix_timestamp(report.last_active).ok()?))
            })
            .collect();
        if used.is_empty() { Ok(()) } else { self.app.store.capsules_active(&used).await }
    }
}

/// How a row stands to what its host says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aligned {
    /// In line, or not yet to be brought there.
    Settled,
    /// Somebody else has changed the row meanwhile.
    Changed,
    /// The host has what should be gone.
    Unwanted,
}

impl Aligned {
    fn of(made: bool) -> Self {
        if made { Self::Settled } else { Self::Changed }
    }
}

fn tell(row: &HostCapsule, cure: Cure, report: Option<&Report>) {
    let (id, from) = (row.id, row.status);
    let reason = report.and_then(|report| report.reason.as_deref()).unwrap_or("as asked");
    match cure {
        Cure::GivenUp(to) => {
            tracing::warn!(capsule.id = %id, "capsule {id} was {from}, but its host does not have it: now {to}");
        }
        Cure::Becomes(to) => {
            tracing::info!(capsule.id = %id, "capsule {id} was {from} and is now {to}: {reason}");
        }
        _ => {}
    }
}
