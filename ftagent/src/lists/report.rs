//! What became of a list's lines.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Lines of each kind that are shown; of the others there is the number alone.
const SHOWN: usize = 20;
/// Characters of a line that are shown.
const SHOWN_TEXT: usize = 64;

/// What there is to say about a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Loaded without its host bits.
    HostBits,
    NotPrefix,
    BadMask,
    BadRange,
    TwoAddresses,
    TooWide,
    TooLong,
    NotText,
}

impl Kind {
    /// Whether the line is part of the list all the same.
    pub fn is_loaded(self) -> bool {
        self == Self::HostBits
    }

    /// In an operator's words.
    pub fn why(self) -> &'static str {
        match self {
            Self::HostBits => "host bits set: loaded without them",
            Self::NotPrefix => "neither an address, a prefix nor a range of addresses",
            Self::BadMask => "the netmask is not contiguous",
            Self::BadRange => "the range ends before it begins, or mixes families",
            Self::TwoAddresses => "two addresses: write a range as FIRST-LAST",
            Self::TooWide => "wider than min_prefix_v4 or min_prefix_v6 allows",
            Self::TooLong => "the line is too long",
            Self::NotText => "not UTF-8",
        }
    }
}

/// The lines of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub total: u64,
    /// The first ones.
    pub first: Vec<Shown>,
}

/// One line, safe to print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// From 1; absent in databases, which have no lines.
    pub line: Option<u64>,
    /// Its beginning, in ASCII, with everything else escaped.
    pub text: String,
}

/// A listed prefix that overlaps one that lists should have nothing of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SparedHit {
    pub listed: IpNet,
    pub spared: IpNet,
    pub why: String,
}

/// What became of a list's lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Lines of a text, networks of a database that were asked for.
    pub lines: u64,
    /// Prefixes in force.
    pub v4: u64,
    pub v6: u64,
    pub duplicates: u64,
    /// Inside a wider prefix of the same list.
    pub covered: u64,
    pub findings: BTreeMap<Kind, Finding>,
    /// Listed prefixes that overlap the allowlist, management, a gateway or the node itself.
    pub spared: u64,
    /// The first of them.
    pub spared_first: Vec<SparedHit>,
    /// The last line has no line feed: perhaps the file was cut off.
    pub unterminated: bool,
}

impl Report {
    pub(super) fn note(&mut self, kind: Kind, line: Option<u64>, text: &[u8]) {
        let finding = self.findings.entry(kind).or_default();
        finding.total += 1;
        if finding.first.len() < SHOWN {
            finding.first.push(Shown { line, text: shown(text) });
        }
    }

    pub(super) fn note_spared(&mut self, total: u64, hits: impl IntoIterator<Item = SparedHit>) {
        self.spared += total;
        let room = SHOWN.saturating_sub(self.spared_first.len());
        self.spared_first.extend(hits.into_iter().take(room));
    }

    /// Lines that are not part of the list.
    pub fn skipped(&self) -> u64 {
        self.findings.iter().filter(|(kind, _)| !kind.is_loaded()).map(|(_, finding)| finding.total).sum()
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        _ = writeln!(
            text,
            "{} prefixes loaded ({} IPv4, {} IPv6) from {} lines; {} duplicates, {} inside others, {} skipped",
            self.v4 + self.v6,
            self.v4,
            self.v6,
            self.lines,
            self.duplicates,
            self.covered,
            self.skipped()
        );
        for (kind, finding) in &self.findings {
            _ = writeln!(text, "  {} x {}", finding.total, kind.why());
            for shown in &finding.first {
                let line = shown.line.map_or_else(String::new, |line| format!("line {line}: "));
                _ = writeln!(text, "    {line}{}", shown.text);
            }
            more(&mut text, finding.total, finding.first.len());
        }
        if self.spared > 0 {
            _ = writeln!(text, "  {} x overlaps what this node trusts or is", self.spared);
            for hit in &self.spared_first {
                _ = writeln!(text, "    {} overlaps {} ({})", hit.listed, hit.spared, hit.why);
            }
            more(&mut text, self.spared, self.spared_first.len());
        }
        if self.unterminated {
            _ = writeln!(text, "  the last line has no line feed: was the file cut off?");
        }
        text
    }
}

fn more(text: &mut String, total: u64, shown: usize) {
    let more = total.saturating_sub(shown as u64);
    if more > 0 {
        _ = writeln!(text, "    and {more} more");
    }
}

/// The beginning of a line without anything that a terminal would obey.
fn shown(text: &[u8]) -> String {
    let mut out = String::with_capacity(SHOWN_TEXT);
    for byte in text.trim_ascii() {
        let escaped = byte.escape_ascii();
        if out.len() + escaped.len() > SHOWN_TEXT {
            out.push_str("...");
            break;
        }
        out.extend(escaped.map(char::from));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_lines_of_a_kind_are_kept() {
        let mut report = Report::default();
        for line in 1..=50 {
            report.note(Kind::NotPrefix, Some(line), b"x");
        }
        report.note(Kind::HostBits, Some(51), b"10.1.1.1/8");
        let finding = &report.findings[&Kind::NotPrefix];
        assert_eq!((finding.total, finding.first.len(), finding.first[19].line), (50, 20, Some(20)));
        assert_eq!(report.skipped(), 50);
        let text = report.text();
        assert!(text.contains("50 x neither an address") && text.contains("and 30 more"), "{text}");
    }

    #[test]
    fn what_is_shown_is_short_and_plain() {
        assert_eq!(shown(b"  a\x1b[31m\xc3\xa4 "), "a\\x1b[31m\\xc3\\xa4");
        let long = shown(&[0xff; 100]);
        assert!(long.len() <= SHOWN_TEXT + 3 && long.ends_with("..."), "{long}");
    }
}
