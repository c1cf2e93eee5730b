//! Which values a feed has, and how it spells them.

use uuid::Uuid;

use super::*;
use crate::domain::AllowlistScope;

fn now() -> Timestamp {
    Timestamp::from_secs(1_000_000_000)
}

fn incident(sources: &[&str], status: &str, spoofed: bool, confidence: f64) -> StoredIncident {
    let sources: Vec<_> = sources.iter().map(|ip| serde_json::json!({ "ip": ip, "pps": 1, "share": 0.1 })).collect();
    let report = serde_json::from_value(serde_json::json!({
        "uuid": Uuid::from_u128(1), "revision": 1, "status": status, "target": "203.0.113.5/32",
        "family": "udp_flood", "severity": "high", "confidence": confidence, "spoofed": spoofed,
        "started_at": "2001-09-09T01:00:00Z", "updated_at": "2001-09-09T01:00:01Z",
        "peak_pps": 1, "peak_bps": 1, "current_pps": 1, "current_bps": 1,
        "threshold": {"quantity": "pps", "value": 10, "origin": "floor", "ratio": 9.0},
        "packets": 5, "dropped_packets": 4, "source_count": 3, "top_sources": sources
    }))
    .expect("a report");
    StoredIncident { id: 1, node: Uuid::nil(), node_name: "edge-1".to_owned(), report, closing: None, severity: None }
}

fn indicator(value: &str, confidence: f64, source: &str) -> Indicator {
    let value = IndicatorValue::parse(value).expect("a value");
    Indicator {
        id: 1,
        kind: value.kind(),
        value,
        confidence,
        source: source.to_owned(),
        description: String::new(),
        first_seen: now(),
        last_seen: now(),
        expires_at: now().plus_secs(1),
        created_at: now(),
        updated_at: now(),
    }
}

fn allowed(prefix: &str) -> AllowlistEntry {
    AllowlistEntry {
        id: 1,
        ip_address: prefix.parse().expect("a prefix"),
        label: String::new(),
        scope: AllowlistScope::Workspace,
        node: None,
        created_at: now(),
    }
}

fn feed(indicators: Vec<Indicator>, incidents: &[StoredIncident], allowlist: &[AllowlistEntry]) -> Vec<FeedEntry> {
    let mut sightings = Sightings::default();
    incidents.iter().for_each(|i| sightings.observe(i));
    assemble_feed(indicators, &sightings, allowlist, FeedQuery::new(None, None, now()).expect("defaults"))
}

fn values(entries: &[FeedEntry]) -> Vec<String> {
    entries.iter().map(|e| e.value.to_string()).collect()
}

#[test]
fn a_query_is_bounded() {
    for (days, confidence, fits) in [
        (None, None, true),
        (Some(1), Some(0.0), true),
        (Some(90), Some(1.0), true),
        (Some(0), None, false),
        (Some(91), None, false),
        (Some(-1), None, false),
        (Some(i64::MIN), None, false),
        (None, Some(-0.01), false),
        (None, Some(1.01), false),
        (None, Some(f64::NAN), false),
        (None, Some(50.0), false),
    ] {
        assert_eq!(FeedQuery::new(days, confidence, now()).is_ok(), fits, "{days:?} {confidence:?}");
    }
}

#[test]
fn only_sources_of_ended_incidents_that_are_not_forged_are_in_a_feed() {
    let table = [
        ("resolved", "resolved", false, 0.9, vec!["198.51.100.7"]),
        ("active", "active", false, 0.9, vec![]),
        ("false positive", "false_positive", false, 0.9, vec![]),
        ("forged", "resolved", true, 0.9, vec![]),
        ("unsure", "resolved", false, 0.49, vec![]),
        ("sure enough", "resolved", false, 0.5, vec!["198.51.100.7"]),
    ];
    for (name, status, spoofed, confidence, expected) in table {
        let seen = incident(&["198.51.100.7"], status, spoofed, confidence);
        assert_eq!(values(&feed(vec![], &[seen], &[])), expected, "{name}");
    }
    let mut closed = incident(&["198.51.100.7"], "resolved", false, 0.9);
    closed.closing = Some(crate::domain::Closing { at: now(), false_positive: true });
    assert!(feed(vec![], &[closed], &[]).is_empty(), "an operator said that it was none");
}

#[test]
fn own_targeted_and_allowlisted_addresses_are_left_out() {
    let sources =
        ["198.51.100.7", "10.0.0.1", "203.0.113.5", "::ffff:192.0.2.9", "fe80::1", "192.0.2.1", "2001:db8::1"];
    let seen = incident(&sources, "resolved", false, 0.9);
    let imported = vec![indicator("192.0.2.128/25", 0.9, "a"), indicator("198.18.0.0/24", 0.9, "a")];
    let entries = feed(imported, &[seen], &[allowed("192.0.2.1/32"), allowed("198.18.0.7/32")]);
    assert_eq!(values(&entries), ["192.0.2.9", "192.0.2.128/25", "198.51.100.7", "2001:db8::1"]);
}

#[test]
fn several_who_say_the_same_are_surer_than_one() {
    let seen = incident(&["198.51.100.7"], "resolved", false, 0.4);
    let again = incident(&["198.51.100.7"], "resolved", false, 0.3);
    assert!(feed(vec![], &[seen.clone(), again.clone()], &[]).is_empty(), "we alone are not independent of us");
    let entries =
        feed(vec![indicator("198.51.100.7", 0.45, "b"), indicator("198.51.100.7", 0.1, "c")], &[seen, again], &[]);
    assert_eq!(entries.len(), 1);
    assert!((entries[0].confidence - (1.0 - 0.6 * 0.55 * 0.9)).abs() < 1e-9, "{entries:?}");
    assert_eq!(entries[0].source, "b", "the surest one is named");
}

#[test]
fn a_feed_keeps_the_surest_in_order_of_value() {
    let many = (0..12_000_u32).map(|n| {
        let ip = IpAddr::from(std::net::Ipv4Addr::from(0xc612_0000 + n));
        indicator(&ip.to_string(), if n < 2_000 { 0.6 } else { 0.9 }, "a")
    });
    let entries = feed(many.collect(), &[], &[]);
    assert_eq!(entries.len(), MAX_ENTRIES);
    assert!(entries.iter().all(|e| e.confidence > 0.8));
    assert!(entries.is_sorted_by(|a, b| a.value < b.value));
}

#[test]
fn every_format_spells_an_entry_strictly() {
    let entry = |value: &str, source: &str, description: &str| FeedEntry {
        value: IndicatorValue::parse(value).expect("a value"),
        confidence: 0.9,
        source: source.to_owned(),
        description: description.to_owned(),
    };
    let table = [
        (FeedFormat::Plain, entry("198.51.100.0/24", "a", ""), "198.51.100.0/24\n"),
        (
            FeedFormat::Suricata,
            entry("2001:db8::1", "a\";)", "\n"),
            "drop ip 2001:db8::1 any -> $HOME_NET any (msg:\"ftagent DDoS source\"; classtype:attempted-dos; \
             sid:9000007; rev:1;)\n",
        ),
        (
            FeedFormat::Zeek,
            entry("198.51.100.7", "ftagent", "udp_flood"),
            "198.51.100.7\tIntel::ADDR\tftagent\tudp_flood\n",
        ),
        (FeedFormat::Zeek, entry("2001:db8::/48", "-", ""), "2001:db8::/48\tIntel::SUBNET\t\\x2d\t-\n"),
        (
            FeedFormat::Zeek,
            entry("evil.example", "a\tb", "c\\d\ne"),
            "evil.example\tIntel::DOMAIN\ta\\x09b\tc\\x5cd\\x0ae\n",
        ),
        (FeedFormat::Zeek, entry("evil.example", "(empty)", "ü"), "evil.example\tIntel::DOMAIN\t\\x28empty)\tü\n"),
    ];
    for (format, entry, expected) in table {
        let mut line = String::new();
        format.write(&mut line, &entry, 7);
        assert_eq!(line, expected, "{format:?}");
    }
}
