//! Ids as people type them.

use wrenn_client::{Capsule, CapsuleId, Client};

/// Why a beginning does not name one capsule.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PrefixError {
    #[error("no capsule's id begins with `{0}`")]
    Nobody(String),
    #[error("`{prefix}` is the beginning of {count} ids: {examples}")]
    Several { prefix: String, count: usize, examples: String },
    #[error("an id, or the beginning of one, is missing")]
    Empty,
}

/// How many ids an ambiguity names.
const EXAMPLES: usize = 4;

/// The one id among `ids` that begins with `text`, which may lack the `cl-`.
pub(super) fn by_prefix(
    text: &str,
    ids: impl IntoIterator<Item = CapsuleId>,
) -> Result<CapsuleId, PrefixError> {
    let prefix = text.strip_prefix(CapsuleId::PREFIX).unwrap_or(text);
    if prefix.is_empty() {
        return Err(PrefixError::Empty);
    }
    let fits = |id: &CapsuleId| id.to_string()[CapsuleId::PREFIX.len()..].starts_with(prefix);
    let found: Vec<CapsuleId> = ids.into_iter().filter(fits).collect();
    match found.as_slice() {
        [] => Err(PrefixError::Nobody(text.to_owned())),
        [one] => Ok(*one),
        several => Err(PrefixError::Several {
            prefix: text.to_owned(),
            count: several.len(),
            examples: several.iter().take(EXAMPLES).map(ToString::to_string).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// A whole id, which needs no look at the list.
pub(super) fn whole(text: &str) -> Option<CapsuleId> {
    text.parse().or_else(|_| format!("{}{text}", CapsuleId::PREFIX).parse()).ok()
}

/// The capsule that `text` names.
pub(crate) async fn one(client: &Client, text: &str) -> anyhow::Result<CapsuleId> {
    match whole(text) {
        Some(id) => Ok(id),
        None => Ok(by_prefix(text, client.list().await?.iter().map(|c| c.id))?),
    }
}

/// The capsules that `texts` name, each once; the list is asked for at most once.
pub(super) async fn many(client: &Client, texts: &[String]) -> anyhow::Result<Vec<CapsuleId>> {
    let all: Vec<Capsule> =
        if texts.iter().all(|text| whole(text).is_some()) { Vec::new() } else { client.list().await? };
    let mut found = Vec::new();
    for text in texts {
        let id = match whole(text) {
            Some(id) => id,
            None => by_prefix(text, all.iter().map(|c| c.id))?,
        };
        if !found.contains(&id) {
            found.push(id);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> Vec<CapsuleId> {
        ["abc", "abd", "x00"].map(|start| format!("cl-0{start:0<24}").parse().unwrap()).to_vec()
    }

    #[test]
    fn a_beginning_that_one_capsule_has_names_it() {
        let all = ids();
        assert_eq!(by_prefix("cl-0x", all.clone()), Ok(all[2]));
        assert_eq!(by_prefix("0abd", all.clone()), Ok(all[1]));
        assert_eq!(by_prefix(&all[0].to_string(), all.clone()), Ok(all[0]));
    }

    #[test]
    fn no_or_several_capsules_are_errors_that_say_so() {
        assert_eq!(by_prefix("zz", ids()), Err(PrefixError::Nobody("zz".into())));
        let several = by_prefix("cl-0ab", ids()).unwrap_err().to_string();
        assert!(several.contains("2 ids: cl-0abc"), "{several}");
        assert_eq!(by_prefix("", ids()), Err(PrefixError::Empty));
        assert_eq!(by_prefix("cl-", ids()), Err(PrefixError::Empty));
    }

    #[test]
    fn whole_ids_are_known_without_a_list() {
        let id = ids()[0];
        assert_eq!(whole(&id.to_string()), Some(id));
        assert_eq!(whole(&id.to_string()[3..]), Some(id));
        assert_eq!(whole("cl-0ab"), None);
    }
}
