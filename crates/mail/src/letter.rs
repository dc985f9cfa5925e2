//! What there is to write about.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest name in a letter, in characters. Names are chosen by people who may not mean well: a long one could carry a
/// message of its own.
const MAX_NAME: usize = 80;
/// What is shorter in a link is too easily guessed to be a secret, in bytes.
const MIN_TOKEN: usize = 16;

/// A letter, as it waits to be sent. Links carry a secret, so [`fmt::Debug`] does not show them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Letter {
    /// To whom an account was made for.
    Activation {
        /// The recipient.
        name: String,
        /// Where the account is activated.
        link: String,
        /// How long the link works.
        minutes: u32,
    },
    /// To whom has forgotten the password.
    PasswordReset {
        /// The recipient.
        name: String,
        /// Where a new password is chosen.
        link: String,
        /// How long the link works.
        minutes: u32,
    },
    /// Tells that the password is another now, in case somebody else changed it.
    PasswordChanged {
        /// The recipient.
        name: String,
    },
    /// To a new member of a team.
    AddedToTeam {
        /// The recipient.
        name: String,
        /// The team.
        team: String,
        /// Who added the recipient.
        by: String,
        /// Where the team is found.
        link: String,
    },
}

impl Letter {
    /// The kind, for logs; also the `kind` of the serialised form and the name of the templates.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Activation { .. } => "activation",
            Self::PasswordReset { .. } => "password_reset",
            Self::PasswordChanged { .. } => "password_changed",
            Self::AddedToTeam { .. } => "added_to_team",
        }
    }

    /// The subject: one line, whatever the names in it hold.
    pub fn subject(&self) -> String {
        match self {
            Self::Activation { .. } => "Activate your Wrenn account".to_owned(),
            Self::PasswordReset { .. } => "Reset your Wrenn password".to_owned(),
            Self::PasswordChanged { .. } => "Your Wrenn password was changed".to_owned(),
            Self::AddedToTeam { team, by, .. } => {
                format!(
                    "{} added you to the team {} on Wrenn",
                    one_line(by, MAX_NAME),
                    one_line(team, MAX_NAME)
                )
            }
        }
    }

    /// The name of the recipient, fit for a letter.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Activation { name, .. }
            | Self::PasswordReset { name, .. }
            | Self::PasswordChanged { name }
            | Self::AddedToTeam { name, .. } => one_line(name, MAX_NAME),
        }
    }

    /// The team and who added the recipient to it, fit for a letter.
    pub(crate) fn team(&self) -> Option<(String, String)> {
        match self {
            Self::AddedToTeam { team, by, .. } => Some((one_line(team, MAX_NAME), one_line(by, MAX_NAME))),
            _ => None,
        }
    }

    pub(crate) fn link(&self) -> Option<&str> {
        match self {
            Self::Activation { link, .. }
            | Self::PasswordReset { link, .. }
            | Self::AddedToTeam { link, .. } => Some(link),
            Self::PasswordChanged { .. } => None,
        }
    }

    /// What must not be seen elsewhere, should a server quote the letter: the parts of the link that can be a token.
    pub(crate) fn secrets(&self) -> Vec<&str> {
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
        let parts = self.link().into_iter().flat_map(|link| link.split(move |c| !is_part(c)));
        parts.filter(|part| part.len() >= MIN_TOKEN).collect()
    }

    pub(crate) fn minutes(&self) -> Option<u32> {
        match self {
            Self::Activation { minutes, .. } | Self::PasswordReset { minutes, .. } => Some(*minutes),
            Self::PasswordChanged { .. } | Self::AddedToTeam { .. } => None,
        }
    }
}

impl fmt::Debug for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Activation { name, minutes, .. } => f
                .debug_struct("Activation")
                .field("name", name)
                .field("minutes", minutes)
                .finish_non_exhaustive(),
            Self::PasswordReset { name, minutes, .. } => f
                .debug_struct("PasswordReset")
                .field("name", name)
                .field("minutes", minutes)
                .finish_non_exhaustive(),
            Self::PasswordChanged { name } => f.debug_struct("PasswordChanged").field("name", name).finish(),
            Self::AddedToTeam { name, team, by, .. } => f
                .debug_struct("AddedToTeam")
                .field("name", name)
                .field("team", team)
                .field("by", by)
                .finish_non_exhaustive(),
        }
    }
}

/// The text on one line and at most `max` characters of it: a line break in a name would begin a header, or a paragraph
/// that we did not write.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= max {
        return line;
    }
    let mut short: String = line.chars().take(max.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const LINK: &str = "https://wrenn.example.com/activate?token=s3cret&next=%2F";

    pub(crate) fn every(name: &str) -> [Letter; 4] {
        let (name, link) = (name.to_owned(), LINK.to_owned());
        [
            Letter::Activation { name: name.clone(), link: link.clone(), minutes: 60 },
            Letter::PasswordReset { name: name.clone(), link: link.clone(), minutes: 30 },
            Letter::PasswordChanged { name: name.clone() },
            Letter::AddedToTeam { name: name.clone(), team: name.clone(), by: name, link },
        ]
    }

    #[test]
    fn debug_hides_the_link() {
        for letter in every("Ann") {
            let debug = format!("{letter:?} {letter:#?}");
            assert!(debug.contains("Ann") && !debug.contains("s3cret"), "{debug}");
        }
    }

    #[test]
    fn tokens_are_secret_wherever_they_stand() {
        for link in [
            "https://wrenn.example.com/reset?token=0123456789abcdef_-&next=%2F",
            "https://wrenn.example.com/reset/0123456789abcdef_-",
            "https://wrenn.example.com/reset#0123456789abcdef_-",
        ] {
            let letter = Letter::PasswordReset { name: "Ann".into(), link: link.into(), minutes: 1 };
            assert_eq!(letter.secrets(), ["0123456789abcdef_-"]);
        }
    }

    #[test]
    fn the_stored_form_comes_back() {
        for letter in every("Ann") {
            let stored = serde_json::to_value(&letter).unwrap();
            assert_eq!(stored["kind"], letter.kind());
            assert_eq!(serde_json::from_value::<Letter>(stored).unwrap(), letter);
        }
    }

    #[test]
    fn a_name_cannot_begin_a_header() {
        let team = "Eve\r\nBcc: all@example.com\n\n\u{2028}Hello\u{85}\0".to_owned();
        let letter = Letter::AddedToTeam { name: String::new(), team, by: "Ann".into(), link: LINK.into() };
        assert_eq!(letter.subject(), "Ann added you to the team Eve Bcc: all@example.com Hello on Wrenn");
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(one_line("äöü", 3), "äöü");
        assert_eq!(one_line("äöüß", 3), "äö…");
        assert_eq!(one_line(" \t ", 3), "");
    }
}
