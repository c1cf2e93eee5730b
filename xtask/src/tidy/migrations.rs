//! Every back end of the control plane's store has the same migrations, numbered without gaps.

use std::collections::BTreeMap;

use super::{Finding, Source};

const FOLDER: &str = "controlplane/migrations/";
const BACKENDS: [&str; 2] = ["sqlite", "postgres"];

pub(super) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut names: [BTreeMap<&str, &Source>; 2] = [BTreeMap::new(), BTreeMap::new()];
    for (backend, names) in BACKENDS.iter().zip(&mut names) {
        let prefix = format!("{FOLDER}{backend}/");
        let of_backend = sources.iter().filter(|s| s.path.starts_with(&prefix) && s.path.ends_with(".sql"));
        for (next, source) in (1..).zip(of_backend) {
            let name = &source.path[prefix.len()..];
            names.insert(name, source);
            if number(name) != Some(next) {
                findings.push(source.finding(0, format!("expected the migration {next:04}_name.sql")));
            }
        }
    }
    for (this, other) in [(0, 1), (1, 0)] {
        // A back end that is not there yet has no migrations at all.
        if names[other].is_empty() {
            continue;
        }
        for (name, source) in names[this].iter().filter(|(name, _)| !names[other].contains_key(*name)) {
            findings.push(source.finding(0, format!("{} has no {name}", BACKENDS[other])));
        }
    }
    findings
}

/// The number of `0001_name.sql`.
fn number(name: &str) -> Option<u32> {
    let (digits, rest) = name.split_at_checked(4)?;
    if rest.starts_with('_') { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    fn count(names: &[&str]) -> usize {
        let sources: Vec<_> = names.iter().map(|name| source(&format!("{FOLDER}{name}"), "")).collect();
        check(&sources).len()
    }

    #[test]
    fn equal_names_without_gaps_are_fine() {
        let good = ["postgres/0001_node.sql", "postgres/0002_rule.sql", "sqlite/0001_node.sql", "sqlite/0002_rule.sql"];
        assert_eq!(count(&good), 0);
        assert_eq!(count(&[]), 0);
    }

    #[test]
    fn gaps_and_missing_partners_are_found() {
        assert_eq!(count(&["sqlite/0001_node.sql", "sqlite/0002_a.sql", "postgres/0001_node.sql"]), 1);
        assert_eq!(count(&["sqlite/0001_node.sql"]), 0, "the other back end is not there yet");
        assert_eq!(count(&["postgres/0001_node.sql", "sqlite/0001_nodes.sql"]), 2);
        assert_eq!(count(&["postgres/0002_a.sql", "sqlite/0002_a.sql"]), 2);
        assert_eq!(count(&["postgres/1_a.sql", "sqlite/1_a.sql"]), 2);
    }
}
