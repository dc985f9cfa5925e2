//! Templates as capsules are made from them and as people see them.

use std::collections::BTreeMap;

use sqlx::types::Json;
use time::OffsetDateTime;
use uuid::Uuid;
use wrenn_core::{HostId, TeamId, TemplateShape};

use super::{Store, StoreError};

/// A template as far as a capsule made from it needs to know.
#[derive(Debug, Clone)]
pub struct TemplateRow {
    /// The owning team.
    pub team: TeamId,
    /// The template within the team.
    pub id: Uuid,
    /// Where its files are; `None` where every host has them.
    pub host: Option<HostId>,
    /// What it asks of the sizes of a capsule.
    pub shape: TemplateShape,
    /// Linux user of its processes.
    pub default_user: String,
    /// Variables of its processes.
    pub default_env: BTreeMap<String, String>,
}

/// A template as people see it.
#[derive(Debug, Clone)]
pub struct TemplateInfo {
    /// The owning team.
    pub team: TeamId,
    /// Its name.
    pub name: String,
    /// `base` or `snapshot`.
    pub kind: String,
    /// vCPUs of every capsule made from it.
    pub vcpus: Option<i64>,
    /// Memory in MiB of every capsule made from it.
    pub memory_mb: Option<i64>,
    /// Bytes that it takes on a host; 0 where not measured.
    pub size_bytes: i64,
    /// Whether it can never be deleted.
    pub protected: bool,
    /// Labels.
    pub metadata: BTreeMap<String, String>,
    /// When it was finished.
    pub created_at: OffsetDateTime,
}

struct TemplateRecord {
    team_id: Uuid,
    id: Uuid,
    host_id: Option<Uuid>,
    kind: String,
    vcpus: Option<i64>,
    memory_mb: Option<i64>,
    disk_mb: i64,
    default_user: String,
    default_env: Json<BTreeMap<String, String>>,
}

impl TemplateRecord {
    fn read(self) -> Result<TemplateRow, StoreError> {
        let size = |value: i64| u32::try_from(value).map_err(|_| StoreError::Corrupt("template size"));
        let fixed = match (self.kind.as_str(), self.vcpus, self.memory_mb) {
            ("snapshot", Some(vcpus), Some(memory_mb)) => Some((size(vcpus)?, size(memory_mb)?)),
            ("snapshot", ..) => return Err(StoreError::Corrupt("snapshot size")),
            _ => None,
        };
        Ok(TemplateRow {
            team: TeamId::from_uuid(self.team_id),
            id: self.id,
            host: self.host_id.map(HostId::from_uuid),
            shape: TemplateShape { disk_mb: size(self.disk_mb)?, fixed },
            default_user: self.default_user,
            default_env: self.default_env.0,
        })
    }
}

struct Listed {
    team_id: Uuid,
    name: String,
    kind: String,
    vcpus: Option<i64>,
    memory_mb: Option<i64>,
    size_bytes: i64,
    protected: bool,
    metadata: Json<BTreeMap<String, String>>,
    created_at: OffsetDateTime,
}

impl Store {
    /// The template that `name` means to `team`: its own first, then the platform's.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn template(&self, team: TeamId, name: &str) -> Result<Option<TemplateRow>, StoreError> {
        let row = sqlx::query_as!(
            TemplateRecord,
            r#"select team_id, id, host_id, kind, vcpus, memory_mb, disk_mb, default_user,
                default_env as "default_env: Json<BTreeMap<String, String>>"
            from templates where name = $2 and state = 'active' and (team_id = $1 or team_id = $3)
            order by (team_id = $1) desc limit 1"#,
            team.uuid(),
            name,
            Uuid::nil()
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(TemplateRecord::read).transpose()
    }

    /// The finished templates of a team and of the platform, newest first; all, or those of one kind.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn templates(&self, team: TeamId, kind: Option<&str>) -> Result<Vec<TemplateInfo>, StoreError> {
        self.templates_where(Some(team), kind).await
    }

    /// Those of one team and the platform, or of all teams.
    pub(super) async fn templates_where(
        &self,
        team: Option<TeamId>,
        kind: Option<&str>,
    ) -> Result<Vec<TemplateInfo>, StoreError> {
        let rows = sqlx::query_as!(
            Listed,
            r#"select team_id, name, kind, vcpus, memory_mb, size_bytes, protected, created_at,
                metadata as "metadata: Json<BTreeMap<String, String>>"
            from templates
            where state = 'active' and ($1::uuid is null or team_id in ($1, $2)) and ($3::text is null or kind = $3)
            order by created_at desc, name"#,
            team.map(TeamId::uuid),
            Uuid::nil(),
            kind
        )
        .fetch_all(&self.pool)
        .await?;
        let info = |row: Listed| TemplateInfo {
            team: TeamId::from_uuid(row.team_id),
            name: row.name,
            kind: row.kind,
            vcpus: row.vcpus,
            memory_mb: row.memory_mb,
            size_bytes: row.size_bytes,
            protected: row.protected,
            metadata: row.metadata.0,
            created_at: row.created_at,
        };
        Ok(rows.into_iter().map(info).collect())
    }

    /// Whether the platform has a template of this name that is built in.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_protected(&self, name: &str) -> Result<bool, StoreError> {
        let found = sqlx::query_scalar!(
            r#"select exists (select from templates where team_id = $1 and name = $2 and protected) as "found!""#,
            Uuid::nil(),
            name
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(found)
    }

    /// Whether the platform has a template of this name.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn is_platform_template(&self, name: &str) -> Result<bool, StoreError> {
        let found = sqlx::query_scalar!(
            r#"select exists (select from templates where team_id = $1 and name = $2) as "found!""#,
            Uuid::nil(),
            name
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(found)
    }
}
