//! Connections that stay at hand between the reads of requests.
//!
//! The pool asks each connection that comes back whether it still lives: a second exchange with the server for each
//! query, felt where the query is a read by an index. A read that has gone well needs no asking: its connection stays
//! here, and the next read takes the one that was used last. Whatever has not gone well, was interrupted or has been
//! idle goes back to the pool, which asks as ever.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, PgPool, Postgres};

use super::{StoreError, TRUSTED_IDLE};

/// Most connections that are kept. The rest of the pool is for whoever else wants one, and for more reads than these.
const MOST: usize = 4;

/// The kept connections of a pool; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pool: PgPool,
    idle: Arc<Idle>,
}

#[derive(Debug, Default)]
struct Idle(Mutex<Vec<(PoolConnection<Postgres>, Instant)>>);

impl Idle {
    fn lock(&self) -> MutexGuard<'_, Vec<(PoolConnection<Postgres>, Instant)>> {
        // A panic in between leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection that was used last. Where even that one has been idle, all go back to the pool.
    fn newest(&self) -> Option<PoolConnection<Postgres>> {
        let mut idle = self.lock();
        let (connection, since) = idle.pop()?;
        if since.elapsed() < TRUSTED_IDLE {
            return Some(connection);
        }
        idle.clear();
        None
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // The way back to the pool is a task, for which there may be no runtime any more.
        for (connection, _) in self.lock().drain(..) {
            drop(connection.detach());
        }
    }
}

impl Kept {
    pub(super) fn new(pool: PgPool) -> Self {
        Self { pool, idle: Arc::default() }
    }

    /// The connection that was used last, or one of the pool.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(super) async fn take(&self) -> Result<Reading, StoreError> {
        let connection = match self.idle.newest() {
            Some(connection) => connection,
            None => self.pool.acquire().await?,
        };
        Ok(Reading { connection, kept: self.clone() })
    }

    /// Gives all connections back to the pool.
    pub(super) fn clear(&self) {
        self.idle.lock().clear();
    }
}

/// A connection for one read. It is kept for the next one where [`Reading::done`] says that the read went well.
#[derive(Debug)]
pub(super) struct Reading {
    connection: PoolConnection<Postgres>,
    kept: Kept,
}

impl Deref for Reading {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.connection
    }
}

impl DerefMut for Reading {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.connection
    }
}

impl Reading {
    pub(super) fn done(self) {
        let mut idle = self.kept.idle.lock();
        // Under the lock, so that none is put back after the last clearing of a pool that closes.
        if idle.len() < MOST && !self.kept.pool.is_closed() {
            idle.push((self.connection, Instant::now()));
        }
    }
}
