//! `cargo xtask tidy`: what ARCHITECTURE.md promises and no compiler checks.
//!
//! Every rule is a pure function of the files that git lists, one file each, with a good and a bad example in its
//! tests.

mod layers;
mod length;
mod licences;
mod links;
mod migrations;
mod paths;
mod schemas;
mod unsafe_code;

use std::fmt;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::repo;

/// A text file of the repository; the path is relative to the root and has `/` between its parts.
pub(crate) struct Source {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// What a rule has to say about one line (counted from 1; 0 stands for the file).
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

pub(crate) fn run() -> Result<ExitCode> {
    let findings = findings()?;
    for finding in &findings {
        println!("{finding}");
    }
    eprintln!("tidy: {} findings", findings.len());
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Applies every rule to the repository.
pub(crate) fn findings() -> Result<Vec<Finding>> {
    let mut sources = Vec::new();
    for path in repo::files()? {
        let bytes = fs::read(repo::root().join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        // Captures and other binary files have nothing to tidy, but links may lead to them.
        let text = String::from_utf8(bytes).unwrap_or_default();
        sources.push(Source { path: path.to_string_lossy().into_owned(), text });
    }
    let rules = [
        layers::check,
        length::check,
        links::check,
        migrations::check,
        paths::check,
        schemas::check,
        unsafe_code::check,
    ];
    let mut findings: Vec<Finding> = rules.iter().flat_map(|rule| rule(&sources)).collect();
    findings.extend(licences::check(&sources)?);
    Ok(findings)
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// The lines with their numbers, without comments.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, without_comment(line)))
    }

    fn finding(&self, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line, message: message.into() }
    }
}

/// Cuts a line comment off; `//` within a string, as in an address, is none when a `:` stands before it.
fn without_comment(line: &str) -> &str {
    let mut from = 0;
    while let Some(at) = line[from..].find("//").map(|at| from + at) {
        if !line[..at].ends_with(':') {
            return &line[..at];
        }
        from = at + 2;
    }
    line
}

/// Whether `phrase` stands in `code` with no letter, digit or underscore at either end of it.
fn names(code: &str, phrase: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(phrase).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + phrase.len()..]);
        // A phrase that ends in a separator is a prefix of paths.
        let open_end = phrase.ends_with(':');
        !before.ends_with(is_word) && (open_end || !after.starts_with(is_word))
    })
}

/// One file for the tests of the rules.
#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_cut_and_addresses_kept() {
        assert_eq!(without_comment("let a = 1; // tokio"), "let a = 1; ");
        assert_eq!(without_comment("/// tokio"), "");
        assert_eq!(without_comment(r#"get("http://x"); // y"#), r#"get("http://x"); "#);
    }

    #[test]
    fn phrases_are_whole_words() {
        assert!(names("use tokio::time;", "tokio"));
        assert!(!names("use tokio_like::time;", "tokio"));
        assert!(!names("let unsafe_code = 1;", "unsafe"));
        assert!(names("let now = Instant::now();", "Instant::now"));
        assert!(names("use std::fs::File;", "fs::"));
        assert!(!names("use dfs::File;", "fs::"));
    }
}
