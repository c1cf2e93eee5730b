//! Which targets no rule may name.

use ipnet::IpNet;

use crate::domain::AllowlistEntry;
use crate::domain::allowlist::prefix_text;

/// The shortest IPv4 prefix that can be announced: a blackhole of more is an outage of many networks.
const MIN_V4_LEN: u8 = 8;
/// The shortest IPv6 prefix; registries give networks nothing wider.
const MIN_V6_LEN: u8 = 19;

/// What is no unicast address of the Internet or of a private network: nothing there can be announced.
const NO_TARGETS: [(&str, &str); 9] = [
    ("0.0.0.0/8", "is no address of a host"),
    ("127.0.0.0/8", "is the host itself"),
    ("169.254.0.0/16", "is link-local"),
    ("224.0.0.0/3", "is multicast or reserved"),
    ("::/128", "is no address of a host"),
    ("::1/128", "is the host itself"),
    // An allowlisted IPv4 address must not have a second spelling that is not.
    ("::ffff:0:0/96", "is an IPv4 address in IPv6 notation: write it as IPv4"),
    ("fe80::/10", "is link-local"),
    ("ff00::/8", "is multicast"),
];

/// Why no workspace at all may announce `target`.
pub(super) fn never(target: &IpNet) -> Option<String> {
    let shortest = if target.addr().is_ipv4() { MIN_V4_LEN } else { MIN_V6_LEN };
    if target.prefix_len() < shortest {
        return Some(format!("is wider than /{shortest}, the widest prefix that can be announced"));
    }
    NO_TARGETS.iter().find_map(|(range, why)| {
        let range: IpNet = range.parse().expect("a constant prefix");
        if range.contains(target) {
            return Some((*why).to_owned());
        }
        target.contains(&range).then(|| format!("contains {range}, which {why}"))
    })
}

/// Why a workspace with this allowlist may not announce `target`.
pub fn refusal(target: &IpNet, allowlist: &[AllowlistEntry]) -> Option<String> {
    if let Some(why) = never(target) {
        return Some(why);
    }
    if let Some(entry) = allowlist.iter().find(|entry| entry.overlaps(target)) {
        let allowed = prefix_text(&entry.ip_address);
        return Some(if entry.ip_address == *target {
            "is allowlisted".to_owned()
        } else if entry.ip_address.contains(target) {
            format!("is within {allowed}, which is allowlisted")
        } else {
            format!("contains {allowed}, which is allowlisted")
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AllowlistScope, Timestamp};

    fn check(target: &str, allowed: &[&str], expected: Option<&str>) {
        let target: IpNet = target.parse().expect("a prefix");
        let entries: Vec<_> = allowed
            .iter()
            .map(|p| AllowlistEntry {
                id: 1,
                ip_address: p.parse().expect("a prefix"),
                label: String::new(),
                scope: AllowlistScope::Workspace,
                node: None,
                created_at: Timestamp::from_secs(1),
            })
            .collect();
        let got = refusal(&target, &entries);
        match (&got, expected) {
            (None, None) => {}
            (Some(got), Some(part)) => assert!(got.contains(part), "{target}: {got}"),
            _ => panic!("{target} with {allowed:?}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn the_allowlist_beats_every_rule() {
        check("203.0.113.5/32", &[], None);
        check("203.0.113.5/32", &["203.0.113.6/32"], None);
        check("203.0.113.5/32", &["203.0.113.5/32"], Some("is allowlisted"));
        check("203.0.113.5/32", &["203.0.113.0/24"], Some("is within 203.0.113.0/24"));
        check("203.0.113.0/24", &["198.51.100.1/32", "203.0.113.6/32"], Some("contains 203.0.113.6"));
        check("2001:db8::/32", &["2001:db8::1/128"], Some("contains 2001:db8::1"));
    }

    #[test]
    fn nothing_wide_and_nothing_that_is_no_host_is_announced() {
        for (target, expected) in [
            ("0.0.0.0/0", Some("wider than /8")),
            ("128.0.0.0/1", Some("wider than /8")),
            ("10.0.0.0/7", Some("wider than /8")),
            ("10.0.0.0/8", None),
            ("::/0", Some("wider than /19")),
            ("2001:c000::/18", Some("wider than /19")),
            ("2001:e000::/19", None),
            ("127.0.0.1/32", Some("the host itself")),
            ("0.0.0.0/32", Some("no address")),
            ("224.0.0.5/32", Some("multicast")),
            ("255.255.255.255/32", Some("multicast or reserved")),
            ("169.254.169.254/32", Some("link-local")),
            ("::1/128", Some("the host itself")),
            ("::/64", Some("contains ::/128")),
            ("::ffff:203.0.113.5/128", Some("write it as IPv4")),
            ("fe80::1/128", Some("link-local")),
            ("ff02::1/128", Some("multicast")),
        ] {
            check(target, &[], expected);
        }
    }
}
