//! Letters as text and as HTML.

use minijinja::{Environment, UndefinedBehavior, Value, context};

use crate::error::MailError;
use crate::letter::Letter;

/// Name and source. Names end in `.html` where values are escaped.
const TEMPLATES: &[(&str, &str)] = &[
    ("base.html", include_str!("../templates/base.html")),
    ("activation.html", include_str!("../templates/activation.html")),
    ("activation.txt", include_str!("../templates/activation.txt")),
    ("added_to_team.html", include_str!("../templates/added_to_team.html")),
    ("added_to_team.txt", include_str!("../templates/added_to_team.txt")),
    ("password_changed.html", include_str!("../templates/password_changed.html")),
    ("password_changed.txt", include_str!("../templates/password_changed.txt")),
    ("password_reset.html", include_str!("../templates/password_reset.html")),
    ("password_reset.txt", include_str!("../templates/password_reset.txt")),
];

/// The two bodies of a letter, which say the same.
pub(crate) struct Bodies {
    pub(crate) text: String,
    pub(crate) html: String,
}

pub(crate) struct Templates(Environment<'static>);

impl Templates {
    pub(crate) fn new() -> Result<Self, MailError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        for &(name, source) in TEMPLATES {
            environment.add_template(name, source).map_err(defect)?;
        }
        Ok(Self(environment))
    }

    pub(crate) fn render(&self, letter: &Letter) -> Result<Bodies, MailError> {
        let (team, by) = letter.team().unzip();
        let values = context! {
            subject => letter.subject(),
            name => letter.name(),
            team => team,
            by => by,
            link => letter.link(),
            span => letter.minutes().map(span),
        };
        Ok(Bodies { text: self.one(letter, "txt", &values)?, html: self.one(letter, "html", &values)? })
    }

    fn one(&self, letter: &Letter, form: &str, values: &Value) -> Result<String, MailError> {
        let template = self.0.get_template(&format!("{}.{form}", letter.kind())).map_err(defect)?;
        template.render(values).map_err(defect)
    }
}

fn defect(error: minijinja::Error) -> MailError {
    MailError::Writing(Box::new(error))
}

/// A span of time as people say it.
fn span(minutes: u32) -> String {
    let (count, unit) = match minutes {
        days if days >= 2880 && days.is_multiple_of(1440) => (days / 1440, "day"),
        hours if hours >= 60 && hours.is_multiple_of(60) => (hours / 60, "hour"),
        minutes => (minutes, "minute"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::letter::tests::{LINK, every};

    fn render(letter: &Letter) -> Bodies {
        Templates::new().unwrap().render(letter).unwrap()
    }

    /// What a mail program makes of the escapes that the templates produce.
    fn unescape(html: &str) -> String {
        html.replace("&#x2f;", "/").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    }

    #[test]
    fn html_escapes_names_and_text_does_not() {
        let name = r#"<script>alert("x")</script>"#;
        for letter in every(name) {
            let Bodies { text, html } = render(&letter);
            assert!(!html.contains("<script") && html.contains("&lt;script&gt;"), "{html}");
            assert!(!html.contains(r#"("x")"#), "{html}");
            assert!(text.contains(name), "{text}");
        }
    }

    #[test]
    fn links_arrive_whole() {
        for letter in every("Ann") {
            let Bodies { text, html } = render(&letter);
            let lines = text.lines().filter(|line| *line == LINK).count();
            let Some(link) = letter.link() else {
                assert!(!text.contains("http") && !html.contains("href"), "{}", letter.kind());
                continue;
            };
            assert_eq!(lines, 1, "{text}");
            let (_, rest) = html.split_once("href=\"").unwrap();
            assert_eq!(unescape(rest.split_once('"').unwrap().0), link);
            assert_eq!(unescape(&html).matches(link).count(), 2, "{html}");
        }
    }

    #[test]
    fn a_link_cannot_leave_its_attribute() {
        let link = r#"https://x/"><script>"#.to_owned();
        let html = render(&Letter::PasswordReset { name: "Ann".into(), link, minutes: 1 }).html;
        assert!(!html.contains("<script") && !html.contains(r#"x/">"#), "{html}");
    }

    #[test]
    fn every_letter_is_complete() {
        for letter in every("Ann") {
            let Bodies { text, html } = render(&letter);
            assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"), "{html}");
            assert!(html.contains(&format!("<title>{}</title>", letter.subject())), "{html}");
            // Nothing is fetched when the letter is opened.
            assert!(!html.contains("<img") && !html.contains("src=") && !html.contains("url("), "{html}");
            for body in [&text, &html] {
                assert!(body.contains("Hello Ann,"), "{body}");
                assert!(!body.contains("{{") && !body.contains("{%"), "{body}");
                assert_eq!(body.contains(" minutes") || body.contains("1 hour"), letter.minutes().is_some());
            }
            assert!(text.lines().all(|line| line.len() <= 78), "{text}");
        }
    }

    #[test]
    fn whoever_has_no_name_is_greeted_too() {
        for letter in every("\n") {
            let Bodies { text, html } = render(&letter);
            assert!(text.contains("Hello,") && html.contains("Hello,"), "{text}");
        }
    }

    #[test]
    fn spans_are_said_as_people_do() {
        for (minutes, said) in [
            (0, "0 minutes"),
            (1, "1 minute"),
            (30, "30 minutes"),
            (60, "1 hour"),
            (90, "90 minutes"),
            (1440, "24 hours"),
            (2880, "2 days"),
        ] {
            assert_eq!(span(minutes), said);
        }
    }
}
