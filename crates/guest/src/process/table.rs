//! Which processes there are: the live ones, and for a while those that have ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use wrenn_protocol::process::__buffa::oneof::process_selector::Selector;
use wrenn_protocol::process::ProcessSelector;

use super::Process;
use crate::error::{Error, Result};

/// How long an ended process can still be connected to.
const RETENTION: Duration = Duration::from_secs(30);

/// The table. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(Arc<Mutex<HashMap<i32, Arc<Process>>>>);

impl Table {
    /// Adds a process. One that ended earlier under the same number is forgotten.
    pub(super) fn insert(&self, process: Arc<Process>) {
        self.lock().insert(process.pid, process);
    }

    /// Forgets an ended process after [`RETENTION`].
    pub(super) fn retire(&self, process: Arc<Process>) {
        let table = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(RETENTION).await;
            let mut table = table.lock();
            if table.get(&process.pid).is_some_and(|current| Arc::ptr_eq(current, &process)) {
                table.remove(&process.pid);
            }
        });
    }

    /// The live processes, oldest number first.
    pub(super) fn live(&self) -> Vec<Arc<Process>> {
        let mut live: Vec<_> = self.lock().values().filter(|p| !p.ended.is_cancelled()).cloned().collect();
        live.sort_by_key(|process| process.pid);
        live
    }

    /// The process a request means, live or just ended; a live one wins a tag.
    pub(super) fn find(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>> {
        let selector = selector.and_then(|s| s.selector.as_ref());
        let table = self.lock();
        let found = match selector {
            Some(Selector::Pid(pid)) => i32::try_from(*pid).ok().and_then(|pid| table.get(&pid)),
            Some(Selector::Tag(tag)) => table
                .values()
                .filter(|process| process.tag.as_ref() == Some(tag))
                .min_by_key(|process| process.ended.is_cancelled()),
            None => return Err(Error::invalid("the request names no process; give a pid or a tag")),
        };
        found.cloned().ok_or_else(|| unknown(selector))
    }

    /// The process a request means, if it is still running.
    pub(super) fn find_live(&self, selector: Option<&ProcessSelector>) -> Result<Arc<Process>> {
        let process = self.find(selector)?;
        if process.ended.is_cancelled() {
            return Err(unknown(selector.and_then(|s| s.selector.as_ref())));
        }
        Ok(process)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Process>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unknown(selector: Option<&Selector>) -> Error {
    match selector {
        Some(Selector::Pid(pid)) => Error::not_found(format!("process with pid {pid} not found")),
        Some(Selector::Tag(tag)) => Error::not_found(format!("process with tag {tag} not found")),
        None => Error::not_found("process not found"),
    }
}
