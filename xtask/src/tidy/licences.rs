//! Every dependency has a licence that `deny.toml` allows and comes from a registry.
//!
//! `cargo deny` checks the same and more, but takes minutes to build: this runs everywhere in a second.

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Finding, Source};
use crate::{process, repo};

const LIST: &str = "deny.toml";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    /// None for packages of this repository.
    source: Option<String>,
}

pub(super) fn check(sources: &[Source]) -> Result<Vec<Finding>> {
    let list = sources.iter().find(|source| source.path == LIST).with_context(|| format!("there is no {LIST}"))?;
    let allowed = allowed(&list.text);
    let mut findings = Vec::new();
    for manifest in ["Cargo.toml", "ftagent-ebpf/Cargo.toml"] {
        let mut metadata = repo::cargo();
        metadata.args(["metadata", "--format-version", "1", "--all-features", "--manifest-path", manifest]);
        let metadata: Metadata = serde_json::from_str(&process::capture(&mut metadata)?)?;
        findings.extend(metadata.packages.iter().filter_map(|package| judge(package, &allowed, manifest)));
    }
    Ok(findings)
}

/// The words of `allow = [ … ]`.
fn allowed(list: &str) -> Vec<&str> {
    let words =
        list.split_once("\nallow = [").and_then(|(_, rest)| rest.split_once("\n]")).map_or("", |(words, _)| words);
    words.split('"').skip(1).step_by(2).collect()
}

fn judge(package: &Package, allowed: &[&str], manifest: &str) -> Option<Finding> {
    let source = package.source.as_deref()?;
    let licence = package.license.as_deref().unwrap_or_default();
    let message = if !source.starts_with("registry+") && !source.starts_with("sparse+") {
        format!("comes from {source}, not from a registry")
    } else if !permits(licence, allowed) {
        format!("its licence `{licence}` is not allowed by {LIST}")
    } else {
        return None;
    };
    let subject = format!("{} {}: {message}", package.name, package.version);
    Some(Finding { path: manifest.to_owned(), line: 0, message: subject })
}

/// Whether the SPDX expression can be satisfied with allowed licences alone.
fn permits(expression: &str, allowed: &[&str]) -> bool {
    // `/` is how old manifests write OR.
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let permitted = any_of(&mut words, allowed);
    permitted && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut permitted = all_of(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        permitted |= all_of(words, allowed);
    }
    permitted
}

fn all_of(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    let mut permitted = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        permitted &= one(words, allowed);
    }
    permitted
}

fn one(words: &mut Words<'_>, allowed: &[&str]) -> bool {
    match words.next() {
        Some("(") => any_of(words, allowed) & (words.next() == Some(")")),
        Some(licence) if words.next_if_eq(&"WITH").is_some() => {
            let licence = format!("{licence} WITH {}", words.next().unwrap_or_default());
            allowed.contains(&licence.as_str())
        }
        Some(licence) => allowed.contains(&licence),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: [&str; 3] = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];

    #[test]
    fn expressions_are_satisfied_or_not() {
        let cases = [
            ("MIT", true),
            ("MIT OR GPL-3.0", true),
            ("GPL-3.0 OR (Apache-2.0 AND MIT)", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND GPL-3.0", false),
            ("GPL-2.0 WITH Linux-syscall-note", false),
            ("MIT)", false),
            ("", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(permits(expression, &ALLOWED), expected, "{expression}");
        }
    }

    #[test]
    fn a_package_from_elsewhere_or_without_a_licence_is_found() {
        let package = |source: Option<&str>, license: Option<&str>| Package {
            name: "x".into(),
            version: "1.0.0".into(),
            license: license.map(str::to_owned),
            source: source.map(str::to_owned),
        };
        let registry = Some("registry+index");
        assert_eq!(judge(&package(registry, Some("MIT")), &ALLOWED, "Cargo.toml"), None);
        assert_eq!(judge(&package(None, None), &ALLOWED, "Cargo.toml"), None);
        assert!(judge(&package(registry, None), &ALLOWED, "Cargo.toml").is_some());
        assert!(judge(&package(Some("git+x"), Some("MIT")), &ALLOWED, "Cargo.toml").is_some());
    }

    #[test]
    fn the_list_is_read_from_the_file() {
        assert_eq!(allowed("[licenses]\nallow = [\n  \"MIT\", # a\n  \"ISC\",\n]\nx = [\"Y\"]\n"), ["MIT", "ISC"]);
    }
}
