//! Countries and autonomous systems as prefixes, out of an operator's MaxMind database.

use std::collections::HashMap;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use maxminddb::{LookupResult, MaxMindDbError, Reader, WithinOptions, path};

use super::report::{Kind, Report};
use super::text::{Entries, TooMany};
use super::{Pick, Widest};

/// Why a database yields no list.
#[derive(Debug, thiserror::Error)]
pub enum MmdbError {
    #[error("no MaxMind database: {0}")]
    Database(#[from] MaxMindDbError),
    #[error("a database of type {kind:?} has no {what}")]
    LacksField { kind: String, what: &'static str },
    #[error("the search tree is no tree")]
    NoTree,
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

/// The networks of the database `bytes` that `pick` names.
///
/// A country is where MaxMind places the network (`country`, not `registered_country`).
///
/// # Errors
/// When it is no database, or one without countries or numbers where some are asked for.
pub(super) fn parse(bytes: &[u8], pick: &Pick, widest: Widest, report: &mut Report) -> Result<Entries, MmdbError> {
    let reader = Reader::from_source(bytes)?;
    let mut entries = Entries::default();
    let mut picker = Picker { pick, by_record: HashMap::new(), has_countries: false, has_asns: false };
    // A binary tree has one end more than it has nodes. A damaged one whose branches meet again would have any number
    // of them: its empty ends are asked for too, so that they are counted.
    let mut ends = u64::from(reader.metadata().node_count) * 2 + 1_024;
    for found in reader.networks(WithinOptions::default().include_networks_without_data())? {
        let found = found?;
        ends = ends.checked_sub(1).ok_or(MmdbError::NoTree)?;
        if !found.has_data() {
            continue;
        }
        report.lines += 1;
        if !picker.takes(&found) {
            continue;
        }
        let net = network(&found)?;
        if widest.allows(&net) {
            entries.push(net)?;
        } else {
            report.note(Kind::TooWide, None, net.to_string().as_bytes());
        }
    }
    let kind = || reader.metadata().database_type.clone();
    if !pick.countries.is_empty() && !picker.has_countries {
        return Err(MmdbError::LacksField { kind: kind(), what: "country codes" });
    }
    if !pick.asns.is_empty() && !picker.has_asns {
        return Err(MmdbError::LacksField { kind: kind(), what: "autonomous system numbers" });
    }
    Ok(entries)
}

/// Decides by record: many networks share one.
struct Picker<'a> {
    pick: &'a Pick,
    by_record: HashMap<usize, bool>,
    has_countries: bool,
    has_asns: bool,
}

impl Picker<'_> {
    fn takes(&mut self, found: &LookupResult<'_, &[u8]>) -> bool {
        let Some(offset) = found.offset() else { return false };
        if let Some(taken) = self.by_record.get(&offset) {
            return *taken;
        }
        let mut taken = false;
        if let Some(country) = country(found).filter(|_| !self.pick.countries.is_empty()) {
            self.has_countries = true;
            taken |= self.pick.countries.contains(country);
        }
        if let Some(asn) = asn(found).filter(|_| !self.pick.asns.is_empty()) {
            self.has_asns = true;
            taken |= self.pick.asns.contains(&asn);
        }
        self.by_record.insert(offset, taken);
        taken
    }
}

/// MaxMind's own databases nest the code, others have it flat; a field of another type is none.
fn country<'a>(found: &LookupResult<'a, &[u8]>) -> Option<&'a str> {
    let nested = found.decode_path(&path!["country", "iso_code"]).ok().flatten();
    let flat = || found.decode_path(&path!["country_code"]).ok().flatten();
    nested.or_else(flat).or_else(|| found.decode_path(&path!["country"]).ok().flatten())
}

/// As a number, or as others write it: `AS64500`.
fn asn(found: &LookupResult<'_, &[u8]>) -> Option<u32> {
    let number = found.decode_path(&path!["autonomous_system_number"]).ok().flatten();
    let text = || found.decode_path::<&str>(&path!["asn"]).ok().flatten();
    number.or_else(|| text().and_then(|text| text.strip_prefix("AS").unwrap_or(text).parse().ok()))
}

fn network(found: &LookupResult<'_, &[u8]>) -> Result<IpNet, MaxMindDbError> {
    let net = found.network()?;
    let net = match net.ip() {
        std::net::IpAddr::V4(ip) => Ipv4Net::new(ip, net.prefix()).map(IpNet::V4),
        std::net::IpAddr::V6(ip) => Ipv6Net::new(ip, net.prefix()).map(IpNet::V6),
    };
    net.map_err(|_| MaxMindDbError::invalid_database("a prefix is longer than an address"))
}

#[cfg(test)]
pub(super) mod testing;

#[cfg(test)]
mod tests {
    use super::testing::{Database, Value};
    use super::*;

    fn country_of(code: &str) -> Value {
        Value::map([("country", Value::map([("iso_code", Value::text(code))])), ("x", Value::Number(7))])
    }

    fn number(asn: u32) -> Value {
        Value::map([("autonomous_system_number", Value::Number(asn))])
    }

    fn countries(codes: &[&str]) -> Pick {
        Pick { countries: codes.iter().map(|code| (*code).to_owned()).collect(), ..Pick::default() }
    }

    fn asns(numbers: &[u32]) -> Pick {
        Pick { asns: numbers.iter().copied().collect(), ..Pick::default() }
    }

    fn found(bytes: &[u8], pick: &Pick) -> Vec<String> {
        let mut report = Report::default();
        let entries = parse(bytes, pick, Widest::default(), &mut report).expect("a database");
        let v4 = entries.v4.iter().map(ToString::to_string);
        v4.chain(entries.v6.iter().map(ToString::to_string)).collect()
    }

    #[test]
    fn networks_of_a_country_are_taken_in_both_families() {
        let database = Database::v6("Test-Country")
            .with("198.51.100.0/24", &country_of("AA"))
            .with("203.0.113.0/25", &country_of("BB"))
            .with("203.0.113.128/25", &country_of("AA"))
            .with("2001:db8::/32", &country_of("AA"))
            .with("2001:db9::/32", &country_of("CC"))
            .bytes();
        let expected = ["198.51.100.0/24", "203.0.113.128/25", "2001:db8::/32"];
        assert_eq!(found(&database, &countries(&["AA"])), expected);
        assert_eq!(found(&database, &countries(&["BB", "CC"])), ["203.0.113.0/25", "2001:db9::/32"]);
        assert!(found(&database, &countries(&["ZZ"])).is_empty());
    }

    #[test]
    fn networks_of_an_autonomous_system_are_taken() {
        let database = Database::v4("Test-ASN")
            .with("192.0.2.0/24", &number(64_500))
            .with("198.51.100.0/24", &number(64_501))
            .with("203.0.113.0/24", &Value::map([("asn", Value::text("AS64500"))]))
            .bytes();
        assert_eq!(found(&database, &asns(&[64_500])), ["192.0.2.0/24", "203.0.113.0/24"]);
    }

    #[test]
    fn flat_country_codes_are_understood_too() {
        let database = Database::v4("Other")
            .with("192.0.2.0/24", &Value::map([("country_code", Value::text("AA"))]))
            .with("198.51.100.0/24", &Value::map([("country", Value::text("AA"))]))
            .bytes();
        assert_eq!(found(&database, &countries(&["AA"])).len(), 2);
    }

    #[test]
    fn a_database_without_what_is_asked_for_is_an_error() {
        let database = Database::v4("Test-ASN").with("192.0.2.0/24", &number(64_500)).bytes();
        let refused = parse(&database, &countries(&["AA"]), Widest::default(), &mut Report::default());
        let words = refused.expect_err("no countries").to_string();
        assert_eq!(words, "a database of type \"Test-ASN\" has no country codes");
    }

    #[test]
    fn networks_that_are_too_wide_are_said() {
        let database = Database::v4("Test-ASN").with("0.0.0.0/4", &number(64_500)).bytes();
        let mut report = Report::default();
        let entries = parse(&database, &asns(&[64_500]), Widest::default(), &mut report).expect("a database");
        assert!(entries.v4.is_empty());
        let first = &report.findings[&Kind::TooWide].first[0];
        assert_eq!((first.line, first.text.as_str()), (None, "0.0.0.0/4"));
    }

    #[test]
    fn damaged_databases_are_errors_and_nothing_worse() {
        let bytes = Database::v6("Test-Country").with("198.51.100.0/24", &country_of("AA")).bytes();
        let parse = |bytes: &[u8]| parse(bytes, &countries(&["AA"]), Widest::default(), &mut Report::default());
        assert!(matches!(parse(b"198.51.100.7\n"), Err(MmdbError::Database(_))));
        for cut in (0..bytes.len()).step_by(7) {
            assert!(parse(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        // A flipped byte may leave a database that says something else: it must only be read without a panic.
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x55;
            parse(&damaged).map(|entries| entries.v4.len()).unwrap_or(0);
        }
    }

    #[test]
    fn a_tree_whose_branches_meet_again_ends() {
        // Every node's two branches lead to the next node: 2^120 ways, none to any data.
        let bytes = Database::braid(120);
        let refused = parse(&bytes, &countries(&["AA"]), Widest::default(), &mut Report::default());
        assert!(matches!(refused, Err(MmdbError::NoTree)), "{refused:?}");
    }
}
