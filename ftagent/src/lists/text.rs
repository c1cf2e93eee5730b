//! A whole text file as prefixes.

use ipnet::IpNet;

use super::line::{self, Parsed};
use super::report::{Kind, Report};
use super::{MAX_ENTRIES, Widest};

/// Prefixes of both families as they were written.
#[derive(Debug, Default)]
pub(super) struct Entries {
    pub(super) v4: Vec<ipnet::Ipv4Net>,
    pub(super) v6: Vec<ipnet::Ipv6Net>,
}

/// More entries than a list may have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_ENTRIES} entries, the most that a list can have")]
pub struct TooMany;

impl Entries {
    pub(super) fn push(&mut self, net: IpNet) -> Result<(), TooMany> {
        match net {
            IpNet::V4(net) => self.v4.push(net),
            IpNet::V6(net) => self.v6.push(net),
        }
        if self.v4.len() + self.v6.len() > MAX_ENTRIES { Err(TooMany) } else { Ok(()) }
    }
}

/// Reads every line of `bytes`.
///
/// # Errors
/// When there are more entries than a list may have.
pub(super) fn parse(bytes: &[u8], widest: Widest, report: &mut Report) -> Result<Entries, TooMany> {
    let mut entries = Entries::default();
    // Editors of other systems put a byte order mark first.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    report.unterminated = bytes.last().is_some_and(|last| *last != b'\n');
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    if bytes.is_empty() {
        return Ok(entries);
    }
    for (text, number) in bytes.split(|byte| *byte == b'\n').zip(1..) {
        report.lines = number;
        match line::parse(text) {
            Ok(Parsed::Nothing) => {}
            Ok(Parsed::Net { net, .. }) if !widest.allows(&net) => report.note(Kind::TooWide, Some(number), text),
            Ok(Parsed::Net { net, masked }) => {
                if masked {
                    report.note(Kind::HostBits, Some(number), text);
                }
                entries.push(net)?;
            }
            Ok(Parsed::Range(nets)) if !nets.iter().all(|net| widest.allows(net)) => {
                report.note(Kind::TooWide, Some(number), text);
            }
            Ok(Parsed::Range(nets)) => nets.into_iter().try_for_each(|net| entries.push(net))?,
            Err(kind) => report.note(kind, Some(number), text),
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_named_with_its_line() {
        let text = b"\xef\xbb\xbf# header\r\n198.51.100.0/24\r\n\r\nnonsense\r\n0.0.0.0/0\r\n10.1.2.3/8 # masked\r\n\xff\xfe\r\n1.0.0.0-223.255.255.255\n2001:db8::/32";
        let mut report = Report::default();
        let entries = parse(text, Widest::default(), &mut report).expect("few");
        assert_eq!((entries.v4.len(), entries.v6.len(), report.lines), (2, 1, 9));
        let lines = |kind| report.findings[&kind].first.iter().map(|shown| shown.line).collect::<Vec<_>>();
        assert_eq!(lines(Kind::NotPrefix), [Some(4)]);
        assert_eq!(lines(Kind::TooWide), [Some(5), Some(8)]);
        assert_eq!(lines(Kind::HostBits), [Some(6)]);
        assert_eq!(lines(Kind::NotText), [Some(7)]);
        assert!(report.unterminated);
        assert_eq!(report.skipped(), 4);
    }

    #[test]
    fn the_narrowest_allowed_length_is_what_was_configured() {
        let widest = Widest { min_prefix_v4: 16, min_prefix_v6: 48 };
        let mut report = Report::default();
        let text = b"10.0.0.0/16\n10.0.0.0/15\n2001:db8::/48\n2001:db8::/47\n";
        let entries = parse(text, widest, &mut report).expect("few");
        assert_eq!((entries.v4.len(), entries.v6.len(), report.skipped()), (1, 1, 2));
        assert!(!report.unterminated);
    }

    #[test]
    fn an_empty_text_has_no_lines() {
        let mut report = Report::default();
        assert!(parse(b"", Widest::default(), &mut report).expect("few").v4.is_empty());
        assert_eq!(report, Report::default());
    }

    #[test]
    fn a_million_lines_are_read() {
        use std::fmt::Write as _;
        let mut text = String::new();
        for number in 0..1_000_000u32 {
            let address = std::net::Ipv4Addr::from(number.wrapping_mul(2_654_435_761));
            _ = writeln!(text, "{address}/{} ; SBL{number}", 24 + number % 9);
        }
        let started_ns = crate::clock::mono_ns();
        let mut report = Report::default();
        let mut entries = parse(text.as_bytes(), Widest::default(), &mut report).expect("a million");
        super::super::prune::prune(&mut entries.v4, &mut report);
        println!("1,000,000 lines in {} ms", (crate::clock::mono_ns() - started_ns) / 1_000_000);
        assert_eq!(report.lines, 1_000_000);
        assert_eq!(entries.v4.len() as u64 + report.duplicates + report.covered, 1_000_000);
    }
}
