//! `/v1/admin`: what administrators of the platform see and do.

mod capsules;
mod files;
mod people;
mod templates;

use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::audit;
use crate::state::App;

/// Things on a page of a list.
const PER_PAGE: i64 = 100;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(people::teams))
        .routes(routes!(people::set_byoc))
        .routes(routes!(people::delete_team))
        .routes(routes!(people::users))
        .routes(routes!(people::set_active))
        .routes(routes!(people::set_admin))
        .routes(routes!(templates::list))
        .routes(routes!(templates::delete))
        .routes(routes!(audit::of_platform))
        .routes(routes!(capsules::list, capsules::create))
        .routes(routes!(capsules::get, capsules::destroy))
        .routes(routes!(capsules::snapshot))
        .routes(routes!(capsules::exec))
        .routes(routes!(capsules::processes))
        .routes(routes!(capsules::kill))
        .routes(routes!(capsules::exec_stream))
        .routes(routes!(capsules::process_stream))
        .routes(routes!(capsules::pty))
        .merge(files::routes())
}

/// Which page of a list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct PageQuery {
    /// Counted from 1; whatever else is given is 1.
    page: Option<String>,
}

/// A place in a list.
#[derive(Debug, Clone, Copy)]
struct PageOf {
    page: i64,
    total: i64,
}

impl PageQuery {
    fn number(&self) -> i64 {
        let given = self.page.as_deref().and_then(|page| page.parse().ok()).unwrap_or(1);
        // Beyond this, rows could not be counted any more.
        if (1..=i64::MAX / PER_PAGE).contains(&given) { given } else { 1 }
    }

    fn skip(&self) -> i64 {
        (self.number() - 1) * PER_PAGE
    }

    fn of(&self, total: i64) -> PageOf {
        PageOf { page: self.number(), total }
    }
}

impl PageOf {
    fn total_pages(self) -> i64 {
        (self.total + PER_PAGE - 1) / PER_PAGE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_no_page_is_the_first() {
        let page = |text: &str| PageQuery { page: Some(text.to_owned()) }.number();
        assert_eq!(PageQuery { page: None }.number(), 1);
        for (text, number) in [("2", 2), ("0", 1), ("-1", 1), ("x", 1), ("", 1), ("9223372036854775807", 1)] {
            assert_eq!(page(text), number, "{text}");
        }
        assert_eq!(PageQuery { page: Some("3".into()) }.skip(), 200);
        let pages = |total| PageOf { page: 1, total }.total_pages();
        assert_eq!((pages(0), pages(1), pages(100), pages(101)), (0, 1, 1, 2));
    }
}
