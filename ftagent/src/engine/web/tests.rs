//! The engine against sites and connections: attacks of every kind, and those who only look like one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ftagent_common::api::{AllowEntry, IncidentReport};
use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use ipnet::IpNet;
use time::OffsetDateTime;
use uuid::Uuid;

use super::testing::request;
use super::*;
use crate::engine::{Command, EnforceResult, Engine, Input, Now, Settings, Verdict};

const TARGET: &str = "203.0.113.5";

/// An engine, its time, and what it said.
struct Sim {
    engine: Engine,
    now_ns: u64,
    seed: u64,
    reports: BTreeMap<Uuid, IncidentReport>,
}

impl Sim {
    fn new(settings: Settings) -> Self {
        let now_ns = 1_000 * SEC;
        Self { engine: Engine::new(settings, at(now_ns)), now_ns, seed: 7, reports: BTreeMap::new() }
    }

    fn tell(&mut self, input: Input) {
        self.engine.on(input, at(self.now_ns));
        while let Some(command) = self.engine.poll_command() {
            match command {
                Command::Report(report) => {
                    self.reports.insert(report.uuid, *report);
                }
                Command::Enforce(set) => {
                    let results = set.rules.keys().map(|id| EnforceResult {
                        rule: *id,
                        installed: true,
                        result: Ok(()),
                        at_mono_ns: self.now_ns,
                    });
                    self.engine.on(Input::Enforced(results.collect()), at(self.now_ns));
                }
                _ => {}
            }
        }
    }

    fn roll(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.seed >> 33
    }

    /// For `secs`, `rps` requests a second that `make` makes, in four lumps a second, beside everyday visitors.
    fn run(&mut self, secs: u64, rps: u64, visitors: u64, make: impl Fn(u64, u64) -> WebRequest) {
        for _ in 0..secs * 4 {
            self.now_ns += SEC / 4;
            let mut requests: Vec<WebRequest> = (0..rps / 4).map(|i| make(self.roll(), i)).collect();
            requests.extend((0..visitors / 4).map(|_| visitor(self.roll())));
            self.tell(Input::Requests(RequestBatch { requests, ..RequestBatch::default() }));
        }
    }

    /// Two minutes of everyday life.
    fn learn(&mut self, visitors: u64) {
        self.run(120, 0, visitors, |_, _| unreachable!("none"));
        assert!(self.reports.is_empty(), "everyday life is no attack: {:?}", self.reports);
    }

    fn only(&self) -> &IncidentReport {
        assert_eq!(self.reports.len(), 1, "{:#?}", self.reports.values().map(|r| &r.explanation).collect::<Vec<_>>());
        self.reports.values().next().expect("one")
    }

    fn blocked(&self) -> Vec<IpNet> {
        self.engine.desired().rules.values().filter_map(|r| r.matches.source).collect()
    }
}

fn at(mono_ns: u64) -> Now {
    Now { mono_ns, wall: OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_nanos(mono_ns) }
}

fn v4(n: u64) -> IpAddr {
    Ipv4Addr::from_bits(0xc612_0000 + n as u32).into()
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// One of 2,000 people with 40 browsers who look at pages with their pictures.
fn visitor(roll: u64) -> WebRequest {
    let who = roll % 2_000;
    let mut r = request(TARGET);
    r.source = v4(0x10_000 + who);
    (r.agent, r.path) = (100 + who % 40, (roll >> 12) % 300);
    r.asset = r.path > 60;
    r.status = if (roll >> 20).is_multiple_of(20) { 404 } else { 200 };
    if (roll >> 24).is_multiple_of(10) {
        r.method = Method::Post;
    }
    r
}

/// One of `bots` machines that asks for the same page.
fn bot(roll: u64, bots: u64) -> WebRequest {
    let mut r = request(TARGET);
    r.source = v4(roll % bots);
    (r.agent, r.path) = (5, 3);
    r
}

/// What must come of a flood of 2,000 requests a second: subtype, least and most confidence, sources blocked.
fn check(name: &str, make: impl Fn(u64, u64) -> WebRequest, subtype: &str, confidence: [f64; 2], blocked: [usize; 2]) {
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    sim.run(8, 2_000, 100, make);
    let (report, got) = (sim.only(), sim.blocked());
    let words = format!("{name}: {:?} {} {:#?}", report.subtype, report.confidence, report.explanation);
    assert_eq!((report.family, report.subtype.as_deref()), (AttackFamily::HttpFlood, Some(subtype)), "{words}");
    assert!((confidence[0]..=confidence[1]).contains(&report.confidence), "{words}");
    assert!((blocked[0]..=blocked[1]).contains(&got.len()), "{words} {} blocked", got.len());
    assert_eq!(report.threshold.quantity, "requests_per_sec");
    let innocent = got.iter().filter(|net| net.contains(&v4(0x10_000)) || net.addr() >= v4(0x10_000)).count();
    assert_eq!(innocent, 0, "{words}: visitors are blocked");
}

#[test]
fn floods_are_named_and_their_sources_blocked() {
    check("few sources", |roll, _| bot(roll, 10), "get_flood", [0.7, 1.0], [10, 10]);
    let post = |roll, _| WebRequest { method: Method::Post, ..bot(roll, 20) };
    check("posts", post, "post_flood", [0.7, 1.0], [20, 20]);
    let busting = |roll, _| WebRequest { query: Some(roll), ..bot(roll, 10) };
    check("cache busting", busting, "cache_busting", [0.8, 1.0], [10, 10]);
    let reset = |roll, _| WebRequest { status: 499, millis: Some(0), bytes: 0, ..bot(roll, 10) };
    check("rapid reset", reset, "rapid_reset", [0.8, 1.0], [10, 10]);
    let untimed = |roll, _| WebRequest { status: 499, millis: None, bytes: 0, ..bot(roll, 10) };
    check("rapid reset without times", untimed, "rapid_reset", [0.8, 1.0], [10, 10]);
    // Each of 400 asks five times a second: what they ask gives them away, not how often.
    let many = |roll: u64, _| WebRequest { query: Some(roll >> 3), ..bot(roll, 400) };
    check("botnet that busts caches", many, "cache_busting", [0.7, 1.0], [300, 400]);
    let rotating = |roll: u64, _| WebRequest { agent: roll, ..bot(roll, 10) };
    check("other agents each time", rotating, "get_flood", [0.7, 1.0], [10, 10]);
}

#[test]
fn many_bots_that_ask_seldom_are_reported_and_not_blocked() {
    // 1,500 sources, one page without its pictures, one agent: an attack, but nobody can be told from a visitor.
    check("botnet", |roll, _| bot(roll, 1_500), "get_flood", [0.5, 0.8], [0, 0]);
}

#[test]
fn a_crowd_opens_an_incident_of_low_confidence_and_blocks_nobody() {
    check("crowd", |roll, _| visitor(roll), "flash_crowd", [0.2, 0.4], [0, 0]);
    // Everybody reads the same article, with its pictures.
    let article = |roll: u64, _| {
        let r = visitor(roll);
        if r.asset { r } else { WebRequest { path: 3, ..r } }
    };
    check("one article", article, "flash_crowd", [0.2, 0.4], [0, 0]);
    // The server cannot keep up: errors of its own and clients that give up after long.
    let overload = |roll: u64, _| WebRequest {
        status: if (roll >> 9).is_multiple_of(2) { 503 } else { 499 },
        millis: Some(20_000),
        ..visitor(roll)
    };
    check("overload", overload, "flash_crowd", [0.2, 0.4], [0, 0]);
}

#[test]
fn who_always_asks_much_and_who_stands_for_many_are_left_alone() {
    let (client, health, office) = (v4(0x9_000), v4(0x9_001), v4(0x9_002));
    let regular = move |source: IpAddr, path: u64| WebRequest { source, agent: 77, path, ..request(TARGET) };
    let everyday = move |roll: u64, i: u64| match i % 10 {
        0..6 => regular(client, roll % 100),
        6 => regular(health, 1),
        _ => visitor(roll),
    };
    let mut sim = Sim::new(Settings::default());
    sim.run(180, 200, 100, everyday);
    assert!(sim.reports.is_empty(), "an API client is no attack");
    // Then an attack, while both go on, and an office with fifty people comes by.
    sim.run(8, 2_400, 100, move |roll, i| match i % 24 {
        0..2 => everyday(roll, i % 20 / 2),
        2 => WebRequest { source: office, ..visitor(roll) },
        _ => bot(roll, 8),
    });
    let blocked = sim.blocked();
    assert_eq!(blocked.len(), 8, "{blocked:?}");
    assert!(blocked.iter().all(|net| !net.contains(&client) && !net.contains(&health) && !net.contains(&office)));
    let told: Vec<&str> = sim.only().timeline.iter().map(|e| e.text.as_str()).collect();
    assert!(told.iter().any(|t| t.contains("several people behind one address")), "{told:#?}");
}

#[test]
fn search_engines_proxies_and_the_allowlist_are_left_alone() {
    let source = v4(0x9_100);
    let crawl = |share: u64| {
        move |roll: u64, i: u64| {
            let crawler = WebRequest { source, crawler: true, path: roll % 5_000, ..request(TARGET) };
            if i < share { crawler } else { bot(roll, 5) }
        }
    };
    let flood = |settings: Settings, share: u64| {
        let mut sim = Sim::new(settings);
        sim.learn(100);
        sim.run(8, 600, 100, crawl(share));
        sim
    };
    let words = |sim: &Sim| sim.only().timeline.iter().map(|e| e.text.clone()).collect::<Vec<_>>().join("\n");
    // 60 of 600 requests a second: often for a person, not for a search engine.
    let sim = flood(Settings::default(), 15);
    assert_eq!(sim.blocked().len(), 5, "{}", words(&sim));
    assert!(words(&sim).contains("search engine"), "{}", words(&sim));
    // No search engine asks 400 times a second, whatever it calls itself.
    assert!(flood(Settings::default(), 100).blocked().contains(&IpNet::from(source)));

    let proxies = WebSettings { trusted_proxies: vec![net("198.18.0.0/16")], ..WebSettings::default() };
    let sim = flood(Settings { web: proxies, ..Settings::default() }, 0);
    assert!(sim.blocked().is_empty() && words(&sim).contains("a block would hit everybody behind it"));

    let allow = vec![AllowEntry { prefix: net("198.18.0.0/30"), label: "partner".to_owned() }];
    let sim = flood(Settings { allow, ..Settings::default() }, 0);
    assert_eq!(sim.blocked(), [net("198.18.0.4/32")], "{}", words(&sim));
    assert!(words(&sim).contains("partner"));
}

#[test]
fn what_arrives_through_a_proxy_is_reported_and_not_blocked() {
    let through = |roll, _| WebRequest { proxied: true, ..bot(roll, 10) };
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    sim.run(8, 2_000, 100, through);
    assert!(sim.blocked().is_empty());
    assert!(sim.only().timeline.iter().any(|e| e.text.contains("through a trusted proxy")), "{:#?}", sim.only());
}

#[test]
fn the_response_follows_the_configuration() {
    for (response, expected) in [
        (WebResponse::Block, Some(Verdict::Drop)),
        (WebResponse::Limit, Some(Verdict::LimitPps { pps: 50, burst: 50 })),
        (WebResponse::Report, None),
    ] {
        let web = WebSettings { response, ..WebSettings::default() };
        let mut sim = Sim::new(Settings { web, ..Settings::default() });
        sim.learn(50);
        sim.run(6, 2_000, 50, |roll, _| bot(roll, 3));
        let verdicts: Vec<Verdict> = sim.engine.desired().rules.values().map(|r| r.verdict).collect();
        assert_eq!(verdicts, expected.map_or(vec![], |v| vec![v; 3]), "{response:?}");
        assert!(sim.only().confidence >= 0.7);
    }
}

#[test]
fn lumps_of_a_buffered_log_are_no_flood() {
    // 300 requests a second, written every five seconds.
    let mut sim = Sim::new(Settings::default());
    for _ in 0..60 {
        sim.now_ns += 3 * SEC;
        let requests = (0..1_500).map(|_| visitor(sim.roll())).collect();
        sim.tell(Input::Requests(RequestBatch { requests, ..RequestBatch::default() }));
        for _ in 0..8 {
            sim.now_ns += SEC / 4;
            sim.tell(Input::Requests(RequestBatch::default()));
        }
    }
    assert!(sim.reports.is_empty(), "{:?}", sim.reports);
}

#[test]
fn what_is_usual_raises_the_threshold_and_survives_a_restart() {
    let mut sim = Sim::new(Settings::default());
    for _ in 0..6 {
        sim.run(60, 0, 400, |_, _| unreachable!("none"));
    }
    let view = sim.engine.view().sites.remove(0);
    assert_eq!(view.origin, "baseline");
    assert!((1_100..1_400).contains(&view.threshold), "{view:?}");
    let state = serde_json::to_string(&sim.engine.state()).expect("JSON");
    let state = serde_json::from_str(&state).expect("what was written");
    let mut heir = Sim { engine: Engine::restore(Settings::default(), state, at(sim.now_ns), true), ..sim };
    heir.run(20, 0, 900, |_, _| unreachable!("none"));
    assert!(heir.reports.is_empty(), "{:?}", heir.reports);
    heir.run(5, 1_000, 900, |roll, _| bot(roll, 4));
    assert_eq!(heir.blocked().len(), 4);
}

#[test]
fn a_blocked_flood_goes_on_while_its_packets_arrive_and_ends_after() {
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    sim.run(6, 2_000, 100, |roll, _| bot(roll, 10));
    assert_eq!(sim.blocked().len(), 10);
    // The server sees nothing of it any more; the kernel does.
    for second in 1..=30u64 {
        sim.run(1, 0, 100, |_, _| unreachable!("none"));
        let hits = sim.engine.rules_of_web_floods().into_iter().map(|id| (id, second * 50)).collect::<Vec<_>>();
        assert_eq!(hits.len(), 10);
        sim.tell(Input::Hits(hits));
    }
    assert_eq!(sim.only().status, IncidentStatus::Active);
    assert_eq!(sim.blocked().len(), 10);
    sim.run(12, 0, 100, |_, _| unreachable!("none"));
    assert_eq!(sim.only().status, IncidentStatus::Resolved, "{:#?}", sim.only().timeline);
    assert!(sim.blocked().is_empty());
}

#[test]
fn pulses_of_requests_are_one_incident_that_is_opened_again() {
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    // The second pause ends while it is not known that the rules are gone, the third long after.
    for (pause, kept) in [(15, false), (22, false), (90, false), (60, true)] {
        sim.run(6, 2_000, 100, |roll, _| bot(roll, 10));
        assert_eq!(sim.only().status, IncidentStatus::Active);
        assert_eq!(sim.blocked().len(), 10, "{:#?}", sim.only().timeline);
        sim.run(pause, 0, 100, |_, _| unreachable!("none"));
        assert_eq!(sim.blocked().len(), if kept { 10 } else { 0 }, "after {pause} s");
    }
    let report = sim.engine.view().incidents.remove(0);
    assert_eq!(report.timeline.iter().filter(|t| t.kind == "reopened").count(), 3);
    assert_eq!(report.executions.iter().map(|e| e.uuid).collect::<std::collections::BTreeSet<_>>().len(), 4);
    assert_eq!(sim.engine.rules_of_web_floods().len(), 10, "of the last time alone");
}

/// Connections of one source: how many, and received and acknowledged bytes at a look.
struct Held {
    source: IpAddr,
    count: u64,
    received: fn(u64) -> u64,
    acked: fn(u64) -> u64,
    unsent: u32,
}

impl Held {
    fn new(source: &str, count: u64, received: fn(u64) -> u64, acked: fn(u64) -> u64) -> Self {
        Self { source: source.parse().expect("an address"), count, received, acked, unsent: 0 }
    }
}

/// A minute of looks, five seconds apart.
fn look(sim: &mut Sim, held: &[Held]) {
    for n in 0..12 {
        sim.now_ns += 5 * SEC;
        let connections = held.iter().enumerate().flat_map(|(i, h)| {
            (0..h.count).map(move |c| Connection {
                cookie: (i as u64) << 32 | c,
                target: TARGET.parse().expect("an address"),
                port: 443,
                source: h.source,
                received: (h.received)(n * 5),
                acked: (h.acked)(n * 5),
                unsent: h.unsent,
            })
        });
        let connections = connections.collect();
        sim.tell(Input::Connections(ConnectionReading { connections, truncated: false }));
    }
}

#[test]
fn slow_connections_are_an_attack_by_the_source_that_holds_many() {
    // (name, connections of the attacker)
    let table = [
        ("header by header", Held::new("198.51.100.9", 60, |s| 200 + s / 10 * 20, |_| 1)),
        ("within TLS", Held::new("198.51.100.9", 60, |s| 900 + s / 10 * 30, |_| 4_500)),
        ("silent", Held::new("198.51.100.9", 120, |_| 0, |_| 1)),
        ("unread", Held { unsent: 60_000, ..Held::new("198.51.100.9", 60, |_| 400, |s| 2_000 + s * 5) }),
        ("of a network", Held::new("2001:db8::9", 60, |s| 200 + s / 10 * 20, |_| 1)),
    ];
    for (name, attacker) in table {
        let mut sim = Sim::new(Settings::default());
        let net = verdict::prefix(window::unit(attacker.source));
        look(&mut sim, &[attacker, Held::new("198.51.100.50", 6, |_| 900, |_| 30_000)]);
        let report = sim.only();
        assert_eq!(report.subtype.as_deref(), Some("slow_rate"), "{name}");
        assert!(report.confidence >= 0.7, "{name}: {}", report.confidence);
        assert_eq!(report.threshold.quantity, "slow_connections");
        assert_eq!(sim.blocked(), [net], "{name}");
    }
}

#[test]
fn connections_that_rest_wait_or_talk_are_no_attack() {
    let table = [
        // Answered, then kept for the next request.
        ("keep-alive", Held::new("198.51.100.9", 300, |_| 900, |_| 30_000)),
        // One question, and the answer is waited for.
        ("long poll", Held::new("198.51.100.9", 300, |_| 900, |_| 1)),
        // Pings, and answers to them.
        ("websocket", Held::new("198.51.100.9", 300, |s| 900 + s * 2, |s| 200 + s * 2)),
        ("upload", Held::new("198.51.100.9", 300, |s| 900 + s * 50_000, |_| 1)),
        ("slow download", Held { unsent: 9_000, ..Held::new("198.51.100.9", 300, |_| 400, |s| 2_000 + s * 3_000) }),
        // Those of a load balancer that nobody named.
        ("spare connections", Held::new("198.51.100.9", 60, |_| 0, |_| 1)),
        ("few slow ones", Held::new("198.51.100.9", 15, |s| 200 + s / 10 * 20, |_| 1)),
    ];
    for (name, held) in table {
        let mut sim = Sim::new(Settings::default());
        look(&mut sim, &[held]);
        assert!(sim.reports.is_empty() && sim.blocked().is_empty(), "{name}: {:?}", sim.reports);
    }
    // An office behind one address, of which some have a bad line.
    let mut sim = Sim::new(Settings::default());
    let good = Held::new("198.51.100.9", 100, |_| 900, |_| 30_000);
    look(&mut sim, &[good, Held::new("198.51.100.9", 30, |s| 200 + s / 10 * 20, |_| 1)]);
    assert!(sim.blocked().is_empty());
}

#[test]
fn slow_connections_of_many_sources_are_reported_alone() {
    let mut sim = Sim::new(Settings::default());
    let held: Vec<Held> =
        (0..100).map(|i| Held::new(&format!("198.51.100.{i}"), 5, |s| 200 + s / 10 * 20, |_| 1)).collect();
    look(&mut sim, &held);
    assert!(sim.only().confidence < 0.5 && sim.blocked().is_empty(), "{:?}", sim.only());
    let proxies = WebSettings { trusted_proxies: vec![net("198.51.100.0/24")], ..WebSettings::default() };
    let mut sim = Sim::new(Settings { web: proxies, ..Settings::default() });
    look(&mut sim, &[Held::new("198.51.100.9", 300, |s| 200 + s / 10 * 20, |_| 1)]);
    assert!(sim.blocked().is_empty());
}

#[test]
fn a_slow_attack_ends_when_its_connections_do() {
    let mut sim = Sim::new(Settings::default());
    look(&mut sim, &[Held::new("198.51.100.9", 60, |s| 200 + s / 10 * 20, |_| 1)]);
    assert_eq!(sim.blocked().len(), 1);
    look(&mut sim, &[]);
    assert_eq!(sim.only().status, IncidentStatus::Resolved);
    assert!(sim.blocked().is_empty());
}

/// An incident that packets opened and called a flood of requests, at a confidence too low to act on.
fn by_packets(sim: &mut Sim) -> Uuid {
    let threshold = Threshold { value: 10_000.0, origin: ThresholdOrigin::Floor };
    let excess = Excess { quantity: Quantity::Pps, rate: 20_000.0, threshold, ratio: 2.0 };
    let mut incident = crate::engine::Incident::open(net("203.0.113.5/32"), false, excess, 0, 30_000, at(sim.now_ns));
    (incident.family, incident.confidence) = (AttackFamily::HttpFlood, 0.4);
    let uuid = incident.uuid;
    sim.engine.incidents.insert(uuid, incident);
    uuid
}

#[test]
fn what_packets_half_know_is_completed_by_the_log() {
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    let uuid = by_packets(&mut sim);
    sim.run(8, 2_000, 100, |roll, _| bot(roll, 10));
    let report = sim.only();
    assert_eq!((report.uuid, report.subtype.as_deref()), (uuid, Some("get_flood")), "one attack, one incident");
    assert!(report.confidence >= 0.7 && report.threshold.quantity == "pps", "{report:#?}");
    assert_eq!(report.explanation.iter().filter(|text| text.contains("sources send")).count(), 1);
    assert_eq!(sim.blocked().len(), 10);
}

#[test]
fn a_flood_that_packets_show_later_takes_over_and_keeps_its_blocks() {
    let mut sim = Sim::new(Settings::default());
    sim.learn(100);
    sim.run(5, 2_000, 100, |roll, _| bot(roll, 10));
    let first = sim.only().uuid;
    let rules: Vec<_> = sim.engine.desired().rules.into_keys().collect();
    let uuid = by_packets(&mut sim);
    sim.engine.absorb_web(uuid, at(sim.now_ns));
    sim.run(3, 2_000, 100, |roll, _| bot(roll, 10));
    assert_eq!(sim.reports[&first].status, IncidentStatus::Resolved);
    assert_eq!(sim.reports[&uuid].status, IncidentStatus::Active);
    assert_eq!(sim.reports.len(), 2, "{:?}", sim.reports.keys());
    assert!(sim.reports[&uuid].confidence >= 0.7);
    let after: Vec<_> = sim.engine.desired().rules.into_keys().collect();
    assert_eq!(rules, after, "no packet passes in between");
    assert_eq!(sim.engine.rules_of_web_floods().len(), 10);
}

#[test]
fn a_flood_of_packets_beside_slow_connections_is_an_incident_of_its_own() {
    let mut sim = Sim::new(Settings::default());
    look(&mut sim, &[Held::new("198.51.100.9", 60, |s| 200 + s / 10 * 20, |_| 1)]);
    assert_eq!(sim.reports.len(), 1);
    let mut counters = ftagent_common::abi::TargetCounters::default();
    for tick in 0..20u64 {
        sim.now_ns += 50 * MS;
        counters.classes[ftagent_common::vocab::TrafficClass::Udp.index()].passed.packets = tick * 5_000;
        let targets = vec![(TARGET.parse().expect("an address"), counters)];
        sim.tell(Input::Counters(crate::engine::CounterReading { targets, ..Default::default() }));
    }
    sim.now_ns += 2 * SEC;
    sim.tell(Input::Requests(RequestBatch::default()));
    assert_eq!(sim.reports.len(), 2, "{:?}", sim.reports);
}
