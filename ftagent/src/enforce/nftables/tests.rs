//! As root in a network namespace of its own, with packets over its loopback; skipped elsewhere with the reason.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use ftagent_common::api::AllowEntry;
use ftagent_common::vocab::Mode;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sendto, socket};

use super::*;
use crate::engine::{Matches, Origin, Point, Verdict};
use crate::test_ground::{in_an_empty_network, run};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_000 * SECOND;

/// The wall clock is the kernel's own, which judges ends.
#[expect(clippy::disallowed_methods, reason = "the kernel compares with the real time")]
fn at(mono_ns: u64) -> Now {
    Now { mono_ns, wall: time::OffsetDateTime::now_utc() }
}

fn now() -> Now {
    at(START)
}

/// A namespace whose loopback carries crafted packets and whose foreign table counts what comes through.
struct Ground {
    v4: OwnedFd,
    v6: OwnedFd,
}

impl Ground {
    fn new() -> Self {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["addr", "add", "192.0.2.1/32", "dev", "lo"]);
        run("ip", &["addr", "add", "2001:db8::1/128", "dev", "lo", "nodad"]);
        let probe = "table inet probe {\n set friends {\n type ipv4_addr\n flags timeout\n \
                     elements = { 203.0.113.1 comment \"ssh\" }\n }\n chain after {\n \
                     type filter hook prerouting priority 0; policy accept;\n counter drop\n }\n}";
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), probe).unwrap();
        run("nft", &["-f", file.path().to_str().unwrap()]);
        let raw = |family| socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).expect("a raw socket");
        Self { v4: raw(AddressFamily::Inet), v6: raw(AddressFamily::Inet6) }
    }

    fn send(&self, packet: &[u8]) {
        let (fd, to): (_, IpAddr) = match packet[0] >> 4 {
            4 => (&self.v4, "192.0.2.1".parse().unwrap()),
            _ => (&self.v6, "2001:db8::1".parse().unwrap()),
        };
        let to = SockaddrStorage::from(SocketAddr::new(to, 0));
        sendto(fd.as_raw_fd(), packet, &to, MsgFlags::empty()).expect("the packet is sent");
    }

    /// How many of `times` packets came through.
    fn passed(&self, packet: &[u8], times: usize) -> u64 {
        let before = self.counter();
        (0..times).for_each(|_| self.send(packet));
        self.counter() - before
    }

    fn passes(&self, packet: &[u8]) -> bool {
        self.passed(packet, 1) == 1
    }

    fn counter(&self) -> u64 {
        let chain = run("nft", &["list", "chain", "inet", "probe", "after"]);
        let words: Vec<&str> = chain.split_whitespace().collect();
        let at = words.iter().position(|w| *w == "packets").expect("a counter");
        words[at + 1].parse().unwrap()
    }
}

/// Runs `test` for each place where rules can be, each time in a network of its own.
fn at_each_place(test: fn(&Place)) {
    for place in [Place::Prerouting, Place::Ingress(vec!["lo".to_owned()])] {
        println!("{place:?}");
        in_an_empty_network(move || test(&place));
    }
}

/// An enforcer at `place` that takes what asks for nftables.
fn here(place: &Place) -> Nftables {
    Nftables { place: place.clone(), ..Nftables::new(false) }
}

fn ruleset() -> String {
    run("nft", &["-s", "list", "ruleset"])
}

/// Our table without counters and without the ends of its rules, which move with the clock.
fn timeless(place: &Place) -> String {
    let shown = run("nft", &["-s", "list", "table", place.as_str(), TABLE]);
    let lines = shown.lines().map(|line| match line.split_once("meta time < ") {
        Some((indent, rest)) => format!("{indent}{}", rest.splitn(3, '"').last().unwrap_or_default()),
        None => line.into(),
    });
    lines.collect::<Vec<String>>().join("\n")
}

fn rule(id: u64, matches: Matches, verdict: Verdict, ends_in_secs: Option<u64>) -> Rule {
    let expires_at_ns = ends_in_secs.map(|secs| START + secs * SECOND);
    Rule {
        id: RuleId(id),
        matches,
        verdict,
        point: Point::Nftables,
        origin: Origin::Operator,
        expires_at_ns,
        evaluate: false,
    }
}

fn block(id: u64, source: &str, ends_in_secs: Option<u64>) -> Rule {
    rule(id, Matches::source(source.parse().unwrap()), Verdict::Drop, ends_in_secs)
}

fn rule_set(rules: impl IntoIterator<Item = Rule>) -> RuleSet {
    RuleSet { rules: rules.into_iter().map(|r| (r.id, r)).collect(), ..RuleSet::default() }
}

fn allow(prefix: &str) -> AllowEntry {
    AllowEntry { prefix: prefix.parse().unwrap(), label: String::new() }
}

fn all_ok(results: &[EnforceResult]) -> Vec<(u64, bool)> {
    for result in results {
        assert_eq!(result.result, Ok(()), "{result:?}");
    }
    results.iter().map(|r| (r.rule.0, r.installed)).collect()
}

fn is_v4(ip: &str) -> bool {
    ip.contains('.')
}

fn ip_step(source: &str, ttl: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match source.parse().unwrap() {
        IpAddr::V4(ip) => {
            let (header, extensions) = (
                etherparse::Ipv4Header::new(0, ttl, etherparse::IpNumber(0), ip.octets(), [192, 0, 2, 1]).unwrap(),
                etherparse::Ipv4Extensions::default(),
            );
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(header, extensions))
        }
        IpAddr::V6(ip) => {
            let destination: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
            let header = etherparse::Ipv6Header {
                hop_limit: ttl,
                source: ip.octets(),
                destination: destination.octets(),
                ..etherparse::Ipv6Header::default()
            };
            PacketBuilder::ip(etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default()))
        }
    }
}

fn udp(source: &str, ttl: u8, ports: [u16; 2], payload: usize) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_step(source, ttl).udp(ports[0], ports[1]).write(&mut packet, &vec![0; payload]).unwrap();
    packet
}

fn tcp(source: &str, flags: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    ip_step(source, 64).tcp(1_000, 80, 0, 0).write(&mut packet, &[]).unwrap();
    let at = if is_v4(source) { 20 } else { 40 };
    packet[at + 13] = flags;
    packet
}

fn icmp(source: &str, kind: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let step = ip_step(source, 64);
    if is_v4(source) {
        step.icmpv4_raw(kind, 0, [0; 4]).write(&mut packet, &[]).unwrap();
    } else {
        step.icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, &[]).unwrap();
    }
    packet
}

/// A later fragment of a UDP datagram.
fn fragment(source: &str) -> Vec<u8> {
    let mut packet = udp(source, 64, [53, 53], 24);
    if is_v4(source) {
        packet[6..8].copy_from_slice(&[0, 3]);
        return packet;
    }
    let header = [17, 0, 0, 3 << 3, 0, 0, 0, 7];
    packet.splice(40..40, header);
    packet[6] = 44;
    packet[5] += 8;
    packet
}

const V4: &str = "198.51.100.7";
const V6: &str = "2001:db8:bad::7";

#[test]
fn each_match_drops_what_it_names_and_nothing_else() {
    at_each_place(|place| {
        let ground = Ground::new();
        let any = Matches::default;
        let net = |text: &str| Some(text.parse().unwrap());
        let plain = |source| udp(source, 64, [1_000, 2_000], 10);
        /// Name, match, packets that it drops, packets that it leaves.
        type Row = (&'static str, Matches, Vec<Vec<u8>>, Vec<Vec<u8>>);
        let rows: Vec<Row> = vec![
            (
                "source",
                any().source_is(net("198.51.100.7/32")),
                vec![plain(V4)],
                vec![plain("198.51.100.8"), plain(V6)],
            ),
            (
                "source v6",
                any().source_is(net("2001:db8:bad::7/128")),
                vec![plain(V6)],
                vec![plain("2001:db8:bad::8"), plain(V4)],
            ),
            (
                "source prefix",
                any().source_is(net("198.51.96.0/20")),
                vec![plain(V4), plain("198.51.111.255")],
                vec![plain("198.51.112.0")],
            ),
            (
                "source prefix v6",
                any().source_is(net("2001:db8:bad::/47")),
                vec![plain(V6)],
                vec![plain("2001:db8:bae::1")],
            ),
            ("target", Matches { target: net("192.0.2.0/29"), ..any() }, vec![plain(V4)], vec![plain(V6)]),
            ("other target", Matches { target: net("192.0.2.8/29"), ..any() }, vec![], vec![plain(V4)]),
            ("target v6", Matches { target: net("2001:db8::1/128"), ..any() }, vec![plain(V6)], vec![plain(V4)]),
            (
                "protocol",
                Matches { protocol: Some(17), ..any() },
                vec![plain(V4), plain(V6)],
                vec![tcp(V4, 2), icmp(V6, 128)],
            ),
            (
                "source port",
                Matches { src_port: Some([1_000, 1_000]), ..any() },
                vec![plain(V4), plain(V6), tcp(V4, 2)],
                vec![udp(V4, 64, [1_001, 1_000], 10), icmp(V4, 8)],
            ),
            (
                "port range",
                Matches { protocol: Some(17), dst_port: Some([1_999, 2_000]), ..any() },
                vec![plain(V4), plain(V6)],
                vec![udp(V4, 64, [1, 2_001], 10), udp(V6, 64, [1, 1_998], 10)],
            ),
            (
                "a later fragment has no ports",
                Matches { protocol: Some(17), dst_port: Some([0, 65_535]), ..any() },
                vec![plain(V4)],
                vec![fragment(V4), fragment(V6)],
            ),
            (
                "length",
                Matches { length: Some([38, 58]), ..any() },
                vec![plain(V4), plain(V6)],
                vec![udp(V4, 64, [1, 2], 31), udp(V6, 64, [1, 2], 11)],
            ),
            (
                "ttl",
                Matches { ttl: Some([64, 65]), ..any() },
                vec![plain(V4), plain(V6)],
                vec![udp(V4, 63, [1, 2], 1), udp(V6, 66, [1, 2], 1)],
            ),
            (
                "icmp type",
                Matches { protocol: Some(1), icmp_type: Some([8, 8]), ..any() },
                vec![icmp(V4, 8)],
                vec![icmp(V4, 0), icmp(V6, 128), plain(V4)],
            ),
            (
                "icmpv6 types",
                Matches { protocol: Some(58), icmp_type: Some([128, 129]), ..any() },
                vec![icmp(V6, 128), icmp(V6, 129)],
                vec![icmp(V6, 4), icmp(V4, 8)],
            ),
            (
                "syn alone",
                Matches { protocol: Some(6), tcp_flags: Some([0x17, 0x02]), ..any() },
                vec![tcp(V4, 0x02), tcp(V6, 0x02), tcp(V4, 0xc2)],
                vec![tcp(V4, 0x12), tcp(V6, 0x10), plain(V4)],
            ),
            (
                "no flags",
                Matches { tcp_flags: Some([0x3f, 0]), ..any() },
                vec![tcp(V4, 0)],
                vec![tcp(V4, 1), plain(V4)],
            ),
            (
                "fragments",
                Matches { fragment: Some(true), ..any() },
                vec![fragment(V4), fragment(V6)],
                vec![plain(V4), plain(V6)],
            ),
            (
                "whole datagrams",
                Matches { fragment: Some(false), ..any() },
                vec![plain(V4), plain(V6)],
                vec![fragment(V4), fragment(V6)],
            ),
            (
                "all of it at once",
                Matches {
                    source: net("198.51.100.0/24"),
                    target: net("192.0.2.1/32"),
                    protocol: Some(17),
                    src_port: Some([53, 53]),
                    dst_port: Some([0, 4_000]),
                    length: Some([512, 1_500]),
                    ttl: Some([0, 128]),
                    fragment: Some(false),
                    ..any()
                },
                vec![udp(V4, 64, [53, 99], 500)],
                vec![
                    udp(V4, 64, [54, 99], 500),
                    udp(V4, 64, [53, 99], 10),
                    udp(V4, 129, [53, 99], 500),
                    udp("198.51.101.7", 64, [53, 99], 500),
                ],
            ),
        ];
        let before = ruleset();
        let mut nftables = here(place);
        for (name, matches, dropped, passing) in rows {
            all_ok(&nftables.reconcile(&RuleSet::default(), now()));
            for packet in dropped.iter().chain(&passing) {
                assert!(ground.passes(packet), "{name}: a packet does not pass without rules: {packet:02x?}");
            }
            // A block of a source is a set element: with a second field it is a rule, and both must hold.
            let as_rule = Matches { ttl: matches.ttl.or(Some([0, 255])), ..matches.clone() };
            for (form, matches) in [("as it is", matches), ("as a rule", as_rule)] {
                let wanted = rule_set([rule(7, matches, Verdict::Drop, Some(60))]);
                all_ok(&nftables.reconcile(&wanted, now()));
                for (n, packet) in dropped.iter().enumerate() {
                    assert!(!ground.passes(packet), "{name} {form}: packet {n} passed\n{}", ruleset());
                }
                for (n, packet) in passing.iter().enumerate() {
                    assert!(ground.passes(packet), "{name} {form}: packet {n} was dropped\n{}", ruleset());
                }
                assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [], "{name} {form}: twice is once");
            }
        }
        all_ok(&nftables.reconcile(&RuleSet::default(), now()));
        assert_eq!(ruleset(), before, "nothing stays and nothing foreign was touched");
    });
}

impl Matches {
    fn source_is(self, source: Option<ipnet::IpNet>) -> Self {
        Self { source, ..self }
    }
}

#[test]
fn allowed_sources_outrank_every_rule() {
    at_each_place(|place| {
        let ground = Ground::new();
        let everything = Matches { ttl: Some([0, 255]), ..Matches::default() };
        let mut wanted = rule_set([
            block(1, "198.51.100.0/24", None),
            block(2, "198.51.100.7/32", None),
            block(3, "2001:db8:bad::/48", None),
            rule(4, everything, Verdict::Drop, None),
        ]);
        wanted.allow = vec![allow("198.51.100.7/32"), allow("2001:db8:bad::/64")];
        let mut nftables = here(place);
        all_ok(&nftables.reconcile(&wanted, now()));
        assert!(ground.passes(&udp(V4, 64, [1, 2], 1)), "{}", ruleset());
        assert!(ground.passes(&udp(V6, 64, [1, 2], 1)));
        assert!(!ground.passes(&udp("198.51.100.8", 64, [1, 2], 1)));
        assert!(!ground.passes(&udp("2001:db8:bad:1::7", 64, [1, 2], 1)));
        assert!(!ground.passes(&udp("203.0.113.9", 64, [1, 2], 1)));
        wanted.allow.clear();
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), []);
        assert!(!ground.passes(&udp(V4, 64, [1, 2], 1)), "taken off the list");
    });
}

#[test]
fn neighbour_discovery_of_the_link_outranks_every_rule() {
    at_each_place(|place| {
        let ground = Ground::new();
        let icmp = Matches { protocol: Some(58), ..Matches::default() };
        let wanted = rule_set([block(1, "2001:db8:bad::/48", None), rule(2, icmp, Verdict::Drop, None)]);
        all_ok(&here(place).reconcile(&wanted, now()));
        let message = |kind: u8, ttl| {
            let mut packet = Vec::new();
            ip_step(V6, ttl).icmpv6_raw(kind, 0, [0; 4]).write(&mut packet, &[0; 16]).unwrap();
            packet
        };
        for (kind, ttl, passes) in [(133, 255, true), (137, 255, true), (135, 254, false), (128, 255, false)] {
            assert_eq!(ground.passes(&message(kind, ttl)), passes, "{kind} {ttl}: {}", ruleset());
        }
    });
}

#[test]
fn what_a_rule_lets_pass_comes_before_drops_and_behind_blocks() {
    at_each_place(|place| {
        let ground = Ground::new();
        let any = Matches::default;
        let dns = Matches { dst_port: Some([53, 53]), ..any() };
        let mut wanted = rule_set([
            rule(1, Matches { protocol: Some(17), ..any() }, Verdict::Drop, None),
            rule(2, Matches { dst_port: Some([50, 60]), ..any() }, Verdict::LimitPps { pps: 1, burst: 1 }, None),
            block(3, "198.51.100.0/24", None),
        ]);
        let mut nftables = here(place);
        all_ok(&nftables.reconcile(&wanted, now()));
        // It comes later than what drops.
        wanted.rules.insert(RuleId(9), rule(9, dns, Verdict::Pass, None));
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [(9, true)]);
        for (source, port, passes) in
            [("203.0.113.9", 53, 5), ("2001:db8:bad::7", 53, 5), (V4, 53, 0), ("203.0.113.9", 54, 0)]
        {
            assert_eq!(ground.passed(&udp(source, 64, [9, port], 1), 5), passes, "{source} {port}: {}", ruleset());
        }
        assert!(!ground.passes(&fragment("203.0.113.9")) && !ground.passes(&fragment(V6)), "{}", ruleset());
        wanted.rules.remove(&RuleId(9));
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [(9, false)]);
        assert!(!ground.passes(&udp("203.0.113.9", 64, [9, 53], 1)));
    });
}

#[test]
fn limits_let_their_rate_pass_and_evaluate_lets_everything() {
    at_each_place(|place| {
        let ground = Ground::new();
        let source = Matches::source("198.51.100.7/32".parse().unwrap());
        let packet = udp(V4, 64, [1, 2], 72);
        let mut nftables = here(place);
        let mut wanted = rule_set([rule(1, source.clone(), Verdict::LimitPps { pps: 1, burst: 10 }, None)]);
        all_ok(&nftables.reconcile(&wanted, now()));
        let passed = ground.passed(&packet, 100);
        assert!((10..=12).contains(&passed), "{passed} of 100 over 1/s with a burst of 10\n{}", ruleset());
        // 100-byte datagrams: 8,000 bits are ten of them, the burst ten more.
        wanted = rule_set([rule(2, source, Verdict::LimitBps { bps: 8_000, burst: 8_000 }, None)]);
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [(2, true), (1, false)]);
        let passed = ground.passed(&packet, 100);
        assert!((10..=25).contains(&passed), "{passed} of 100 over 8 kbit/s\n{}", ruleset());
        wanted.rules.insert(RuleId(3), block(3, "198.51.100.0/24", None));
        wanted.mode = Some(Mode::Evaluate);
        all_ok(&nftables.reconcile(&wanted, now()));
        assert_eq!(ground.passed(&packet, 50), 50);
        assert!(
            run("nft", &["list", "chain", place.as_str(), TABLE, "mitigate"]).contains("counter packets 50"),
            "hits are counted"
        );
        wanted.mode = Some(Mode::Bypass);
        all_ok(&nftables.reconcile(&wanted, now()));
        assert!(!ruleset().contains(TABLE));
    });
}

#[test]
fn undo_leaves_the_ruleset_as_it_was_and_removing_what_is_gone_succeeds() {
    at_each_place(|place| {
        let _ground = Ground::new();
        let before = ruleset();
        let mut nftables = here(place);
        let wanted = rule_set([block(1, "198.51.100.7/32", Some(60)), block(2, "2001:db8:bad::/48", None)]);
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [(1, true), (2, true)]);
        let shown = ruleset();
        assert!(shown.contains("ftagent:1") && shown.contains("ftagent:2"), "{shown}");
        assert_eq!(all_ok(&nftables.reconcile(&RuleSet::default(), now())), [(1, false), (2, false)]);
        assert_eq!(ruleset(), before);

        all_ok(&nftables.reconcile(&wanted, now()));
        run("nft", &["delete", "table", place.as_str(), TABLE]);
        assert_eq!(all_ok(&nftables.reconcile(&RuleSet::default(), now())), [(1, false), (2, false)]);
        nftables.remove_all().unwrap();
        assert_eq!(ruleset(), before);
    });
}

#[test]
fn what_somebody_deleted_or_added_is_put_right() {
    at_each_place(|place| {
        let ground = Ground::new();
        let dns = Matches { protocol: Some(17), src_port: Some([53, 53]), ..Matches::default() };
        let wanted = rule_set([block(1, "198.51.100.7/32", Some(600)), rule(2, dns, Verdict::Drop, Some(600))]);
        let mut nftables = here(place);
        all_ok(&nftables.reconcile(&wanted, now()));
        let right = timeless(place);
        let blocked = udp(V4, 64, [1, 2], 1);
        let damages: [&[&str]; 6] = [
            &["delete", "element", place.as_str(), TABLE, "blocked4_32", "{ 198.51.100.7 }"],
            &["flush", "chain", place.as_str(), TABLE, "transport"],
            &["flush", "chain", place.as_str(), TABLE, "mitigate"],
            &["insert", "rule", place.as_str(), TABLE, "mitigate", "accept"],
            &["add", "rule", place.as_str(), TABLE, "network", "tcp", "dport", "22", "drop"],
            &["add", "chain", place.as_str(), TABLE, "stranger"],
        ];
        for damage in damages {
            run("nft", damage);
            all_ok(&nftables.reconcile(&wanted, now()));
            assert_eq!(timeless(place), right, "after {damage:?}");
            assert!(!ground.passes(&blocked));
        }
        run("nft", &["delete", "table", place.as_str(), TABLE]);
        run("nft", &["add", "table", place.as_str(), TABLE]);
        run("nft", &["add", "set", place.as_str(), TABLE, "blocked4_32", "{ type inet_service; }"]);
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [(1, true), (2, true)]);
        assert_eq!(timeless(place), right);
    });
}

#[test]
fn a_restarted_agent_finds_its_own_and_keeps_it() {
    at_each_place(|place| {
        let ground = Ground::new();
        let dns = Matches { protocol: Some(17), src_port: Some([53, 53]), ..Matches::default() };
        let mut wanted = rule_set([block(1, "198.51.100.7/32", Some(600)), rule(2, dns, Verdict::Drop, Some(600))]);
        all_ok(&here(place).reconcile(&wanted, now()));
        assert!(!ground.passes(&udp(V4, 64, [53, 2], 1)));
        let hits = run("nft", &["list", "table", place.as_str(), TABLE]);

        let mut restarted = here(place);
        assert_eq!(restarted.observe().unwrap(), [1, 2].map(RuleId).into());
        assert_eq!(all_ok(&restarted.reconcile(&wanted, now())), [(1, true), (2, true)]);
        let later = run("nft", &["list", "table", place.as_str(), TABLE]);
        let without_clock = |text: &str| -> Vec<String> {
            text.split_whitespace().filter(|w| !w.ends_with("ms,") && !w.ends_with("ms")).map(Into::into).collect()
        };
        assert_eq!(without_clock(&later), without_clock(&hits), "counters go on: nothing was written again");
        // What it did not know any more goes.
        wanted.rules.remove(&RuleId(2));
        all_ok(&restarted.reconcile(&wanted, now()));
        assert_eq!(restarted.observe().unwrap(), [RuleId(1)].into());
    });
}

#[test]
fn ends_are_in_the_kernel_and_can_be_moved() {
    at_each_place(|place| {
        let ground = Ground::new();
        let from_v6 = Matches { protocol: Some(17), ..Matches::source("2001:db8:bad::7/128".parse().unwrap()) };
        let mut wanted = rule_set([block(1, "198.51.100.7/32", Some(3)), rule(2, from_v6, Verdict::Drop, Some(3))]);
        let mut nftables = here(place);
        all_ok(&nftables.reconcile(&wanted, now()));
        let packets = [udp(V4, 64, [1, 2], 1), udp(V6, 64, [1, 2], 1)];
        assert!(packets.iter().all(|p| !ground.passes(p)));
        // Nobody reconciles: the agent is dead.
        std::thread::sleep(Duration::from_millis(4_100));
        assert!(packets.iter().all(|p| ground.passes(p)), "{}", ruleset());

        for rule in wanted.rules.values_mut() {
            rule.expires_at_ns = Some(START + 3 * SECOND + 600 * SECOND);
        }
        assert_eq!(all_ok(&nftables.reconcile(&wanted, at(START + 3 * SECOND))), [(1, true), (2, true)]);
        assert!(packets.iter().all(|p| !ground.passes(p)), "{}", ruleset());
        for rule in wanted.rules.values_mut() {
            rule.expires_at_ns = None;
        }
        all_ok(&nftables.reconcile(&wanted, at(START + 3 * SECOND)));
        let shown = run("nft", &["list", "table", place.as_str(), TABLE]);
        assert!(!shown.contains("expires") && !shown.contains("meta time"), "{shown}");
        // Expired in the engine's eyes and not yet swept.
        for rule in wanted.rules.values_mut() {
            rule.expires_at_ns = Some(START);
        }
        assert_eq!(all_ok(&nftables.reconcile(&wanted, at(START + 4 * SECOND))), [(1, false), (2, false)]);
        assert!(!ruleset().contains(TABLE));
    });
}

#[test]
fn a_rule_that_cannot_be_holds_up_no_other() {
    at_each_place(|place| {
        let ground = Ground::new();
        let contradiction =
            Matches { target: "2001:db8::/32".parse().ok(), ..Matches::source("192.0.2.0/24".parse().unwrap()) };
        // More than the kernel's 64 bits of nanoseconds can hold.
        let absurd = Verdict::LimitPps { pps: u64::MAX, burst: u64::MAX };
        let wanted = rule_set([
            block(1, "198.51.100.7/32", None),
            rule(2, contradiction, Verdict::Drop, None),
            rule(3, Matches { protocol: Some(17), ..Matches::default() }, absurd, None),
        ]);
        let mut nftables = here(place);
        let results = nftables.reconcile(&wanted, now());
        let failed: Vec<u64> = results.iter().filter(|r| r.result.is_err()).map(|r| r.rule.0).collect();
        assert_eq!(failed, [2, 3], "{results:?}");
        assert!(results.iter().any(|r| r.rule == RuleId(1) && r.result.is_ok()));
        assert!(!ground.passes(&udp(V4, 64, [1, 2], 1)));
    });
}

#[test]
fn without_the_right_the_remedy_is_named_and_every_rule_fails() {
    let denied = NftablesError::from(io::Error::from_raw_os_error(libc::EPERM)).to_string();
    assert!(denied.contains("CAP_NET_ADMIN"), "{denied}");
    let missing = NftablesError::from(io::Error::from_raw_os_error(libc::EPROTONOSUPPORT)).to_string();
    assert!(missing.contains("CONFIG_NF_TABLES"), "{missing}");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the time is what is measured")]
fn ten_thousand_sources_are_blocked_quickly_and_in_one_transaction() {
    in_an_empty_network(|| {
        let ground = Ground::new();
        let source = |n: u64| format!("198.{}.{}.{}/32", 18 + n / 65_536, n / 256 % 256, n % 256);
        let wanted = rule_set((0..10_000).map(|n| block(n, &source(n), Some(600))));
        let mut nftables = Nftables::new(false);
        let start = Instant::now();
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())).len(), 10_000);
        let first = start.elapsed();
        let start = Instant::now();
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), []);
        let again = start.elapsed();
        println!("10,000 sources: installed in {first:?}, looked at again in {again:?} (debug build)");
        assert_eq!(nftables.observe().unwrap().len(), 10_000);
        assert!(!ground.passes(&udp("198.18.39.15", 64, [1, 2], 1)), "the last one");
        assert!(ground.passes(&udp("198.18.39.16", 64, [1, 2], 1)));
    });
}

fn hundreds(from: u64) -> RuleSet {
    let dns = Matches { protocol: Some(17), src_port: Some([53, 53]), ..Matches::default() };
    let blocks = (0..300).map(|n| block(from + n, &format!("198.{}.{}.7/32", from / 1_000, n % 256), Some(600)));
    rule_set(blocks.chain([rule(from + 999, dns, Verdict::Drop, Some(600))]))
}

/// The child of the next test: goes from one set to the other until it is killed.
#[test]
#[ignore = "run by a_killed_agent_leaves_one_whole_set in a process of its own"]
fn agent_to_be_killed() {
    if std::env::var_os("FTAGENT_TEST_NFTABLES").is_none() {
        return;
    }
    let mut nftables = Nftables::new(false);
    for n in 0_u64.. {
        all_ok(&nftables.reconcile(&hundreds(18_000 + n % 2 * 1_000), now()));
        println!("reconciled");
    }
}

#[test]
fn a_killed_agent_leaves_one_whole_set() {
    in_an_empty_network(|| {
        use std::io::{BufRead, BufReader};
        let sets = [18_000, 19_000].map(|from| hundreds(from).rules.into_keys().collect::<BTreeSet<RuleId>>());
        for wait_ms in [0, 1, 2, 3, 5, 8, 13, 21] {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "enforce::nftables::tests::agent_to_be_killed", "--ignored", "--nocapture"])
                .env("FTAGENT_TEST_NFTABLES", "1")
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(said.any(|line| line.unwrap().contains("reconciled")));
            std::thread::sleep(Duration::from_millis(wait_ms));
            child.kill().unwrap();
            child.wait().unwrap();
            let left = Nftables::new(false).observe().unwrap();
            // 300 blocks of 256 addresses: an element stands for the last of its rules.
            let whole = sets.iter().any(|set| left.is_subset(set) && left.len() > 250);
            assert!(whole, "after {wait_ms} ms: {left:?}");
        }
        let mut nftables = Nftables::new(false);
        all_ok(&nftables.reconcile(&hundreds(18_000), now()));
        all_ok(&nftables.reconcile(&RuleSet::default(), now()));
        assert_eq!(ruleset(), "");
    });
}

#[test]
fn what_the_kernel_can_is_found_out_without_a_trace() {
    in_an_empty_network(|| {
        let _ground = Ground::new();
        let before = ruleset();
        Nftables::try_at(&Place::Prerouting).expect("this kernel can");
        Nftables::try_at(&Place::Ingress(vec!["lo".to_owned()])).expect("this kernel can");
        // A device that is missing is no error from 6.16 on; no device can be called so.
        let missing = Nftables::try_at(&Place::Ingress(vec!["far-too-long-a-name".to_owned()]));
        assert!(missing.is_err_and(|error| error.to_string().starts_with("nftables: ")));
        assert_eq!(ruleset(), before);
        run("nft", &["add", "table", "inet", "ftagent_probe"]);
        assert!(Nftables::try_at(&Place::Prerouting).is_err());
        assert!(ruleset().contains("ftagent_probe"), "it is somebody else's");
    });
}

#[test]
fn rules_follow_devices_that_come_and_go() {
    in_an_empty_network(|| {
        let ground = Ground::new();
        let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| (*name).to_owned()).collect() };
        run("ip", &["link", "add", "ft0", "type", "veth", "peer", "name", "ft1"]);
        let mut nftables = here(&Place::Prerouting);
        nftables.set_devices(names(&["lo", "ft0"]));
        let wanted = rule_set([block(1, "198.51.100.7/32", None)]);
        all_ok(&nftables.reconcile(&wanted, now()));
        assert_eq!(all_ok(&nftables.reconcile(&wanted, now())), [], "twice is once");
        let blocked = udp(V4, 64, [1, 2], 1);
        assert!(!ground.passes(&blocked));
        // Another set of devices, and one that the kernel took out of the chain with the device.
        nftables.set_devices(names(&["lo"]));
        all_ok(&nftables.reconcile(&wanted, now()));
        assert!(!run("nft", &["list", "table", "netdev", TABLE]).contains("ft0"));
        nftables.set_devices(names(&["ft0", "lo"]));
        all_ok(&nftables.reconcile(&wanted, now()));
        run("ip", &["link", "del", "ft0"]);
        run("ip", &["link", "add", "ft0", "type", "veth", "peer", "name", "ft1"]);
        assert!(!ground.passes(&blocked), "the others go on");
        all_ok(&nftables.reconcile(&wanted, now()));
        assert!(run("nft", &["list", "table", "netdev", TABLE]).contains("ft0"), "it is back");
        assert!(!ground.passes(&blocked));
        // A device that the kernel refuses, as before 6.16 each that is not there, holds up none of the others.
        nftables.set_devices(names(&["lo", "far-too-long-a-name"]));
        let more = rule_set([block(1, "198.51.100.7/32", None), block(2, "203.0.113.9/32", None)]);
        assert_eq!(all_ok(&nftables.reconcile(&more, now())), [(1, true), (2, true)]);
        assert_eq!(all_ok(&nftables.reconcile(&more, now())), [], "twice is once");
        assert!(!ground.passes(&udp("203.0.113.9", 64, [1, 2], 1)));
        assert_eq!(nftables.missing(), ["far-too-long-a-name"]);
        nftables.set_devices(names(&["far-too-long-a-name"]));
        assert!(nftables.reconcile(&more, now()).iter().all(|result| result.result.is_err()), "there is no other");
        nftables.remove_all().unwrap();
        assert!(ground.passes(&blocked));
    });
}
