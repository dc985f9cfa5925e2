//! The deeds that are recorded, as the contract's table lists them.

use serde_json::{Map, Value, json};
use wrenn_core::{ApiKeyId, CapsuleId, TeamId, UserId};

use super::Actor;

/// Who may read an entry: every member, or those who administer the team.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every member of the team.
    Team,
    /// Admins and owners of the team; administrators of the platform.
    Admin,
}

impl Scope {
    /// The name in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Team => "team",
            Self::Admin => "admin",
        }
    }
}

/// How a deed ended, or how grave it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It worked.
    Success,
    /// It worked and is of little weight.
    Info,
    /// It worked and took something away.
    Warning,
    /// It failed.
    Error,
}

impl Status {
    /// The name in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// A kind of deed: what was acted on and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// What was acted on.
    pub resource: &'static str,
    /// What was done.
    pub action: &'static str,
    /// Who may read of it.
    pub scope: Scope,
    /// How it is marked where it worked.
    pub status: Status,
}

macro_rules! kinds {
    ($($name:ident = $resource:literal $action:literal $scope:ident $status:ident;)*) => {
        $(const $name: Kind = Kind {
            resource: $resource, action: $action, scope: Scope::$scope, status: Status::$status,
        };)*
        /// Every kind of deed that can be in a log.
        pub const KINDS: &[Kind] = &[$($name),*];
    };
}

kinds! {
    CAPSULE_CREATE = "sandbox" "create" Team Success;
    CAPSULE_PAUSE = "sandbox" "pause" Team Success;
    CAPSULE_RESUME = "sandbox" "resume" Team Success;
    CAPSULE_DESTROY = "sandbox" "destroy" Team Warning;
    CAPSULE_ERROR = "sandbox" "error" Team Error;
    CAPSULE_SNAPSHOT = "sandbox" "snapshot" Team Info;
    SNAPSHOT_CREATE = "snapshot" "create" Team Success;
    SNAPSHOT_DELETE = "snapshot" "delete" Team Warning;
    TEAM_RENAME = "team" "rename" Team Info;
    KEY_CREATE = "api_key" "create" Team Success;
    KEY_REVOKE = "api_key" "revoke" Team Warning;
    MEMBER_ADD = "member" "add" Admin Success;
    MEMBER_REMOVE = "member" "remove" Admin Warning;
    MEMBER_LEAVE = "member" "leave" Admin Info;
    MEMBER_ROLE = "member" "role_update" Admin Info;
    USER_ACTIVATE = "user" "activate" Admin Success;
    USER_DEACTIVATE = "user" "deactivate" Admin Warning;
    USER_GRANT = "user" "grant_admin" Admin Success;
    USER_REVOKE = "user" "revoke_admin" Admin Warning;
    TEAM_BYOC = "team" "set_byoc" Admin Info;
    TEAM_DELETE = "team" "delete" Admin Warning;
    TEMPLATE_DELETE = "template" "delete" Admin Warning;
}

/// What becomes of a capsule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CapsuleAct {
    /// It was asked for.
    Create,
    /// By request, or because nobody used it.
    Pause,
    /// By request.
    Resume,
    /// By request, or because it could not be paused.
    Destroy,
    /// It was lost, and the platform noticed.
    Error,
    /// It was left in the middle of a snapshot, and the platform put it right.
    Snapshot,
}

/// Something that was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed<'a> {
    /// To a capsule.
    Capsule {
        /// The capsule.
        id: CapsuleId,
        /// What.
        act: CapsuleAct,
        /// The template it was made from, by name.
        template: &'a str,
        /// The state it was in before, where the platform had to put it right.
        phase: Option<&'a str>,
        /// Why.
        reason: Option<&'a str>,
    },
    /// A template was made of a capsule.
    SnapshotCreate {
        /// Its name.
        name: &'a str,
    },
    /// A team's template was deleted.
    SnapshotDelete {
        /// Its name.
        name: &'a str,
    },
    /// A team has another name.
    TeamRename {
        /// The team.
        team: TeamId,
        /// What it was called.
        old: &'a str,
        /// What it is called.
        new: &'a str,
    },
    /// A key was made.
    KeyCreate {
        /// Its row.
        id: ApiKeyId,
        /// Its name.
        name: &'a str,
    },
    /// A key was ended.
    KeyRevoke {
        /// Its row.
        id: ApiKeyId,
        /// Its name.
        name: &'a str,
    },
    /// Somebody is a member now.
    MemberAdd {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
        /// As what.
        role: &'a str,
    },
    /// Somebody is no member any more.
    MemberRemove {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// Somebody left.
    MemberLeave {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// Somebody has another role.
    MemberRole {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
        /// The new role.
        role: &'a str,
    },
    /// An account works (again).
    UserActivate {
        /// Whose.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// An account works no more.
    UserDeactivate {
        /// Whose.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// Somebody administers the platform now.
    UserGrant {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// Somebody administers the platform no more.
    UserRevoke {
        /// Who.
        user: UserId,
        /// Their address.
        email: &'a str,
    },
    /// A team brings its own hosts.
    TeamByoc {
        /// The team.
        team: TeamId,
    },
    /// A team is gone.
    TeamDelete {
        /// The team.
        team: TeamId,
    },
    /// A template of the platform is gone.
    TemplateDelete {
        /// Its name.
        name: &'a str,
    },
}

impl Deed<'_> {
    /// Which kind it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Capsule { act, .. } => match act {
                CapsuleAct::Create => CAPSULE_CREATE,
                CapsuleAct::Pause => CAPSULE_PAUSE,
                CapsuleAct::Resume => CAPSULE_RESUME,
                CapsuleAct::Destroy => CAPSULE_DESTROY,
                CapsuleAct::Error => CAPSULE_ERROR,
                CapsuleAct::Snapshot => CAPSULE_SNAPSHOT,
            },
            Self::SnapshotCreate { .. } => SNAPSHOT_CREATE,
            Self::SnapshotDelete { .. } => SNAPSHOT_DELETE,
            Self::TeamRename { .. } => TEAM_RENAME,
            Self::KeyCreate { .. } => KEY_CREATE,
            Self::KeyRevoke { .. } => KEY_REVOKE,
            Self::MemberAdd { .. } => MEMBER_ADD,
            Self::MemberRemove { .. } => MEMBER_REMOVE,
            Self::MemberLeave { .. } => MEMBER_LEAVE,
            Self::MemberRole { .. } => MEMBER_ROLE,
            Self::UserActivate { .. } => USER_ACTIVATE,
            Self::UserDeactivate { .. } => USER_DEACTIVATE,
            Self::UserGrant { .. } => USER_GRANT,
            Self::UserRevoke { .. } => USER_REVOKE,
            Self::TeamByoc { .. } => TEAM_BYOC,
            Self::TeamDelete { .. } => TEAM_DELETE,
            Self::TemplateDelete { .. } => TEMPLATE_DELETE,
        }
    }

    /// Id or name of what was acted on.
    pub fn resource_id(&self) -> String {
        match self {
            Self::Capsule { id, .. } => id.to_string(),
            Self::SnapshotCreate { name } | Self::SnapshotDelete { name } | Self::TemplateDelete { name } => {
                (*name).to_owned()
            }
            Self::TeamRename { team, .. } | Self::TeamByoc { team } | Self::TeamDelete { team } => {
                team.to_string()
            }
            Self::KeyCreate { id, .. } | Self::KeyRevoke { id, .. } => id.to_string(),
            Self::MemberAdd { user, .. }
            | Self::MemberRemove { user, .. }
            | Self::MemberLeave { user, .. }
            | Self::MemberRole { user, .. }
            | Self::UserActivate { user, .. }
            | Self::UserDeactivate { user, .. }
            | Self::UserGrant { user, .. }
            | Self::UserRevoke { user, .. } => user.to_string(),
        }
    }

    /// What else is worth knowing.
    pub fn metadata(&self) -> Map<String, Value> {
        let value = match self {
            Self::Capsule { template, phase, reason, .. } => {
                json!({ "template": template, "phase": phase, "reason": reason })
            }
            Self::TeamRename { old, new, .. } => json!({ "old_name": old, "new_name": new }),
            Self::KeyCreate { name, .. } | Self::KeyRevoke { name, .. } => json!({ "name": name }),
            Self::MemberAdd { email, role, .. } => json!({ "email": email, "role": role }),
            Self::MemberRole { email, role, .. } => json!({ "email": email, "new_role": role }),
            Self::MemberRemove { email, .. }
            | Self::MemberLeave { email, .. }
            | Self::UserActivate { email, .. }
            | Self::UserDeactivate { email, .. }
            | Self::UserGrant { email, .. }
            | Self::UserRevoke { email, .. } => json!({ "email": email }),
            Self::TeamByoc { .. } => json!({ "enabled": true }),
            Self::SnapshotCreate { .. }
            | Self::SnapshotDelete { .. }
            | Self::TeamDelete { .. }
            | Self::TemplateDelete { .. } => json!({}),
        };
        let fields = match value {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        fields.into_iter().filter(|(_, value)| !value.is_null()).collect()
    }
}

/// A deed, in whose log it is and who did it.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    /// The team whose log it is; the platform's for what administrators do.
    pub team: TeamId,
    /// Who did it.
    pub actor: &'a Actor,
    /// What was done.
    pub deed: Deed<'a>,
    /// Why it failed, where it did.
    pub failure: Option<&'a str>,
}

impl<'a> Entry<'a> {
    /// An entry of a team's log about something that worked.
    pub const fn new(team: TeamId, actor: &'a Actor, deed: Deed<'a>) -> Self {
        Self { team, actor, deed, failure: None }
    }

    /// An entry of the platform's log about something that worked.
    pub const fn of_platform(actor: &'a Actor, deed: Deed<'a>) -> Self {
        Self::new(TeamId::PLATFORM, actor, deed)
    }

    /// How it is marked.
    pub fn status(&self) -> Status {
        if self.failure.is_some() {
            return Status::Error;
        }
        match (&self.deed, self.actor) {
            // The platform pauses what nobody uses.
            (Deed::Capsule { act: CapsuleAct::Pause, .. }, Actor::System) => Status::Info,
            _ => self.deed.kind().status,
        }
    }

    /// What else is worth knowing, with the failure.
    pub fn metadata(&self) -> Map<String, Value> {
        let mut fields = self.deed.metadata();
        if let Some(failure) = self.failure {
            fields.insert("error".to_owned(), failure.into());
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_kinds_share_a_name_and_every_kind_has_one_reader() {
        for (index, kind) in KINDS.iter().enumerate() {
            let same = |other: &&Kind| (other.resource, other.action) == (kind.resource, kind.action);
            assert_eq!(KINDS.iter().position(|other| same(&other)), Some(index), "{kind:?}");
        }
    }

    #[test]
    fn failures_and_the_platforms_own_pauses_are_marked_so() {
        let deed =
            |act| Deed::Capsule { id: CapsuleId::random(), act, template: "t", phase: None, reason: None };
        let key = Actor::ApiKey { id: ApiKeyId::random(), name: "ci".into() };
        let team = TeamId::random();
        let pause = Entry::new(team, &key, deed(CapsuleAct::Pause));
        assert_eq!(pause.status(), Status::Success);
        assert_eq!(Entry::new(team, &Actor::System, deed(CapsuleAct::Pause)).status(), Status::Info);
        let failed = Entry { failure: Some("no room"), ..pause };
        assert_eq!(failed.status(), Status::Error);
        assert_eq!(Value::from(failed.metadata()), json!({ "template": "t", "error": "no room" }));
    }
}
