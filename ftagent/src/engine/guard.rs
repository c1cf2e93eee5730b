//! What nothing automated may do. Every automatic rule passes here, once when it is made and again when the lists
//! change; what is refused says why.

use std::net::IpAddr;

use ftagent_common::api::{AllowEntry, Spans, is_broad};
use ipnet::IpNet;

use super::rules::{Matches, Point, Rule, Verdict};
use super::sample::SEC;
use super::settings::Settings;

/// Why a rule is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}: everything automated is refused until it can be read")]
    Unreadable(String),
    #[error("{source_prefix} touches {entry}, which is on the allowlist{}", in_brackets(.label))]
    Allowlisted { source_prefix: IpNet, entry: IpNet, label: String },
    #[error("{source_prefix} touches {own}, an address of this node")]
    Own { source_prefix: IpNet, own: IpNet },
    #[error("{source_prefix} touches {entry} ({name}), which the node depends on")]
    Infrastructure { source_prefix: IpNet, entry: IpNet, name: String },
    #[error("{source_prefix} touches {peer}, from where {who} is connected: a session in use is never cut")]
    Session { source_prefix: IpNet, peer: IpAddr, who: String },
    #[error("{0} is too broad for an automatic rule: the shortest prefixes are /16 and, for IPv6, /32")]
    TooBroad(IpNet),
    #[error("{0} sources are in sets of nftables: no room for {1} more, {MAX_ELEMENTS} is the most")]
    Elements(usize, usize),
    #[error("a rule without source and target would hit everybody")]
    Everybody,
    #[error("dropping everything towards {0} is what the attacker wants")]
    SelfInflicted(IpNet),
    #[error("an automatic rule must end by itself within a day")]
    Lifetime,
    #[error("{0} automatic rules are in force: no room for more")]
    Quota(usize),
    #[error("more than {0} new rules a second")]
    TooFast(u32),
}

fn in_brackets(label: &str) -> String {
    if label.is_empty() { String::new() } else { format!(" ({label})") }
}

/// New automatic rules per second; a burst of a thousand sources takes no longer than that.
pub const RULES_PER_SEC: u32 = 1_000;
/// Seconds that an automatic rule may live without being renewed.
const MAX_LIFETIME_SECS: u64 = 86_400;
/// Automatic rules of one target; the kernel's list has 16 places, and an operator needs some.
pub const PER_TARGET: usize = 12;

/// Sources that rules of many sources may have together.
const MAX_ELEMENTS: usize = 262_144;

/// Counts new rules by the second.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    second: u64,
    made: u32,
}

impl Pace {
    /// Takes one place.
    ///
    /// # Errors
    /// When this second's places are gone.
    pub fn take(&mut self, now_ns: u64) -> Result<(), Refusal> {
        let second = now_ns / SEC;
        if second != self.second {
            *self = Self { second, made: 0 };
        }
        if self.made >= RULES_PER_SEC {
            return Err(Refusal::TooFast(RULES_PER_SEC));
        }
        self.made += 1;
        Ok(())
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// Whom nothing blocks, as spans of addresses: says at once of most sources that they touch none. Lists of sources and
/// allowlists may both be long.
pub(super) struct Friends(Spans);

impl Friends {
    /// Everybody whom [`check_source`] asks for.
    pub(super) fn of(settings: &Settings, allow: &[AllowEntry]) -> Self {
        let guard = &settings.guard;
        let peers: Vec<IpNet> = guard.sessions.iter().map(|session| IpNet::from(session.peer)).collect();
        let named = guard.own.iter().chain(allow.iter().map(|entry| &entry.prefix));
        let named = named.chain(guard.infrastructure.iter().map(|(prefix, _)| prefix));
        Self(Spans::of(named.chain(&peers)))
    }

    /// [`check_source`], for one of many.
    ///
    /// # Errors
    /// As there.
    pub(super) fn check(&self, source: &IpNet, settings: &Settings, allow: &[AllowEntry]) -> Result<(), Refusal> {
        if settings.guard.unreadable.is_none() && !is_broad(source) && !self.0.touch(source) {
            return Ok(());
        }
        check_source(source, settings, allow)
    }
}

/// Says why nobody may block `source` automatically, or that one may.
///
/// # Errors
/// The first list entry that the prefix touches, in either direction.
pub fn check_source(source: &IpNet, settings: &Settings, allow: &[AllowEntry]) -> Result<(), Refusal> {
    if let Some(why) = &settings.guard.unreadable {
        return Err(Refusal::Unreadable(why.clone()));
    }
    let source_prefix = *source;
    if let Some(own) = settings.guard.own.iter().find(|own| overlap(own, source)) {
        return Err(Refusal::Own { source_prefix, own: *own });
    }
    if let Some(entry) = allow.iter().find(|e| overlap(&e.prefix, source)) {
        return Err(Refusal::Allowlisted { source_prefix, entry: entry.prefix, label: entry.label.clone() });
    }
    if let Some((entry, name)) = settings.guard.infrastructure.iter().find(|(e, _)| overlap(e, source)) {
        return Err(Refusal::Infrastructure { source_prefix, entry: *entry, name: name.clone() });
    }
    if let Some(session) = settings.guard.sessions.iter().find(|s| source.contains(&s.peer)) {
        return Err(Refusal::Session { source_prefix, peer: session.peer, who: session.who() });
    }
    if is_broad(source) {
        return Err(Refusal::TooBroad(*source));
    }
    Ok(())
}

/// Checks what an automatic rule would match and do, quotas aside.
///
/// # Errors
/// Why it is refused.
pub fn check(matches: &Matches, verdict: Verdict, settings: &Settings, allow: &[AllowEntry]) -> Result<(), Refusal> {
    if let Some(why) = &settings.guard.unreadable {
        return Err(Refusal::Unreadable(why.clone()));
    }
    if let Some(source) = &matches.source {
        check_source(source, settings, allow)?;
    }
    let Some(target) = matches.target else {
        return if matches.source.is_none() { Err(Refusal::Everybody) } else { Ok(()) };
    };
    if is_broad(&target) {
        return Err(Refusal::TooBroad(target));
    }
    if verdict == Verdict::Drop && *matches == Matches::target(target) {
        return Err(Refusal::SelfInflicted(target));
    }
    Ok(())
}

/// Checks a rule's end.
///
/// # Errors
/// When it has none, or one too far away.
pub fn check_lifetime(expires_at_ns: Option<u64>, now_ns: u64) -> Result<(), Refusal> {
    match expires_at_ns {
        Some(end) if end > now_ns && end - now_ns <= MAX_LIFETIME_SECS * SEC => Ok(()),
        _ => Err(Refusal::Lifetime),
    }
}

/// Checks that there is room for one more among `rules`.
///
/// # Errors
/// When the node's or the target's share is used up.
pub fn check_room<'a>(
    rules: impl Iterator<Item = &'a Rule>,
    matches: &Matches,
    point: Point,
    max_rules: u32,
) -> Result<(), Refusal> {
    let (mut all, mut of_target) = (0, 0);
    for rule in rules.filter(|r| r.origin.is_automatic()) {
        all += 1;
        if point == Point::Datapath && rule.point == point && rule.matches.target.is_some() {
            of_target += usize::from(rule.matches.target == matches.target);
        }
    }
    if all >= max_rules as usize {
        return Err(Refusal::Quota(all));
    }
    if matches.target.is_some() && of_target >= PER_TARGET {
        return Err(Refusal::Quota(of_target));
    }
    Ok(())
}

/// Checks that there is room for the sources of one more among `rules`.
///
/// # Errors
/// When there is not.
pub fn check_elements<'a>(rules: impl Iterator<Item = &'a Rule>, matches: &Matches) -> Result<(), Refusal> {
    if matches.sources.is_empty() {
        return Ok(());
    }
    let all: usize = rules.map(|rule| rule.matches.sources.len()).sum();
    let more = matches.sources.len();
    if all + more > MAX_ELEMENTS { Err(Refusal::Elements(all, more)) } else { Ok(()) }
}

/// Whether an operator may block `source`: everything but what would lock the node out.
///
/// # Errors
/// When it touches the node's own addresses, what it depends on, the allowlist, or is everybody.
pub fn check_operator(source: &IpNet, settings: &Settings, allow: &[AllowEntry]) -> Result<(), Refusal> {
    if source.prefix_len() == 0 {
        return Err(Refusal::Everybody);
    }
    let readable =
        Settings { guard: super::Guard { unreadable: None, ..settings.guard.clone() }, ..Settings::default() };
    match check_source(source, &readable, allow) {
        Err(Refusal::TooBroad(_)) | Ok(()) => Ok(()),
        Err(why) => Err(why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::settings::{Guard, Session};

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    fn settings() -> Settings {
        let guard = Guard {
            own: vec![net("203.0.113.5/32")],
            infrastructure: vec![(net("203.0.113.1/32"), "gateway".to_owned())],
            sessions: vec![Session {
                peer: "192.0.2.99".parse().expect("an address"),
                ports: vec![22, 2222],
                user: "alice".to_owned(),
                since: 0,
            }],
            management_ports: Vec::new(),
            unreadable: None,
        };
        Settings { guard, ..Settings::default() }
    }

    fn refusal(matches: &Matches, verdict: Verdict) -> Option<String> {
        let allow = [AllowEntry { prefix: net("198.51.100.0/24"), label: "office".to_owned() }];
        check(matches, verdict, &settings(), &allow).err().map(|e| e.to_string())
    }

    #[test]
    fn friends_are_never_blocked() {
        let limit = Verdict::LimitPps { pps: 1, burst: 1 };
        // (name, matches, verdict, part of the refusal)
        let table = [
            ("stranger", Matches::source(net("192.0.2.7/32")), Verdict::Drop, None),
            ("allowlisted", Matches::source(net("198.51.100.7/32")), Verdict::Drop, Some("office")),
            ("limit of one", Matches::source(net("198.51.100.7/32")), limit, Some("office")),
            ("prefix around one", Matches::source(net("198.51.0.0/16")), Verdict::Drop, Some("allowlist")),
            ("own address", Matches::source(net("203.0.113.5/32")), Verdict::Drop, Some("this node")),
            ("gateway", Matches::source(net("203.0.113.1/32")), Verdict::Drop, Some("gateway")),
            ("an operator's session", Matches::source(net("192.0.2.99/32")), limit, Some("alice (port 22, 2222)")),
            ("prefix around one", Matches::source(net("192.0.2.0/24")), Verdict::Drop, Some("a session in use")),
            ("broad source", Matches::source(net("11.0.0.0/8")), Verdict::Drop, Some("too broad")),
            ("broad target", Matches::target(net("2000::/3")), limit, Some("too broad")),
            ("everybody", Matches::default(), Verdict::Drop, Some("everybody")),
            ("whole target", Matches::target(net("203.0.113.5/32")), Verdict::Drop, Some("attacker wants")),
            ("limit of the target", Matches::target(net("203.0.113.5/32")), limit, None),
        ];
        for (name, matches, verdict, expected) in table {
            match (refusal(&matches, verdict), expected) {
                (None, None) => {}
                (Some(got), Some(part)) => assert!(got.contains(part), "{name}: {got}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn many_sources_are_judged_as_one_is() {
        let allow = ["198.51.100.0/24", "198.51.100.128/25", "2001:db8::/48", "198.51.101.0/32"]
            .map(|prefix| AllowEntry { prefix: net(prefix), label: String::new() });
        let settings = settings();
        let friends = Friends::of(&settings, &allow);
        let mut allowed = 0;
        for third in 98..104_u32 {
            for last in (0..256_u32).step_by(3).chain([255]) {
                for len in [16, 22, 24, 25, 31, 32] {
                    let ip = std::net::Ipv4Addr::from(0xc633_0000 + (third << 8) + last);
                    let source = IpNet::new(ip.into(), len).expect("a prefix").trunc();
                    let (one, many) =
                        (check_source(&source, &settings, &allow), friends.check(&source, &settings, &allow));
                    assert_eq!(one, many, "{source}");
                    allowed += usize::from(one.is_ok());
                }
            }
        }
        assert!(allowed > 500, "{allowed}");
        for source in [
            "2001:db8::7/128",
            "2001:db8::/33",
            "2001:db8:1::/48",
            "2001:db7:ffff::/48",
            "0.0.0.0/1",
            "::/0",
            "192.0.2.99/32",
            "192.0.2.0/24",
            "203.0.113.4/31",
            "203.0.113.6/31",
            "255.255.255.255/32",
        ] {
            let source = net(source);
            assert_eq!(check_source(&source, &settings, &allow), friends.check(&source, &settings, &allow), "{source}");
        }
    }

    #[test]
    fn an_unreadable_list_refuses_everything() {
        let mut s = settings();
        s.guard.unreadable = Some("allow.toml: permission denied".to_owned());
        let got = check(&Matches::source(net("192.0.2.7/32")), Verdict::Drop, &s, &[]);
        assert!(got.is_err_and(|e| e.to_string().contains("permission denied")));
        assert!(check_operator(&net("192.0.2.7/32"), &s, &[]).is_ok(), "an operator decides for himself");
    }

    #[test]
    fn a_rule_without_a_near_end_is_refused() {
        assert!(check_lifetime(Some(300 * SEC), 0).is_ok());
        assert!(check_lifetime(None, 0).is_err());
        assert!(check_lifetime(Some(100_000 * SEC), 0).is_err());
    }

    #[test]
    fn no_more_than_a_thousand_rules_a_second() {
        let mut pace = Pace::default();
        let made = (0..2_000).filter(|_| pace.take(5 * SEC).is_ok()).count();
        assert_eq!(made, RULES_PER_SEC as usize);
        assert!(pace.take(6 * SEC).is_ok());
    }
}
