//! Templates.

use std::collections::BTreeMap;

use uuid::Uuid;
use wrenn_core::TeamId;

use super::{Store, StoreError};

/// A template as far as a capsule made from it needs to know.
#[derive(Debug, Clone)]
pub struct TemplateRow {
    /// The owning team.
    pub team: TeamId,
    /// The template within the team.
    pub id: Uuid,
    /// Least capacity in MiB of a disk that holds it.
    pub disk_mb: u32,
    /// Linux user of its processes.
    pub default_user: String,
    /// Variables of its processes.
    pub default_env: BTreeMap<String, String>,
}

impl Store {
    /// The template that `name` means to `team`: its own first, then the platform's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn template(&self, team: TeamId, name: &str) -> Result<Option<TemplateRow>, StoreError> {
        let row = sqlx::query!(
            r#"select team_id, id, disk_mb, default_user,
                default_env as "default_env: sqlx::types::Json<BTreeMap<String, String>>"
            from templates where name = $2 and (team_id = $1 or team_id = $3) order by (team_id = $1) desc limit 1"#,
            team.uuid(),
            name,
            Uuid::nil()
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(TemplateRow {
                team: TeamId::from_uuid(row.team_id),
                id: row.id,
                disk_mb: u32::try_from(row.disk_mb).map_err(|_| StoreError::Corrupt("template size"))?,
                default_user: row.default_user,
                default_env: row.default_env.0,
            })
        })
        .transpose()
    }
}
