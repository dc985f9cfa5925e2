//! The indexes of the large tables, which are filled without them.
//!
//! What is made again is what the catalogue said before, to the letter: the migrations stay the only place where an
//! index is defined.

use anyhow::ensure;
use sqlx::{AssertSqlSafe, PgConnection, Row};

/// Those of the large tables that no foreign key needs, as statements that remove and that make them.
const DEFINITIONS: &str = "\
    select case when own.oid is null then format('drop index %s', i.indexrelid::regclass) \
            else format('alter table %s drop constraint %I', i.indrelid::regclass, own.conname) end as remove, \
        case when own.oid is null then pg_get_indexdef(i.indexrelid) \
            else format('alter table %s add constraint %I %s', i.indrelid::regclass, own.conname, \
                pg_get_constraintdef(own.oid)) end as make \
    from pg_index i left join pg_constraint own on own.conindid = i.indexrelid and own.contype in ('p', 'u') \
    where i.indrelid in ('audit_logs'::regclass, 'capsules'::regclass) \
        and not exists (select from pg_constraint needs where needs.conindid = i.indexrelid and needs.contype = 'f') \
    order by i.indrelid, i.indexrelid";

/// All there are, by name.
const ALL: &str = "select indexdef from pg_indexes where schemaname = 'public' order by indexname";

/// Indexes that were removed.
#[derive(Debug)]
pub(super) struct Removed {
    makes: Vec<String>,
    before: Vec<String>,
}

impl Removed {
    /// Removes them.
    pub(super) async fn from(connection: &mut PgConnection) -> anyhow::Result<Self> {
        let before = all(connection).await?;
        let mut makes = Vec::new();
        for row in sqlx::query(DEFINITIONS).fetch_all(&mut *connection).await? {
            let remove: String = row.try_get("remove")?;
            sqlx::raw_sql(AssertSqlSafe(remove)).execute(&mut *connection).await?;
            makes.push(row.try_get("make")?);
        }
        Ok(Self { makes, before })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.makes.len()
    }

    /// Makes them again.
    pub(super) async fn restore(self, connection: &mut PgConnection) -> anyhow::Result<()> {
        for make in self.makes {
            sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *connection).await?;
        }
        ensure!(
            all(connection).await? == self.before,
            "the indexes are not those of the migrations any more"
        );
        Ok(())
    }
}

async fn all(connection: &mut PgConnection) -> anyhow::Result<Vec<String>> {
    Ok(sqlx::query_scalar(ALL).fetch_all(connection).await?)
}
