//! Exporters from datagram to incident, on a simulated clock.

use ftagent_common::vocab::{AttackFamily, IncidentStatus};
use time::{Duration, OffsetDateTime};

use super::config::Protocol;
use super::testing::{
    Dice, Exported, TEMPLATE, ethernet_tcp, ethernet_udp, ipfix, netflow5, netflow9, record, set, sflow, sflow_sample,
    template,
};
use super::*;
use crate::engine::OrderOutcome;
use crate::engine::sample::{MS, SEC};

const ROUTER: [u8; 4] = [192, 0, 2, 1];
const TARGET: [u8; 4] = [203, 0, 113, 5];
const START: u64 = 1_000 * SEC;
/// What the exporters' clock says at the start.
const UNIX: u32 = 1_700_000_000;

fn at(mono_ns: u64) -> Now {
    let wall = OffsetDateTime::from_unix_timestamp(UNIX.into()).expect("a time");
    Now { mono_ns, wall: wall + Duration::nanoseconds((mono_ns - START) as i64) }
}

fn listener() -> ListenerConfig {
    ListenerConfig {
        listen: "127.0.0.1:6343".parse().expect("an address"),
        protocol: Protocol::Auto,
        exporters: vec!["192.0.2.0/24".parse().expect("a prefix"), "198.18.0.1/32".parse().expect("a prefix")],
        sampling_rate: 1,
        prefixes: vec!["203.0.113.0/24".parse().expect("a prefix")],
        input_interfaces: Vec::new(),
        egress: false,
        active_timeout_secs: 1_800,
        silent_secs: 30,
    }
}

/// Exporters under a simulated clock.
struct Site {
    flows: Flows,
    now_ns: u64,
    reports: BTreeMap<Uuid, IncidentReport>,
}

impl Site {
    fn new(listener: ListenerConfig) -> Self {
        let flows = Flows::new(vec![listener], &Settings::default(), SavedExporters::new(), true, at(START));
        let mut site = Self { flows, now_ns: START, reports: BTreeMap::new() };
        site.run(SEC);
        site
    }

    fn send(&mut self, datagram: &[u8]) {
        self.flows.on_datagram(0, ROUTER.into(), datagram, at(self.now_ns));
    }

    fn take(&mut self, outcome: Outcome) -> Option<OrderOutcome> {
        let mut answer = None;
        for said in outcome.said {
            match said {
                Said::Report(report) => _ = self.reports.insert(report.uuid, *report),
                Said::Answer(outcome) => answer = Some(outcome),
                Said::Ack(_) => {}
            }
        }
        answer
    }

    fn run(&mut self, ns: u64) {
        let end = self.now_ns + ns;
        while self.now_ns < end {
            self.now_ns += 100 * MS;
            let outcome = self.flows.on_tick(at(self.now_ns));
            self.take(outcome);
        }
    }

    fn unix(&self) -> u32 {
        UNIX + ((self.now_ns - START) / SEC) as u32
    }

    fn exporter(&self) -> ExporterStatus {
        let status = self.flows.status(at(self.now_ns));
        let mut exporters = status.listeners.into_iter().flat_map(|l| l.exporters);
        exporters.find(|e| e.address == IpAddr::from(ROUTER)).expect("the router is known")
    }

    /// The one incident that is known by now.
    fn incident(&self) -> IncidentReport {
        let incidents = self.flows.status(at(self.now_ns)).incidents;
        let [incident] = incidents.as_slice() else { panic!("{} incidents: {incidents:?}", incidents.len()) };
        incident.clone()
    }
}

/// A site under `pps` of sampled frames, one in `one_in` as a Poisson process has them, for `secs`.
fn sflow_site(secs: u64, pps: u64, one_in: u32, frame: impl Fn(&mut Dice) -> (Vec<u8>, u32)) -> Site {
    let mut site = Site::new(listener());
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut sequence = 0;
    for _ in 0..secs * 10 {
        // Each millisecond has a sample with its probability, several where the rate is high.
        let per_ms = pps as f64 / 1_000.0 / f64::from(one_in);
        let mut samples = Vec::new();
        for _ in 0..100 {
            let extra = f64::from((dice.roll() >> 40) as u32) / f64::from(1u32 << 24) < per_ms.fract();
            for _ in 0..per_ms as u64 + u64::from(extra) {
                let (header, len) = frame(&mut dice);
                samples.push(sflow_sample(one_in, 3, 4, &header, len + 4));
            }
        }
        for some in samples.chunks(8) {
            sequence += 1;
            site.send(&sflow(sequence, some));
        }
        site.run(100 * MS);
    }
    site
}

fn syn(dice: &mut Dice) -> (Vec<u8>, u32) {
    let src = (dice.roll() as u32).to_be_bytes();
    (ethernet_tcp([src[0] | 1, src[1], src[2], src[3]], TARGET, (1_024 + dice.below(60_000) as u16, 80), 2), 60)
}

fn dns_answer(dice: &mut Dice) -> (Vec<u8>, u32) {
    let src = [80 + dice.below(20) as u8, dice.roll() as u8, 7, 9];
    (ethernet_udp(src, TARGET, 53, 1_024 + dice.below(60_000) as u16, 1_200), 1_242)
}

#[test]
fn sampled_floods_are_named_with_their_target_and_source() {
    type Maker = fn(&mut Dice) -> (Vec<u8>, u32);
    let floods: [(&str, Maker, AttackFamily); 2] =
        [("SYN", syn, AttackFamily::SynFlood), ("DNS", dns_answer, AttackFamily::DnsAmplification)];
    for (name, frame, family) in floods {
        for one_in in [1, 100, 1_000] {
            let site = sflow_site(if one_in == 1 { 1 } else { 6 }, 200_000, one_in, frame);
            let report = site.incident();
            let shown = format!("{name} 1 in {one_in}: {report:?}");
            assert_eq!((report.family, report.target.to_string()), (family, "203.0.113.5/32".to_owned()), "{shown}");
            assert!(report.confidence >= 0.5, "{shown}");
            assert_eq!((report.dropped_packets, report.executions.len()), (0, 0), "{shown}");
            let words = report.explanation.join("\n");
            assert!(words.contains("seen by exporter 192.0.2.1 (sflow5)"), "{words}");
            assert!(words.contains("in by interface 3 (100 %)"), "{words}");
            assert!(words.contains("nothing was dropped"), "{words}");
            assert!(report.timeline[1].text.starts_with("seen by exporter"), "{:?}", report.timeline);
        }
    }
}

#[test]
fn sampling_is_corrected() {
    for one_in in [1, 64, 1_000] {
        let site = sflow_site(if one_in == 1 { 2 } else { 20 }, 6_000, one_in, dns_answer);
        let shown = site.exporter();
        let ratio = shown.pps as f64 / 6_000.0;
        assert!((0.6..1.5).contains(&ratio), "1 in {one_in}: {shown:?}");
        let bytes = shown.bps as f64 / shown.pps as f64 / 8.0;
        assert!((bytes - 1_242.0).abs() < 20.0, "1 in {one_in}: {bytes} bytes a frame");
    }
}

/// Clients of a web site: each sends several packets of a connection.
fn client(dice: &mut Dice) -> (Vec<u8>, u32) {
    let who = dice.below(3_000) as u32;
    let src = [91, (who >> 8) as u8, who as u8, 10];
    let flags = if dice.below(12) == 0 { 2 } else { 16 };
    (ethernet_tcp(src, TARGET, (20_000 + (who * 13 % 40_000) as u16, 443), flags), 60 + dice.below(1_000) as u32)
}

#[test]
fn coarse_samples_of_ordinary_traffic_open_nothing() {
    // A third of the threshold in packets and in bits, which single samples would exceed at once.
    for (one_in, pps) in [(100, 3_300), (1_000, 3_300), (10_000, 3_000)] {
        let site = sflow_site(90, pps, one_in, client);
        assert!(site.reports.is_empty(), "1 in {one_in}: {:?}", site.reports);
        assert!(site.exporter().counts.counted > 10, "1 in {one_in}");
    }
}

/// Records of short flows as they come: `pps` of them each second, in messages of `version`.
fn flow_site(version: u16, secs: u64, flows_per_sec: u64, flow: impl Fn(&mut Dice, u32) -> Exported) -> Site {
    let mut site = Site::new(listener());
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    let (mut sequence, mut datagrams) = (0u32, 0u32);
    let templates = [(9, set(0, &template(300, TEMPLATE))), (10, set(2, &template(300, TEMPLATE)))];
    for _ in 0..secs * 10 {
        let flows: Vec<Exported> = (0..flows_per_sec / 10).map(|_| flow(&mut dice, 500_000)).collect();
        for some in flows.chunks(25) {
            let records: Vec<u8> = some.iter().flat_map(record).collect();
            let mut sets = vec![set(300, &records)];
            if let Some((_, template)) = templates.iter().find(|(v, _)| *v == version) {
                sets.insert(0, template.clone());
            }
            let unix = site.unix();
            let datagram = match version {
                5 => netflow5(sequence, 0, unix, some),
                9 => netflow9(datagrams, unix, &sets),
                _ => ipfix(sequence, unix, &sets),
            };
            sequence += some.len() as u32;
            datagrams += 1;
            site.send(&datagram);
        }
        site.run(100 * MS);
    }
    site
}

#[test]
fn exported_floods_are_named_by_every_version() {
    type Maker = fn(&mut Dice, u32) -> Exported;
    let forged = |dice: &mut Dice| (1 + dice.below(0xdfff_ffff) as u32).to_be_bytes();
    let floods: [(AttackFamily, Maker); 3] = [
        (AttackFamily::SynFlood, |dice, now| {
            let forged = (1 + dice.below(0xdfff_ffff) as u32).to_be_bytes();
            let ports = (1_024 + dice.below(60_000) as u16, 80);
            Exported { ports, flags: 2, bytes: 40, first: now, last: now, ..Exported::new(forged, TARGET, 6) }
        }),
        (AttackFamily::UdpFlood, |dice, now| {
            let forged = (1 + dice.below(0xdfff_ffff) as u32).to_be_bytes();
            let ports = (1_024 + dice.below(60_000) as u16, dice.roll() as u16 | 1);
            Exported { ports, bytes: 540, first: now, last: now, ..Exported::new(forged, TARGET, 17) }
        }),
        (AttackFamily::NtpAmplification, |dice, now| {
            let reflector = [60 + dice.below(40) as u8, dice.roll() as u8, dice.roll() as u8, 3];
            let flow = Exported::new(reflector, TARGET, 17);
            Exported { ports: (123, 40_000), packets: 20, bytes: 20 * 468, first: now - 900, last: now, ..flow }
        }),
    ];
    assert_ne!(forged(&mut Dice(1)), forged(&mut Dice(2)));
    for version in [5, 9, 10] {
        for (family, flow) in &floods {
            let site = flow_site(version, 2, 20_000, flow);
            let report = site.incident();
            let shown = format!("version {version}: {report:#?}");
            assert_eq!((report.family, report.target.to_string()), (*family, "203.0.113.5/32".to_owned()), "{shown}");
            assert!(report.confidence >= 0.5, "{shown}");
            let words = report.explanation.join("\n");
            assert!(words.contains("in by interface 7") && words.contains("flow records"), "{words}");
            assert!(!words.contains("TTL values"), "nobody knows them: {words}");
            assert!(report.signature.is_none_or(|s| s.ttl.is_none()), "{words}");
            let counts = site.exporter().counts;
            assert_eq!((counts.lost_records, counts.lost_datagrams, counts.malformed), (0, 0, 0));
            assert_eq!(site.exporter().clock_skew_secs, Some(0));
        }
    }
}

#[test]
fn long_downloads_are_no_attack_when_their_records_come() {
    // Forty flows of 60 s with 1 Mbit/s each, whose records all come within a second.
    let mut site = Site::new(listener());
    for minute in 0..3 {
        for client in 0..40u8 {
            let flow = Exported {
                packets: 5_000,
                bytes: 7_500_000,
                flags: 16,
                first: 440_000,
                last: 500_000,
                ..Exported::new([91, 12, 7, client], TARGET, 6)
            };
            site.send(&netflow5(minute * 40 + u32::from(client), 0, UNIX, &[flow]));
            if client % 4 == 3 {
                site.run(100 * MS);
            }
        }
        site.run(9 * SEC);
        let shown = site.exporter();
        site.run(50 * SEC);
        assert!(minute == 0 || (2_500..6_000).contains(&shown.pps), "{shown:?}");
    }
    assert!(site.reports.is_empty(), "{:?}", site.reports);
    assert_eq!(site.exporter().longest_flow_secs, 60);
}

#[test]
fn an_exporter_that_sends_once_a_minute_makes_no_peaks() {
    let mut site = Site::new(listener());
    let mut sequence = 0;
    for _ in 0..3 {
        // A hundred short flows of 20 packets ended in each second of the minute.
        for flows in (0..60u32 * 100).collect::<Vec<_>>().chunks(30) {
            let flows: Vec<Exported> = flows
                .iter()
                .map(|n| {
                    let last = 440_000 + n * 10;
                    let src = [91, (n % 7) as u8, (n % 251) as u8, 9];
                    Exported {
                        packets: 20,
                        bytes: 9_000,
                        flags: 16,
                        first: last - 200,
                        last,
                        ..Exported::new(src, TARGET, 6)
                    }
                })
                .collect();
            site.send(&netflow5(sequence, 0, UNIX, &flows));
            sequence += flows.len() as u32;
        }
        site.run(60 * SEC);
    }
    assert!(site.reports.is_empty(), "2,000 packets a second: {:?}", site.reports);
}

#[test]
fn an_incident_ends_when_the_flood_does_and_can_be_ended_by_hand() {
    let mut site = sflow_site(3, 200_000, 100, syn);
    let uuid = site.incident().uuid;
    let order = OperatorOrder::Resolve { incident: uuid, false_positive: true };
    let unknown = site.flows.on_order(Uuid::nil(), &order, at(site.now_ns));
    assert!(unknown.said.is_empty());
    let outcome = site.flows.on_order(uuid, &order, at(site.now_ns));
    assert!(matches!(site.take(outcome), Some(OrderOutcome::Done { .. })));
    assert_eq!(site.incident().status, IncidentStatus::FalsePositive);

    let mut site = sflow_site(3, 200_000, 100, syn);
    site.run(30 * SEC);
    assert_eq!(site.incident().status, IncidentStatus::Resolved);
}

#[test]
fn rules_of_the_control_plane_are_not_fired_for_what_does_not_pass_here() {
    use ftagent_common::api::{Action, DetectionOverrides, FirewallRule, Trigger};
    let mut site = Site::new(listener());
    let action: Action =
        serde_json::from_str(r#"{"type":"xdp_rate_limit_target","pps":1000,"ttl_secs":60}"#).expect("an action");
    let trigger: Trigger = serde_json::from_str(r#"{"type":"any"}"#).expect("a trigger");
    let rule = FirewallRule { id: 7, name: "all".to_owned(), trigger, action, cooldown_minutes: 1 };
    let detection = DetectionOverrides { auto_respond: Some(true), ..DetectionOverrides::default() };
    let config = NodeConfig { version: 3, rules: vec![rule], detection, ..NodeConfig::default() };
    let outcome = site.flows.on_remote(config, at(site.now_ns));
    site.take(outcome);
    let mut dice = Dice(3);
    for n in 0..60 {
        for _ in 0..50 {
            let samples: Vec<Vec<u8>> = (0..8).map(|_| sflow_sample(100, 3, 4, &syn(&mut dice).0, 64)).collect();
            site.send(&sflow(n, &samples));
        }
        site.run(100 * MS);
    }
    let report = site.incident();
    assert_eq!(report.family, AttackFamily::SynFlood);
    assert_eq!((report.executions.len(), report.dropped_packets), (0, 0), "{:?}", report.executions);
}

#[test]
fn strangers_are_not_believed() {
    let mut site = Site::new(listener());
    let datagram = sflow(1, &[sflow_sample(1, 3, 4, &syn(&mut Dice(1)).0, 64)]);
    site.flows.on_datagram(0, IpAddr::from([198, 51, 100, 1]), &datagram, at(site.now_ns));
    let status = site.flows.status(at(site.now_ns));
    assert_eq!(status.listeners[0].refused, 1);
    assert_eq!(status.listeners[0].exporters.len(), 1, "the expected one alone");
    // The same address as a socket of both families gives it.
    let mapped: IpAddr = "::ffff:192.0.2.1".parse().expect("an address");
    site.flows.on_datagram(0, mapped, &datagram, at(site.now_ns));
    assert_eq!(site.exporter().counts.records, 1);
}

#[test]
fn exporters_are_bounded() {
    let mut site = Site::new(ListenerConfig { exporters: vec!["10.0.0.0/8".parse().expect("a prefix")], ..listener() });
    let datagram = sflow(1, &[]);
    for n in 0..1_000u32 {
        site.flows.on_datagram(0, IpAddr::from((0x0a00_0000 + n).to_be_bytes()), &datagram, at(site.now_ns));
    }
    let listener = site.flows.status(at(site.now_ns)).listeners.remove(0);
    assert_eq!((listener.exporters.len(), listener.refused), (MAX_EXPORTERS, 1_000 - MAX_EXPORTERS as u64));
}

#[test]
fn silence_is_told_once_and_so_is_its_end() {
    let mut site = Site::new(listener());
    site.send(&sflow(1, &[]));
    assert!(site.flows.changes_of_silence(at(site.now_ns)).is_empty());
    site.run(40 * SEC);
    let mut silent = site.flows.changes_of_silence(at(site.now_ns));
    silent.sort();
    let both = [("192.0.2.1".to_owned(), true), ("198.18.0.1".to_owned(), true)];
    assert_eq!(silent, both, "one that spoke, and one that is expected");
    assert!(site.flows.changes_of_silence(at(site.now_ns)).is_empty());
    let warnings = site.flows.status(at(site.now_ns)).warnings();
    assert!(warnings.iter().any(|w| w.contains("192.0.2.1") && w.contains("silent for 40 s")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("198.18.0.1") && w.contains("never sent anything")), "{warnings:?}");
    assert!(site.reports.is_empty(), "no incident of it");
    site.send(&sflow(2, &[]));
    assert_eq!(site.flows.changes_of_silence(at(site.now_ns)), [("192.0.2.1".to_owned(), false)]);
}

#[test]
fn health_tells_what_is_missing_and_what_is_wrong() {
    let mut site = Site::new(listener());
    let flow = Exported::new([198, 51, 100, 1], TARGET, 17);
    for (sequence, unix) in [(0, UNIX), (1, UNIX), (5, UNIX + 600)] {
        site.send(&netflow5(sequence, 0, unix, &[flow]));
    }
    site.send(&netflow9(1, UNIX + 600, &[set(300, &record(&flow))]));
    site.send(&[0, 9, 1]);
    site.send(b"nothing of ours");
    let shown = site.exporter();
    let counts = shown.counts;
    assert_eq!((counts.datagrams, counts.records, counts.counted, counts.lost_records), (6, 3, 3, 3));
    assert_eq!((counts.unknown_templates, counts.malformed), (1, 2));
    assert!(shown.clock_skew_secs.is_some_and(|skew| (595..=600).contains(&skew)), "{shown:?}");
    let warnings = site.flows.status(at(site.now_ns)).warnings();
    assert!(warnings.iter().any(|w| w.contains("no template yet")), "{warnings:?}");
    assert!(warnings.iter().any(|w| w.contains("s from ours")), "{warnings:?}");
}

#[test]
fn only_what_comes_in_by_the_right_interface_counts() {
    let mut site = Site::new(ListenerConfig { input_interfaces: vec![3], ..listener() });
    let header = ethernet_udp([198, 51, 100, 1], TARGET, 9, 9, 20);
    // By 3; by 5; and one that was taken at interface 4 when it left there.
    let mut egress = sflow_sample(1, 3, 4, &header, 66);
    egress[12..16].copy_from_slice(&4u32.to_be_bytes());
    let samples = [sflow_sample(1, 3, 4, &header, 66), sflow_sample(1, 5, 4, &header, 66), egress];
    site.send(&sflow(1, &samples));
    let elsewhere = ethernet_udp(TARGET, [198, 51, 100, 1], 9, 9, 20);
    site.send(&sflow(2, &[sflow_sample(1, 3, 4, &elsewhere, 66)]));
    let counts = site.exporter().counts;
    assert_eq!((counts.records, counts.counted, counts.other_interfaces), (4, 1, 2));
}

#[test]
fn what_is_learnt_survives_a_restart() {
    let site = sflow_site(20, 2_000, 1, client);
    let saved = serde_json::to_string(&site.flows.state()).expect("JSON");
    let saved: SavedExporters = serde_json::from_str(&saved).expect("its own");
    assert!(saved.values().any(|state| !state.baselines.is_empty()), "something was learnt");
    let later = at(site.now_ns + SEC);
    let again = Flows::new(vec![listener()], &Settings::default(), saved, true, later);
    let known = again.exporters.len();
    let mut again = Site { flows: again, now_ns: later.mono_ns, reports: BTreeMap::new() };
    again.send(&sflow(1, &[]));
    assert_eq!((known, again.flows.exporters.len()), (1, 2), "taken up when it speaks");
    assert!(again.flows.state().values().any(|state| !state.baselines.is_empty()));
}

#[test]
fn hostile_datagrams_of_a_believed_exporter_cost_no_more_than_their_bounds() {
    let mut site = Site::new(listener());
    let mut dice = Dice(77);
    let flow = Exported::new([198, 51, 100, 1], TARGET, 17);
    let wholes = [
        sflow(1, &[sflow_sample(8, 3, 4, &syn(&mut dice).0, 64)]),
        netflow5(1, 0, UNIX, &[flow; 20]),
        netflow9(1, UNIX, &[set(0, &template(300, TEMPLATE)), set(300, &record(&flow))]),
        ipfix(1, UNIX, &[set(2, &template(300, TEMPLATE)), set(300, &record(&flow))]),
    ];
    for round in 0..8_000usize {
        let mut noisy = wholes[round % wholes.len()].clone();
        for _ in 0..=dice.below(8) {
            let at = dice.below(noisy.len() as u64) as usize;
            noisy[at] = dice.roll() as u8;
        }
        noisy.truncate(1 + dice.below(noisy.len() as u64) as usize);
        site.send(&noisy);
        if round % 500 == 0 {
            site.run(100 * MS);
        }
    }
    assert_eq!(site.exporter().counts.datagrams, 8_000);
    assert!(site.exporter().counts.malformed > 1_000);
}
