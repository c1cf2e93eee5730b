//! An answer of `/v1/decisions/stream`: what it says that this node can act on. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Deserializer};

use super::{Filter, duration};

/// What one answer says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Every decision there is; else what changed since the last answer.
    pub(super) is_whole: bool,
    pub(super) new: Vec<Decision>,
    /// Ids of those that ended or were deleted.
    pub(super) deleted: Vec<i64>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// LAPI's number.
    pub(super) id: i64,
    /// Nanoseconds from the answer on.
    pub(super) lasts_ns: u64,
    pub(super) what: What,
}

/// What a decision wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Without host bits.
    Ban(IpNet),
    /// Nothing that is enforced here.
    Not(Why),
}

/// Why a decision is not enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Why {
    /// Another remedy than a ban, such as a captcha.
    Remedy,
    /// About something else than addresses and prefixes, or a scope that the configuration leaves out.
    Scope,
    /// Its value is no address and no prefix, or its duration none.
    Value,
    Simulated,
    /// Its origin or scenario is left out by the configuration.
    Filtered,
    /// A prefix that is shorter than /16, or /32 for IPv6.
    Broad,
    Allowlisted,
    /// It touches the node itself or what it depends on.
    Guarded,
}

impl Why {
    /// The word in status and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Remedy => "not_ban",
            Self::Scope => "scope",
            Self::Value => "malformed",
            Self::Simulated => "simulated",
            Self::Filtered => "filtered",
            Self::Broad => "too_broad",
            Self::Allowlisted => "allowlisted",
            Self::Guarded => "guarded",
        }
    }
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, deserialize_with = "there")]
    new: Vec<Raw<'a>>,
    #[serde(borrow, deserialize_with = "there")]
    deleted: Vec<Ended<'a>>,
}

/// A list that must be there, if only as `null`, which is how LAPI writes an empty one.
fn there<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Raw<'a> {
    id: i64,
    #[serde(borrow)]
    duration: Cow<'a, str>,
    #[serde(borrow, default)]
    origin: Cow<'a, str>,
    #[serde(borrow, default)]
    scenario: Cow<'a, str>,
    #[serde(borrow)]
    scope: Cow<'a, str>,
    #[serde(rename = "type", borrow)]
    remedy: Cow<'a, str>,
    #[serde(borrow)]
    value: Cow<'a, str>,
    #[serde(default)]
    simulated: Option<bool>,
}

#[derive(Deserialize)]
struct Ended<'a> {
    id: i64,
    /// So that a list of something else is no list of decisions.
    #[serde(borrow)]
    #[expect(dead_code, reason = "it must be there")]
    value: Cow<'a, str>,
}

/// Reads `body`.
///
/// # Errors
/// It is no such answer; what is wrong with it.
pub(super) fn parse(body: &[u8], is_whole: bool, filter: &Filter) -> Result<Reading, String> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let new = answer.new.iter().map(|raw| decision(raw, filter)).collect();
    // What ended is not among all there are.
    let deleted = if is_whole { Vec::new() } else { answer.deleted.iter().map(|e| e.id).collect() };
    Ok(Reading { is_whole, new, deleted })
}

fn decision(raw: &Raw<'_>, filter: &Filter) -> Decision {
    let lasts_ns = duration::parse(&raw.duration);
    let what = match lasts_ns {
        None => What::Not(Why::Value),
        Some(_) => wanted(raw, filter).map_or_else(What::Not, What::Ban),
    };
    // One whose end is not known is remembered for a day, to be counted, or until LAPI says that it ended.
    Decision { id: raw.id, lasts_ns: lasts_ns.unwrap_or(86_400_000_000_000), what }
}

fn wanted(raw: &Raw<'_>, filter: &Filter) -> Result<IpNet, Why> {
    let is_range = raw.scope.eq_ignore_ascii_case("range");
    let is_served = if is_range { filter.ranges } else { filter.addresses && raw.scope.eq_ignore_ascii_case("ip") };
    if !is_served {
        return Err(Why::Scope);
    }
    if raw.simulated == Some(true) {
        return Err(Why::Simulated);
    }
    if !raw.remedy.eq_ignore_ascii_case("ban") {
        return Err(Why::Remedy);
    }
    if !filter.takes(&raw.origin, &raw.scenario) {
        return Err(Why::Filtered);
    }
    let prefix = if is_range { raw.value.parse().ok() } else { raw.value.parse::<IpAddr>().ok().map(IpNet::from) };
    prefix.map(unmapped).ok_or(Why::Value)
}

impl Filter {
    fn takes(&self, origin: &str, scenario: &str) -> bool {
        let is_of = self.origins.is_empty() || self.origins.iter().any(|wanted| wanted.eq_ignore_ascii_case(origin));
        let has = |parts: &[String]| parts.iter().any(|part| scenario.contains(part.as_str()));
        let is_about = self.scenarios_containing.is_empty() || has(&self.scenarios_containing);
        is_of && is_about && !has(&self.scenarios_not_containing)
    }
}

/// Without host bits, and an IPv4 prefix in IPv6's clothes as what it is.
fn unmapped(prefix: IpNet) -> IpNet {
    let prefix = prefix.trunc();
    let IpNet::V6(v6) = prefix else { return prefix };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    match mapped.and_then(|(addr, len)| Ipv4Net::new(addr, len).ok()) {
        Some(v4) => IpNet::V4(v4),
        None => prefix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Filter {
        Filter { addresses: true, ranges: true, ..Filter::default() }
    }

    fn one(fields: &str, filter: &Filter) -> What {
        let body = format!(
            "{{\"new\":[{{\"id\":7,\"duration\":\"4h0m0s\",\"origin\":\"CAPI\",\"scenario\":\"crowdsecurity/ssh-bf\",{fields}}}],\"deleted\":null}}"
        );
        let reading = parse(body.as_bytes(), true, filter).expect(&body);
        assert_eq!((reading.new.len(), reading.new[0].id), (1, 7));
        reading.new[0].what
    }

    fn value(scope: &str, remedy: &str, value: &str) -> String {
        format!("\"scope\":\"{scope}\",\"type\":\"{remedy}\",\"value\":\"{value}\"")
    }

    #[test]
    fn bans_of_addresses_and_prefixes_are_taken_and_others_are_said() {
        let ban = |text: &str| What::Ban(text.parse().expect(text));
        for (fields, expected) in [
            (value("Ip", "ban", "198.51.100.7"), ban("198.51.100.7/32")),
            (value("ip", "Ban", "2001:db8::7"), ban("2001:db8::7/128")),
            (value("Ip", "ban", "::ffff:198.51.100.7"), ban("198.51.100.7/32")),
            (value("Range", "ban", "198.51.100.7/24"), ban("198.51.100.0/24")),
            (value("range", "ban", "::ffff:198.51.100.0/120"), ban("198.51.100.0/24")),
            (value("Ip", "captcha", "198.51.100.7"), What::Not(Why::Remedy)),
            (value("Country", "ban", "AA"), What::Not(Why::Scope)),
            (value("Ip", "ban", "198.51.100.0/24"), What::Not(Why::Value)),
            (value("Range", "ban", "198.51.100.0"), What::Not(Why::Value)),
            (value("Ip", "ban", "no\\u0061ddress"), What::Not(Why::Value)),
            (value("Ip", "ban", "198.51.100.7") + ",\"simulated\":true", What::Not(Why::Simulated)),
            (value("Ip", "ban", "198.51.100.7") + ",\"simulated\":false,\"uuid\":\"x\"", ban("198.51.100.7/32")),
        ] {
            assert_eq!(one(&fields, &all()), expected, "{fields}");
        }
    }

    #[test]
    fn the_configuration_leaves_decisions_out() {
        let fields = value("Ip", "ban", "198.51.100.7");
        let list = |text: &str| vec![text.to_owned()];
        for (filter, expected) in [
            (Filter { addresses: false, ..all() }, Some(Why::Scope)),
            (Filter { ranges: false, ..all() }, None),
            (Filter { origins: list("cscli"), ..all() }, Some(Why::Filtered)),
            (Filter { origins: list("capi"), ..all() }, None),
            (Filter { scenarios_containing: list("http"), ..all() }, Some(Why::Filtered)),
            (Filter { scenarios_containing: list("ssh"), ..all() }, None),
            (Filter { scenarios_not_containing: list("ssh"), ..all() }, Some(Why::Filtered)),
        ] {
            let got = match one(&fields, &filter) {
                What::Ban(_) => None,
                What::Not(why) => Some(why),
            };
            assert_eq!(got, expected, "{filter:?}");
        }
    }

    #[test]
    fn an_answer_is_whole_or_says_what_changed() {
        let body = br#"{"deleted":[{"id":3,"duration":"-1s","origin":"cscli","scenario":"x","scope":"Ip","type":"ban",
            "value":"192.0.2.1"}],"new":null}"#;
        assert_eq!(parse(body, false, &all()).expect("an answer").deleted, [3]);
        assert_eq!(parse(body, true, &all()).expect("an answer").deleted, [0; 0]);
        assert_eq!(parse(br#"{"new":null,"deleted":null}"#, false, &all()), Ok(Reading::default()));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for body in [
            &b""[..],
            b"null",
            b"[]",
            b"{}",
            b"<html>502</html>",
            br#"{"new":[{"id":1}],"deleted":[]}"#,
            br#"{"new":[{"id":"1","duration":"4h","scope":"Ip","type":"ban","value":"192.0.2.1"}]}"#,
            br#"{"new":[],"deleted":[7]}"#,
            br#"{"new":[],"deleted":[]"#,
            br#"{"new":[],"deleted":[]}]"#,
            br#"{"message":"x"}"#,
            b"\xff\xfe",
        ] {
            let got = parse(body, false, &all());
            assert!(got.is_err(), "{:?} gives {got:?}", String::from_utf8_lossy(body));
        }
    }
}
