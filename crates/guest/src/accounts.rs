//! The Linux users and groups of the image, read from `/etc/passwd` and `/etc/group` by own parsing: the name service
//! libraries of an image are not to be trusted, and a static program cannot load them.

use std::collections::HashMap;
use std::path::Path;

use thiserror::Error;

/// A user as processes and files need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    /// Login name.
    pub(crate) name: String,
    /// User id.
    pub(crate) uid: u32,
    /// Primary group id.
    pub(crate) gid: u32,
    /// Primary and supplementary groups.
    pub(crate) groups: Vec<u32>,
    /// Home directory, absolute.
    pub(crate) home: String,
}

/// The image has no such user.
#[derive(Debug, Error)]
#[error("the image has no user {0:?}; name one of its /etc/passwd")]
pub(crate) struct UnknownUser(pub(crate) String);

impl User {
    /// Looks a user up by name (or by number, as `su` does not, but `docker run -u` does).
    pub(crate) fn find(name: &str) -> Result<Self, UnknownUser> {
        let passwd = read("/etc/passwd");
        let groups = read("/etc/group");
        Self::parse(name, &passwd, &groups)
            .or_else(|| (name == "root" || name == "0").then(Self::root))
            .ok_or_else(|| UnknownUser(name.to_owned()))
    }

    /// The user that exists even in an image without `/etc/passwd`.
    pub(crate) fn root() -> Self {
        Self { name: "root".into(), uid: 0, gid: 0, groups: vec![0], home: "/root".into() }
    }

    fn parse(wanted: &str, passwd: &str, group: &str) -> Option<Self> {
        let number = wanted.parse::<u32>().ok();
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
            fields.len() >= 6
                && (fields[0] == wanted || (number.is_some() && fields[2].parse().ok() == number))
        })?;
        let gid = fields[3].parse().ok()?;
        let home = if fields[5].starts_with('/') { fields[5] } else { "/" };
        Some(Self {
            name: fields[0].to_owned(),
            uid: fields[2].parse().ok()?,
            gid,
            groups: groups_of(fields[0], gid, group),
            home: home.to_owned(),
        })
    }
}

fn groups_of(user: &str, primary: u32, group: &str) -> Vec<u32> {
    let mut groups = vec![primary];
    for line in group.lines() {
        let mut fields = line.split(':');
        let gid = fields.nth(2).and_then(|gid| gid.parse().ok());
        let member = fields.next().is_some_and(|members| members.split(',').any(|m| m.trim() == user));
        if let Some(gid) = gid.filter(|gid| member && !groups.contains(gid)) {
            groups.push(gid);
        }
    }
    groups
}

/// Names of ids, for listings.
#[derive(Debug, Default)]
pub(crate) struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// Reads both files anew, so that a user added a moment ago shows.
    pub(crate) fn load() -> Self {
        Self { users: ids(&read("/etc/passwd")), groups: ids(&read("/etc/group")) }
    }

    /// Name of a user id, or the number as text.
    pub(crate) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// Name of a group id, or the number as text.
    pub(crate) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

fn ids(file: &str) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in file.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(id)) = (fields.next(), fields.nth(1).and_then(|id| id.parse().ok())) {
            names.entry(id).or_insert_with(|| name.to_owned());
        }
    }
    names
}

/// A missing or unreadable file counts as empty: an image may have neither.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nuser:x:1000:1001:,,,:/home/user:/bin/sh\nbroken\n";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1001:user\ndocker:x:99:someone\n";

    #[test]
    fn a_user_comes_with_home_and_every_group() {
        let user = User::parse("user", PASSWD, GROUP).unwrap();
        assert_eq!((user.uid, user.gid, user.home.as_str()), (1000, 1001, "/home/user"));
        assert_eq!(user.groups, [1001, 27]);
        assert_eq!(User::parse("1000", PASSWD, GROUP), Some(user));
    }

    #[test]
    fn unknown_and_broken_lines_are_no_users() {
        assert_eq!(User::parse("broken", PASSWD, GROUP), None);
        assert_eq!(User::parse("", PASSWD, GROUP), None);
    }

    #[test]
    fn ids_without_a_name_are_shown_as_numbers() {
        let names = Names { users: ids(PASSWD), groups: ids(GROUP) };
        assert_eq!(names.user(1000), "user");
        assert_eq!(names.group(27), "sudo");
        assert_eq!(names.user(4242), "4242");
    }
}
