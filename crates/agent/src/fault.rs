//! Points at which tests let the agent die.
//!
//! With the feature `faults`, an agent whose environment has `WRENN_FAULT` set to a point's name kills itself with SIGKILL
//! when it gets there. Without the feature the calls are nothing.

/// Every point, by what is under way, in the order in which an agent may reach them.
pub const POINTS: &[&str] = &[
    "pause.begun",
    "pause.prepared",
    "pause.stopped",
    "pause.memory",
    "pause.devices",
    "pause.synced",
    "pause.committed",
    "pause.released",
    "resume.begun",
    "resume.disk",
    "resume.slot",
    "resume.started",
    "resume.loaded",
    "resume.running",
    "resume.ready",
    "resume.committed",
    "snapshot.copied",
    "snapshot.stopped",
    "snapshot.memory",
    "snapshot.devices",
    "snapshot.switched",
    "snapshot.continued",
    "snapshot.flat",
    "snapshot.described",
    "snapshot.published",
    "fork.saved",
    "fork.linked",
    "tidy.merged",
    "tidy.rebased",
    "tidy.flattened",
    "tidy.committed",
    "start.acquired",
    "start.launched",
    "spare.claimed",
    "spare.recorded",
    "spare.moved",
    "blank.claimed",
    "blank.recorded",
    "blank.moved",
    "blank.emptied",
];

/// Dies here if a test wants so.
#[cfg(feature = "faults")]
pub(crate) fn point(name: &'static str) {
    debug_assert!(POINTS.contains(&name), "{name} is not in the list of points");
    if std::env::var("WRENN_FAULT").is_ok_and(|wanted| wanted == name) {
        let _never_returns =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// Nothing.
#[cfg(not(feature = "faults"))]
pub(crate) const fn point(_name: &'static str) {}
