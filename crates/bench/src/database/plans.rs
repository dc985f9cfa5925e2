//! How PostgreSQL does what the platform asks of it, and what the bare queries ask.

use std::io::{Read, Seek, SeekFrom};

use super::bare::Bare;
use super::cluster::Cluster;
use super::data::Own;
use super::pages::Page;
use super::platform::Platform;

/// New connections say how each statement was done.
const TELL: &str = "alter role postgres set session_preload_libraries = 'auto_explain'; \
    alter role postgres set auto_explain.log_min_duration = 0; \
    alter role postgres set auto_explain.log_analyze = on; \
    alter role postgres set auto_explain.log_buffers = on";
/// After so many executions it is settled whether the plan of a statement goes by its parameters.
const SETTLED: usize = 10;

/// Prints both sides of all pages.
pub(super) async fn print(cluster: &Cluster, pages: &[Page], own: Own) -> anyhow::Result<()> {
    sqlx::raw_sql(TELL).execute(&mut cluster.connect().await?).await?;
    let platform = Platform::start(cluster.url()).await?;
    let client = platform.client(own).await?;
    let bare = Bare::new(cluster.connect().await?);
    for page in pages {
        for _ in 0..SETTLED {
            client.get(page.who, &page.path).await?;
        }
        let from = std::fs::metadata(cluster.log())?.len();
        client.get(page.who, &page.path).await?;
        println!("# {}\n\nAPI:\n{}", page.name, since(cluster, from)?);
        for query in &page.bare {
            println!("bare:\n{}\n", bare.explain(query).await?);
        }
    }
    platform.close().await
}

/// What the server has said since the log was this long.
fn since(cluster: &Cluster, from: u64) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(cluster.log())?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}
