//! No two types have a schema of one name: of two, the OpenAPI document describes either, and says nothing.

use std::collections::BTreeMap;

use super::{Finding, Source, names};

const CRATES: [&str; 2] = ["controlplane/src/", "ftagent-common/src/"];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    let ours = |s: &&Source| s.is_rust() && CRATES.iter().any(|folder| s.path.starts_with(folder));
    for source in sources.iter().filter(ours) {
        for (line, name) in schemas(source) {
            if let Some(first) = seen.get(name) {
                let message = format!("the schema {name} is there already, in {first}: name one with schema(as = …)");
                findings.push(source.finding(line, message));
            } else {
                seen.insert(name, format!("{}:{line}", source.path));
            }
        }
    }
    findings
}

/// Lines and names of the types that have schemas, in the order of the file.
fn schemas(source: &Source) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    // Between the derive and its item, the name that stands in for the item's.
    let mut derived: Option<Option<&str>> = None;
    let mut answers = false;
    for (line, code) in source.code() {
        if code.starts_with("answers! {") {
            answers = true;
        } else if code == "}" {
            answers = false;
        } else if let Some((name, _)) = code.strip_prefix("    ").and_then(|code| code.split_once(" {"))
            && answers
            && name.starts_with(char::is_uppercase)
        {
            found.push((line, name));
        }
        if code.contains("derive(") {
            derived = names(code, "ToSchema").then_some(None);
        }
        let Some(stand_in) = &mut derived else { continue };
        if let Some(at) = code.find("schema(as = ") {
            *stand_in = Some(word(&code[at + "schema(as = ".len()..]));
        }
        let item = ["struct ", "enum "].iter().find_map(|kind| code.split_once(kind));
        if let Some((before, rest)) = item
            && (before.is_empty() || before.starts_with("pub"))
        {
            let own = word(rest);
            // In the definition of a macro the name is the caller's.
            if !own.is_empty() {
                found.push((line, stand_in.unwrap_or(own)));
            }
            derived = None;
        }
    }
    found
}

fn word(text: &str) -> &str {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    const STEP: &str = "#[derive(Serialize, ToSchema)]\n#[serde(x)]\npub struct Step {\n    a: u8,\n}\n";

    #[test]
    fn types_of_different_names_are_fine_and_so_is_what_has_no_schema() {
        let other = source("controlplane/src/b.rs", "#[derive(Serialize)]\npub struct Step;\nstruct Other;\n");
        let far = source("xtask/src/c.rs", STEP);
        assert_eq!(check(&[source("controlplane/src/a.rs", STEP), other, far]), []);
    }

    #[test]
    fn two_of_one_name_are_found_wherever_they_are() {
        let derived = "#[cfg_attr(feature = \"openapi\", derive(utoipa::ToSchema))]\nenum Step {}\n";
        let said = "#[derive(ToSchema)]\n#[schema(as = Step)]\npub(crate) struct Other<T>(T);\n";
        let answered = "answers! {\n    /// Text.\n    Some { id: i64 }\n    Step {\n        id: i64\n    }\n}\n";
        for text in [derived, said, answered] {
            let found = check(&[source("controlplane/src/a.rs", STEP), source("ftagent-common/src/b.rs", text)]);
            assert_eq!(found.len(), 1, "{text}");
        }
    }

    #[test]
    fn a_name_that_stands_in_counts() {
        let named = STEP.replace("#[serde(x)]", "#[schema(as = ProfileStep)]");
        let sources = [source("controlplane/src/a.rs", STEP), source("controlplane/src/b.rs", &named)];
        assert_eq!(check(&sources), []);
    }
}
