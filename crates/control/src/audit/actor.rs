//! Who acts.

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use wrenn_core::{ApiKeyId, UserId};

/// Who acts, with the name that they had at the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// A person.
    User {
        /// Their account.
        id: UserId,
        /// What they call themselves.
        name: String,
    },
    /// A program with a team's key.
    ApiKey {
        /// The key's row.
        id: ApiKeyId,
        /// The key's name.
        name: String,
    },
    /// The platform itself, or whoever commands it on its own machine.
    System,
}

/// The form in which an actor is kept beside the change that it asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StoredActor {
    #[serde(rename = "type")]
    kind: String,
    id: Uuid,
    name: String,
}

impl Actor {
    /// `user`, `api_key` or `system`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::User { .. } => "user",
            Self::ApiKey { .. } => "api_key",
            Self::System => "system",
        }
    }

    /// The row of the account or the key.
    pub const fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::User { id, .. } => Some(id.uuid()),
            Self::ApiKey { id, .. } => Some(id.uuid()),
            Self::System => None,
        }
    }

    /// The name that goes into the log.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::User { name, .. } | Self::ApiKey { name, .. } => Some(name),
            Self::System => None,
        }
    }

    /// What to keep beside a change that this actor asked for; nothing for the platform.
    pub(crate) fn stored(&self) -> Option<StoredActor> {
        let (id, name) = (self.uuid()?, self.name()?.to_owned());
        Some(StoredActor { kind: self.kind().to_owned(), id, name })
    }
}

impl From<Option<StoredActor>> for Actor {
    fn from(stored: Option<StoredActor>) -> Self {
        match stored {
            Some(StoredActor { kind, id, name }) if kind == "user" => {
                Self::User { id: UserId::from_uuid(id), name }
            }
            Some(StoredActor { kind, id, name }) if kind == "api_key" => {
                Self::ApiKey { id: ApiKeyId::from_uuid(id), name }
            }
            _ => Self::System,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_is_read_back_as_it_was_stored() {
        let actors = [
            Actor::User { id: UserId::random(), name: "Ada".into() },
            Actor::ApiKey { id: ApiKeyId::random(), name: "ci".into() },
            Actor::System,
        ];
        for actor in actors {
            let json = serde_json::to_string(&actor.stored()).unwrap();
            let read: Option<StoredActor> = serde_json::from_str(&json).unwrap();
            assert_eq!(Actor::from(read), actor);
        }
    }
}
