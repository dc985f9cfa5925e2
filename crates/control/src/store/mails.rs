//! Letters on their way.

use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Store, StoreError};

/// A letter about to be posted, sealed.
#[derive(Debug)]
pub struct NewMail<'a> {
    /// Its id, to which the seal is bound.
    pub id: Uuid,
    /// The address.
    pub recipient: &'a str,
    /// What kind of letter it is, for logs.
    pub kind: &'a str,
    /// The sealed letter.
    pub letter: &'a str,
    /// When it is not worth sending any more.
    pub expires_at: OffsetDateTime,
}

/// A letter to deliver.
#[derive(Debug, Clone)]
pub struct DueMail {
    /// Its id.
    pub id: Uuid,
    /// The address.
    pub recipient: String,
    /// What kind of letter it is, for logs.
    pub kind: String,
    /// The sealed letter.
    pub letter: String,
    /// Attempts so far, this one included.
    pub attempts: i32,
    /// When it is not worth sending any more.
    pub expires_at: OffsetDateTime,
}

/// Posts a letter as a part of what it tells of.
pub(super) async fn post(connection: &mut PgConnection, mail: &NewMail<'_>) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into mails (id, recipient, kind, letter, expires_at) values ($1, $2, $3, $4, $5)",
        mail.id,
        mail.recipient,
        mail.kind,
        mail.letter,
        mail.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

impl Store {
    /// Letters that are due, `most` at most; nobody else gets them for `lease` seconds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn claim_mails(&self, most: i64, lease: f64) -> Result<Vec<DueMail>, StoreError> {
        Ok(sqlx::query_as!(
            DueMail,
            "update mails set attempts = attempts + 1, due_at = now() + make_interval(secs => $2) \
             where id in (select id from mails where due_at <= now() order by due_at limit $1 for update skip locked) \
             returning id, recipient, kind, letter, attempts, expires_at",
            most,
            lease
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Forgets a letter that was delivered or given up.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn mail_done(&self, id: Uuid) -> Result<(), StoreError> {
        sqlx::query!("delete from mails where id = $1", id).execute(&self.pool).await?;
        Ok(())
    }

    /// Forgets letters that are not worth sending any more, also where nobody delivers; how many there were.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn sweep_mails(&self) -> Result<u64, StoreError> {
        let done = sqlx::query!("delete from mails where expires_at < now()").execute(&self.pool).await?;
        Ok(done.rows_affected())
    }

    /// Makes a letter due again after `wait` seconds.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn retry_mail(&self, id: Uuid, wait: f64) -> Result<(), StoreError> {
        sqlx::query!("update mails set due_at = now() + make_interval(secs => $2) where id = $1", id, wait)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Seals every stored secret anew; how many there were. `reseal` gets the place of a secret and its sealed form, and
    /// answers `None` where it need not change.
    ///
    /// # Errors
    /// [`StoreError`], or what `reseal` fails with; nothing has changed then.
    pub async fn reseal<E: From<StoreError>>(
        &self,
        reseal: impl Fn(&str, &str) -> Result<Option<String>, E>,
    ) -> Result<u64, E> {
        let mut tx = self.pool.begin().await.map_err(StoreError::from)?;
        let rows = sqlx::query!("select id, letter from mails for update")
            .fetch_all(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        let mut changed = 0;
        for row in rows {
            let Some(letter) = reseal(&mail_place(row.id), &row.letter)? else { continue };
            sqlx::query!("update mails set letter = $2 where id = $1", row.id, letter)
                .execute(&mut *tx)
                .await
                .map_err(StoreError::from)?;
            changed += 1;
        }
        tx.commit().await.map_err(StoreError::from)?;
        Ok(changed)
    }
}

/// The place of a letter, to which its seal is bound.
pub(crate) fn mail_place(id: Uuid) -> String {
    format!("mails/{id}")
}
