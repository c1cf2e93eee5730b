//! `docs/authorization.md`: who may call which operation, as the OpenAPI document says.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Columns of the table: callers as the document spells them, and how they are headed.
const CALLERS: [(&str, &str); 6] = [
    ("readonly", "readonly"),
    ("analyst", "analyst"),
    ("admin", "admin"),
    ("owner", "owner"),
    ("node", "node key"),
    ("feed", "feed token"),
];

const HEAD: &str = "# Who may call what\n\n\
    Made by `cargo xtask openapi` from `docs/openapi.json`, where `x-callers` comes from the types that check the callers.\n\
    The test `every_caller_gets_from_every_operation_what_the_document_says` tries every cell.\n\n\
    Without a credential, or with one that is unknown or revoked, the answer is 401 `invalid_credentials`; with an expired \
    one it is 401 `token_expired`. At `/agent` every credential but a node's key with its uuid is unknown.\n\
    A node key reads its own node only. What belongs to another workspace answers 404.\n\n";

/// The table, from the document's text.
///
/// # Errors
/// No document, or an operation without callers.
pub(crate) fn table(document: &str) -> Result<String> {
    let document: Value = serde_json::from_str(document).context("the document is no JSON")?;
    let mut text = HEAD.to_owned();
    let heads: Vec<_> = CALLERS.iter().map(|(_, head)| *head).collect();
    writeln!(text, "| Operation | {} |", heads.join(" | "))?;
    writeln!(text, "| --- |{}", " --- |".repeat(CALLERS.len()))?;
    let paths = document["paths"].as_object().context("the document has no paths")?;
    for (path, item) in paths {
        for (method, operation) in item.as_object().into_iter().flatten() {
            let listed = operation["x-callers"].as_array().into_iter().flatten();
            let callers: Vec<_> = listed.filter_map(Value::as_str).collect();
            ensure!(!callers.is_empty(), "{method} {path} does not say who may call it");
            // At /agent a credential is the key and the uuid together: any other is none.
            let refused = if callers == ["node"] { "401" } else { "403" };
            let cell = |caller: &str| if callers == ["anyone"] || callers.contains(&caller) { "yes" } else { refused };
            let cells: Vec<_> = CALLERS.iter().map(|(caller, _)| cell(caller)).collect();
            let method = method.to_uppercase();
            let open = if callers == ["anyone"] { " (no credential needed)" } else { "" };
            writeln!(text, "| `{method} {path}`{open} | {} |", cells.join(" | "))?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_caller_has_a_cell_and_no_operation_goes_undeclared() {
        let document = r#"{"paths":{
            "/a":{"get":{"x-callers":["admin","owner"]}},
            "/b":{"post":{"x-callers":["node"]}},
            "/c":{"get":{"x-callers":["anyone"]}}}}"#;
        let table = table(document).expect("declared");
        assert!(table.contains("| `GET /a` | 403 | 403 | yes | yes | 403 | 403 |"), "{table}");
        assert!(table.contains("| `POST /b` | 401 | 401 | 401 | 401 | yes | 401 |"), "{table}");
        assert!(table.contains("| `GET /c` (no credential needed) | yes | yes | yes | yes | yes | yes |"), "{table}");
        assert!(super::table(r#"{"paths":{"/d":{"get":{}}}}"#).is_err());
    }
}
