//! Booting a template once, to save it.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use wrenn_core::CapsuleId;

use super::{Key, Warm};
use crate::capsule::{SnapshotPlan, Start};
use crate::environment::Environment;
use crate::record::CapsuleSpec;

/// Machines that will be made of it: more than can be told.
const MANY: u32 = 1 << 16;

/// Boots a machine that belongs to nobody, saves it, and removes it again.
pub(super) async fn make(warm: &Arc<Warm>, env: &Arc<Environment>, key: &Key) -> anyhow::Result<()> {
    let staged = env.staging.make().context("cannot make a staging directory")?;
    let plan = SnapshotPlan { dir: staged.path().to_owned(), uses: MANY };
    let saved = Start::seed(Arc::clone(env), spec(key), plan).await?;
    let (warm, env, key) = (Arc::clone(warm), Arc::clone(env), key.clone());
    Ok(crate::blocking(move || warm.publish(&env, &key, staged, &saved)).await?)
}

/// A machine of nobody.
pub(super) fn spec(key: &Key) -> CapsuleSpec {
    CapsuleSpec {
        id: CapsuleId::random(),
        template_path: key.template.clone(),
        template_name: String::new(),
        shape: key.shape(),
        timeout_sec: 0,
        default_user: String::new(),
        default_env: BTreeMap::new(),
    }
}
