//! Mail on its way.
//!
//! A letter is stored, sealed, in the transaction that it tells of, and delivered from there: a mail server that is away
//! holds nobody up, and a crash loses no letter. Any replica delivers; a letter that cannot be delivered for good, or whose
//! link has ended meanwhile, is dropped.

use std::time::Duration;

use futures::future::join_all;
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;
use wrenn_mail::{Letter, Mailer};

use crate::state::App;
use crate::store::{DueMail, NewMail, StoreError, mail_place};
use crate::vault::{Vault, VaultError};

/// Letters taken at a time.
const BATCH: i64 = 8;
/// For how long nobody else takes a letter that is being delivered, in seconds: longer than any delivery takes.
const LEASE: f64 = 120.0;
/// How often the queue is looked at, unless a letter is posted here.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pauses before the second and each later attempt, in seconds; the last one repeats.
const PAUSES: [f64; 5] = [5.0, 15.0, 60.0, 300.0, 900.0];

/// Seals letters and wakes whoever delivers them.
#[derive(Debug)]
pub(crate) struct Post {
    mailer: Option<Mailer>,
    posted: Notify,
}

/// A letter that can be stored.
#[derive(Debug)]
pub(crate) struct SealedLetter {
    id: Uuid,
    recipient: String,
    kind: &'static str,
    letter: String,
    expires_at: OffsetDateTime,
}

impl SealedLetter {
    pub(crate) fn as_new(&self) -> NewMail<'_> {
        NewMail {
            id: self.id,
            recipient: &self.recipient,
            kind: self.kind,
            letter: &self.letter,
            expires_at: self.expires_at,
        }
    }
}

impl Post {
    pub(crate) fn new(mailer: Option<Mailer>) -> Self {
        Self { mailer, posted: Notify::new() }
    }

    /// A letter to store. Nothing where no mail is sent, or where it cannot be sealed: that must not keep anybody from
    /// what the letter only tells of.
    pub(crate) fn seal(
        &self,
        vault: &Vault,
        to: &str,
        letter: &Letter,
        life: time::Duration,
    ) -> Option<SealedLetter> {
        let kind = letter.kind();
        if self.mailer.is_none() {
            tracing::info!(recipient = to, kind, "a mail is not sent: no mail server is configured");
            return None;
        }
        let id = Uuid::new_v4();
        let sealed = serde_json::to_vec(letter)
            .map_err(|_| VaultError::Seal)
            .and_then(|text| vault.seal(&mail_place(id), &text));
        match sealed {
            Ok(letter) => Some(SealedLetter {
                id,
                recipient: to.to_owned(),
                kind,
                letter,
                expires_at: OffsetDateTime::now_utc() + life,
            }),
            Err(error) => {
                tracing::error!(%error, recipient = to, kind, "a mail is not sent");
                None
            }
        }
    }

    /// Says that there is a letter in the store.
    pub(crate) fn nudge(&self) {
        self.posted.notify_one();
    }
}

/// Delivers letters until shutdown.
pub(crate) async fn deliver(app: App) {
    let Some(mailer) = &app.post.mailer else { return };
    while !app.shutdown.is_cancelled() {
        match batch(&app, mailer).await {
            // There may be more.
            Ok(delivered) if delivered > 0 => continue,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot look for mail"),
        }
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.post.posted.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Delivers what is due, side by side, so that all of it is done before the lease ends.
async fn batch(app: &App, mailer: &Mailer) -> Result<usize, StoreError> {
    let due = app.store.claim_mails(BATCH, LEASE).await?;
    // All of them to the end, whatever becomes of one: a letter that is broken off may have been sent.
    for sent in join_all(due.iter().map(|mail| one(app, mailer, mail))).await {
        sent?;
    }
    Ok(due.len())
}

async fn one(app: &App, mailer: &Mailer, mail: &DueMail) -> Result<(), StoreError> {
    let (recipient, kind, attempts) = (&mail.recipient, &mail.kind, mail.attempts);
    if mail.expires_at <= OffsetDateTime::now_utc() {
        tracing::error!(recipient, kind, attempts, "a mail could not be delivered in time and is given up");
        return app.store.mail_done(mail.id).await;
    }
    let letter = app.vault.open(&mail_place(mail.id), &mail.letter);
    let letter = letter.map(|text| serde_json::from_slice::<Letter>(&text));
    let error = match letter {
        Ok(Ok(letter)) => match mailer.send(recipient, &letter).await {
            Ok(()) => {
                tracing::info!(recipient, kind, attempts, "a mail was delivered");
                return app.store.mail_done(mail.id).await;
            }
            Err(error) if error.is_permanent() => {
                tracing::error!(error = chain(&error), recipient, kind, "a mail is refused and given up");
                return app.store.mail_done(mail.id).await;
            }
            Err(error) => chain(&error),
        },
        Ok(Err(_)) => "a newer version of this server has written it".to_owned(),
        // A replica with another key may open it.
        Err(error) => error.to_string(),
    };
    let attempt = usize::try_from(attempts.max(1) - 1).unwrap_or_default();
    let wait = PAUSES[attempt.min(PAUSES.len() - 1)];
    tracing::warn!(error, recipient, kind, attempts, "a mail was not delivered; trying again in {wait} s");
    app.store.retry_mail(mail.id, wait).await
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
