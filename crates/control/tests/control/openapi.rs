//! The description in the repository is the one that is served.

use wrenn_control::api;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.yaml");

#[test]
fn the_openapi_document_in_the_repository_is_current() {
    let now = api::openapi_yaml();
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(FILE, &now).unwrap();
    }
    let kept = std::fs::read_to_string(FILE).unwrap_or_default();
    assert!(
        kept == now,
        "docs/openapi.yaml is stale; run this test with UPDATE_OPENAPI=1 and review the difference"
    );
}

#[test]
fn every_operation_says_how_it_fails_and_what_it_needs() {
    let yaml = api::openapi_yaml();
    assert!(yaml.contains("X-API-Key"));
    assert_eq!(yaml.matches("4XX:").count() + 1, api::described_routes().len());
}
