//! The datapath frame by frame: rows of (frame, reason), on the program as it is loaded and pinned in production.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aya::programs::{ProgramInfo, Xdp};
use aya_obj::programs::XdpAttachType;
use bpf_tests::bpffs::LabDir;
use bpf_tests::packet::{FragmentPosition, PacketBuilder};
use bpf_tests::run::{run_xdp, time};
use bpf_tests::skip_without_root;
use ftagent::clock::mono_ns;
use ftagent::engine::{Matches, Origin, Point, Rule, RuleId, RuleSet, Verdict};
use ftagent::xdp::compile::Tables;
use ftagent::xdp::compile::{FailSafe, Ground, Slots, compile};
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::{AttachChoice, Attached, InterfacePlan, MapSizes, load};
use ftagent::xdp::samples::Samples;
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::{Rate, Reason, Settings, feature};
use ftagent_common::api::AllowEntry;
use ftagent_common::vocab::{AttachMode, TrafficClass};
use ipnet::IpNet;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::lab::{EDGE_V4, EDGE_V6, Lab, WAN_V4, WAN_V6};

pub(crate) const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// The datapath on one end of a wire, with its maps.
pub(crate) struct Datapath {
    pub(crate) lab: Arc<Lab>,
    pub(crate) dir: LabDir,
    pub(crate) maps: Maps,
    pub(crate) attached: Vec<Attached>,
    pub(crate) slots: Slots,
    pub(crate) ground: Ground,
    pub(crate) writer: Writer,
    pub(crate) settings: Settings,
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect(text)
}

pub(crate) fn rule(id: u64, matches: Matches, verdict: Verdict) -> Rule {
    Rule {
        id: RuleId(id),
        matches,
        verdict,
        point: Point::Datapath,
        origin: Origin::Operator,
        expires_at_ns: None,
        evaluate: false,
    }
}

pub(crate) fn set(rules: Vec<Rule>) -> RuleSet {
    RuleSet { rules: rules.into_iter().map(|r| (r.id, r)).collect::<BTreeMap<_, _>>(), ..RuleSet::default() }
}

pub(crate) fn settings() -> Settings {
    Settings {
        features: feature::SOURCES | feature::SAMPLE,
        not_ip: Rate::packets(1_000, 1_000),
        sample_rate: Rate::packets(100_000, 10_000),
        sample_below: u32::MAX,
        sample_one_in: 1,
        ..Settings::default()
    }
    .promoting_at(50)
}

/// Sources and targets are counted in the part of the CPU that a frame arrives on: a test that moves to another in the
/// middle finds two halves.
pub(crate) fn stay_on_one_cpu() {
    let mut cpus = CpuSet::new();
    cpus.set(0).expect("a CPU's number");
    sched_setaffinity(Pid::from_raw(0), &cpus).expect("this thread may choose");
}

impl Datapath {
    pub(crate) fn new() -> Self {
        Self::on(Lab::new())
    }

    pub(crate) fn on(lab: Lab) -> Self {
        let lab = Arc::new(lab);
        let dir = LabDir::create("datapath").expect("a bpffs");
        let pins = Pins::below(&dir.bpf()).expect("a bpffs");
        let attached = attach(&lab, &pins, AttachChoice::Auto);
        assert_eq!(attached[0].mode, AttachMode::Native, "{}", attached[0].reason);
        let maps = Maps::open(&pins.maps()).expect("maps");
        let writer = Writer::adopt(&maps).expect("maps can be read");
        let ground = Ground { protected: vec![net("10.99.0.1/32"), net("fd99::1/128")], ..Ground::default() };
        let mut this = Self { lab, dir, maps, attached, slots: Slots::default(), ground, writer, settings: settings() };
        this.apply(&RuleSet::default());
        this
    }

    pub(crate) fn apply(&mut self, set: &RuleSet) {
        let compiled = compile(set, &self.ground, &mut self.slots);
        assert!(compiled.refused.is_empty(), "{:?}", compiled.refused);
        let errors = self.writer.apply(&self.maps, &compiled.tables, &self.settings);
        assert!(errors.is_empty(), "{errors:?}");
        let rulebook = compiled.tables.rulebook.clone();
        let lists = compiled.tables.lists.clone();
        let there = Tables { rulebook, lists, ..self.maps.observe().expect("maps can be read") };
        assert_eq!(there, compiled.tables, "what was written is there");
    }

    pub(crate) fn program(&self) -> Xdp {
        let path = Pins::below(&self.dir.bpf()).expect("a bpffs").program("edge0");
        Xdp::from_pin(path, XdpAttachType::Interface).expect("a pinned program")
    }

    /// Runs one frame and returns the reason whose counter grew.
    pub(crate) fn judge(&self, frame: &[u8]) -> Reason {
        let before = counters::interface(&self.maps, 0).expect("counters");
        let outcome = run_xdp(&self.program(), frame, None).expect("runs");
        let after = counters::interface(&self.maps, 0).expect("counters");
        let grown: Vec<Reason> = Reason::ALL
            .iter()
            .copied()
            .filter(|r| after.reasons[r.index()].packets != before.reasons[r.index()].packets)
            .collect();
        assert_eq!(grown.len(), 1, "a frame is in exactly one class, not in {grown:?}");
        let reason = grown[0];
        assert_eq!(outcome.verdict, if reason.is_drop() { XDP_DROP } else { XDP_PASS }, "{reason:?}");
        let bytes = after.reasons[reason.index()].bytes - before.reasons[reason.index()].bytes;
        assert_eq!(bytes, frame.len() as u64, "bytes of the frame as received");
        reason
    }
}

/// Sets a flag when it goes, also by a panic: a scope waits for its threads before it passes that on.
pub(crate) struct Stops<'a>(pub(crate) &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn attach(lab: &Lab, pins: &Pins, choice: AttachChoice) -> Vec<Attached> {
    let pins = pins.clone();
    lab.edge
        .run(move || {
            let plans = [InterfacePlan { name: "edge0".to_owned(), slot: 0, choice }];
            let sizes = MapSizes { samples: 1 << 20, ..MapSizes::default() };
            load(&plans, &pins, &sizes).expect("the datapath loads").attach().expect("attaches")
        })
        .expect("the namespace can be entered")
}

fn to_edge() -> PacketBuilder {
    PacketBuilder::v4(WAN_V4, EDGE_V4)
}

fn to_edge6() -> PacketBuilder {
    PacketBuilder::v6(WAN_V6, EDGE_V6)
}

#[test]
fn every_frame_is_in_exactly_one_class() {
    if skip_without_root("every_frame_is_in_exactly_one_class") {
        return;
    }
    let datapath = Datapath::new();
    let middle = FragmentPosition { offset: 1_480, more: true, id: 7 };
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 2], &[0x08, 0x06], &[0; 28]].concat();
    let rows: Vec<(&str, Vec<u8>, Reason)> = vec![
        ("udp", to_edge().udp(1_000, 2_000).payload(b"hello").build(), Reason::Clean),
        ("vlan", to_edge().vlan(0x8100, 7).udp(1, 2).build(), Reason::Clean),
        ("qinq", to_edge().vlan(0x88a8, 7).vlan(0x8100, 8).udp(1, 2).build(), Reason::Clean),
        ("three tags", to_edge().vlan(0x88a8, 7).vlan(0x8100, 8).vlan(0x8100, 9).udp(1, 2).build(), Reason::Malformed),
        ("options", to_edge().options(&[1; 40]).tcp(1, 2, 0x02).build(), Reason::Clean),
        ("middle fragment", to_edge().fragment(middle).udp(1, 2).payload(&[0; 64]).build(), Reason::Clean),
        ("udp of v6", to_edge6().udp(1, 2).build(), Reason::Clean),
        ("extension headers", to_edge6().extension(0, &[0; 6]).extension(60, &[0; 6]).udp(1, 2).build(), Reason::Clean),
        ("cut in the address", to_edge().udp(1, 2).truncate(30).build(), Reason::Malformed),
        ("cut in the ports", to_edge().udp(1, 2).truncate(36).build(), Reason::Malformed),
        ("arp", arp, Reason::NotIp),
    ];
    for (name, frame, expected) in rows {
        assert_eq!(datapath.judge(&frame), expected, "{name}");
    }
}

#[test]
fn blocks_limits_and_trust_decide_in_their_order() {
    if skip_without_root("blocks_limits_and_trust_decide_in_their_order") {
        return;
    }
    let mut datapath = Datapath::new();
    let from = |src: &str| PacketBuilder::new(src.parse().expect(src), EDGE_V4.into()).tcp(40_000, 80, 0x02).build();
    let from6 = |src: &str| PacketBuilder::new(src.parse().expect(src), EDGE_V6.into()).tcp(40_000, 80, 0x02).build();
    let drop = |id, source: &str| rule(id, Matches::source(net(source)), Verdict::Drop);

    let mut rules = set(vec![
        drop(1, "198.51.100.7/32"),
        drop(2, "203.0.113.0/24"),
        drop(3, "2001:db8:1::5/128"),
        drop(4, "2001:db8:2::/64"),
        drop(5, "2001:db8:3::/48"),
    ]);
    datapath.ground.fail_safe = vec![FailSafe { prefix: net("203.0.113.22/32"), ports: vec![22] }];
    rules.allow = vec![AllowEntry { prefix: net("203.0.113.9/32"), label: String::new() }];
    datapath.apply(&rules);

    let rows = [
        ("blocked address", from("198.51.100.7"), Reason::BlockedSource),
        ("its neighbour", from("198.51.100.8"), Reason::Clean),
        ("blocked prefix", from("203.0.113.1"), Reason::BlockedPrefix),
        ("allowed inside it", from("203.0.113.9"), Reason::Allowlisted),
        ("managed inside it, on another port", from("203.0.113.22"), Reason::BlockedPrefix),
        ("blocked v6 address", from6("2001:db8:1::5"), Reason::BlockedSource),
        ("its neighbour", from6("2001:db8:1::6"), Reason::Clean),
        ("blocked /64", from6("2001:db8:2::abcd"), Reason::BlockedPrefix),
        ("blocked /48", from6("2001:db8:3:ffff::1"), Reason::BlockedPrefix),
    ];
    for (name, frame, expected) in rows {
        assert_eq!(datapath.judge(&frame), expected, "{name}");
    }
    let ssh = PacketBuilder::v4([203, 0, 113, 22], EDGE_V4).tcp(40_000, 22, 0x02).build();
    assert_eq!(datapath.judge(&ssh), Reason::FailSafe, "a management source on a management port");

    // The hits are counted by rule, and lifting a block lets the source in again.
    let slot = datapath.slots.of(RuleId(1)).expect("a slot");
    assert_eq!(counters::rule_hits(&datapath.maps, slot).expect("hits").counter.packets, 1);
    datapath.apply(&RuleSet::default());
    assert_eq!(datapath.judge(&from("198.51.100.7")), Reason::Clean);
}

#[test]
fn no_rule_cuts_neighbour_discovery_off() {
    if skip_without_root("no_rule_cuts_neighbour_discovery_off") {
        return;
    }
    let mut datapath = Datapath::new();
    let target = Matches { protocol: Some(58), ..Matches::target(net("fd99::1/128")) };
    datapath
        .apply(&set(vec![rule(1, target, Verdict::Drop), rule(2, Matches::source(net("fd99::/64")), Verdict::Drop)]));
    assert_eq!(
        datapath.judge(&to_edge6().ttl(255).icmp(135, 0).build()),
        Reason::FailSafe,
        "a solicitation of this link"
    );
    assert_eq!(datapath.judge(&to_edge6().ttl(254).icmp(135, 0).build()), Reason::BlockedPrefix, "a forwarded one");
    assert_eq!(datapath.judge(&to_edge6().ttl(255).icmp(128, 0).build()), Reason::BlockedPrefix, "an echo request");
}

#[test]
fn an_expired_block_is_absent_at_once() {
    if skip_without_root("an_expired_block_is_absent_at_once") {
        return;
    }
    let mut datapath = Datapath::new();
    let mut expired = rule(1, Matches::source(net("198.51.100.7/32")), Verdict::Drop);
    expired.expires_at_ns = Some(1);
    datapath.apply(&set(vec![expired.clone()]));
    let frame = PacketBuilder::v4([198, 51, 100, 7], EDGE_V4).udp(1, 2).build();
    assert_eq!(datapath.judge(&frame), Reason::Clean);
    expired.expires_at_ns = Some(u64::MAX);
    datapath.apply(&set(vec![expired]));
    assert_eq!(datapath.judge(&frame), Reason::BlockedSource);
}

#[test]
fn automatic_rules_end_with_a_silent_agent_and_an_operators_stay() {
    if skip_without_root("automatic_rules_end_with_a_silent_agent_and_an_operators_stay") {
        return;
    }
    let mut datapath = Datapath::new();
    let mut automatic = rule(1, Matches::source(net("198.51.100.7/32")), Verdict::Drop);
    automatic.origin = Origin::Response { incident: uuid::Uuid::nil() };
    let by_hand = rule(2, Matches::source(net("198.51.100.8/32")), Verdict::Drop);
    datapath.settings.dead_man_ns = 1;
    datapath.settings.heartbeat_ns = 1;
    datapath.apply(&set(vec![automatic, by_hand]));
    let from = |last| PacketBuilder::v4([198, 51, 100, last], EDGE_V4).udp(1, 2).build();
    assert_eq!(datapath.judge(&from(7)), Reason::Clean);
    assert_eq!(datapath.judge(&from(8)), Reason::BlockedSource);
}

#[test]
fn target_rules_match_every_field() {
    if skip_without_root("target_rules_match_every_field") {
        return;
    }
    let mut datapath = Datapath::new();
    let target = || Matches::target(net("10.99.0.1/32"));
    let middle = FragmentPosition { offset: 1_480, more: true, id: 7 };
    let udp = to_edge().udp(53, 2_000).payload(&[0; 100]).build();
    let rows: Vec<(&str, Matches, Vec<u8>, Vec<u8>)> = vec![
        ("protocol", Matches { protocol: Some(17), ..target() }, udp.clone(), to_edge().tcp(53, 2_000, 2).build()),
        (
            "source port",
            Matches { src_port: Some([53, 53]), ..target() },
            udp.clone(),
            to_edge().udp(54, 2_000).build(),
        ),
        ("port", Matches { dst_port: Some([1_999, 2_000]), ..target() }, udp.clone(), to_edge().udp(53, 2_001).build()),
        ("length", Matches { length: Some([128, 200]), ..target() }, udp.clone(), to_edge().udp(53, 2_000).build()),
        (
            "ttl",
            Matches { ttl: Some([10, 20]), ..target() },
            to_edge().ttl(20).udp(1, 2).build(),
            to_edge().ttl(21).udp(1, 2).build(),
        ),
        (
            "flags",
            Matches { tcp_flags: Some([0x12, 0x02]), ..target() },
            to_edge().tcp(1, 2, 0x02).build(),
            to_edge().tcp(1, 2, 0x12).build(),
        ),
        (
            "icmp",
            Matches { protocol: Some(1), icmp_type: Some([8, 8]), ..target() },
            to_edge().icmp(8, 0).build(),
            to_edge().icmp(0, 0).build(),
        ),
        (
            "fragment",
            Matches { fragment: Some(true), ..target() },
            to_edge().fragment(middle).udp(1, 2).payload(&[0; 64]).build(),
            udp.clone(),
        ),
        (
            "whole",
            Matches { fragment: Some(false), ..target() },
            udp.clone(),
            to_edge().fragment(middle).udp(1, 2).payload(&[0; 64]).build(),
        ),
    ];
    for (id, (name, matches, hit, miss)) in (1..).zip(rows) {
        datapath.apply(&set(vec![rule(id, matches, Verdict::Drop)]));
        assert_eq!(datapath.judge(&hit), Reason::TargetRule, "{name}: the frame that matches");
        assert_eq!(datapath.judge(&miss), Reason::Clean, "{name}: the frame that does not");
    }
    let elsewhere = PacketBuilder::v4(WAN_V4, [10, 99, 0, 77]).udp(53, 2_000).build();
    datapath.apply(&set(vec![rule(99, target(), Verdict::Drop)]));
    assert_eq!(datapath.judge(&elsewhere), Reason::Clean, "another destination");
}

#[test]
fn limits_let_their_burst_pass_and_drop_the_rest() {
    if skip_without_root("limits_let_their_burst_pass_and_drop_the_rest") {
        return;
    }
    let mut datapath = Datapath::new();
    let limit = Verdict::LimitPps { pps: 100, burst: 20 };
    let frame = to_edge().udp(1, 2).build();
    let count = |datapath: &Datapath, reason: Reason| {
        let judged: Vec<Reason> = (0..200).map(|_| datapath.judge(&frame)).collect();
        judged.iter().filter(|r| **r == reason).count()
    };
    datapath.apply(&set(vec![rule(1, Matches::target(net("10.99.0.1/32")), limit)]));
    let dropped = count(&datapath, Reason::TargetLimit);
    assert!((100..=180).contains(&dropped), "{dropped} of 200 dropped at the target");
    datapath.apply(&set(vec![rule(2, Matches::source(net("10.99.0.2/32")), limit)]));
    let dropped = count(&datapath, Reason::SourceLimit);
    assert!((100..=180).contains(&dropped), "{dropped} of 200 dropped by source");
}

#[test]
fn targets_and_heavy_sources_are_counted_by_themselves() {
    if skip_without_root("targets_and_heavy_sources_are_counted_by_themselves") {
        return;
    }
    stay_on_one_cpu();
    // Within one epoch of the sketch: what came in the one before counts ever less.
    let epoch = || mono_ns() >> 30;
    let datapath = (0..20).find_map(|_| {
        let datapath = Datapath::new();
        let began = epoch();
        for _ in 0..100 {
            datapath.judge(&to_edge().udp(53, 2_000).build());
        }
        (epoch() == began).then_some(datapath)
    });
    let datapath = datapath.expect("the machine is too busy to judge 100 frames within an epoch");
    datapath.judge(&PacketBuilder::v4([192, 0, 2, 1], EDGE_V4).tcp(1, 80, 0x10).build());
    let reading = counters::read(&datapath.maps, &datapath.attached, None).expect("counters");
    let (ip, target) = &reading.targets[0];
    assert_eq!((reading.targets.len(), ip.to_string()), (1, "10.99.0.1".to_owned()));
    assert_eq!(target.classes[TrafficClass::Reflector.index()].passed.packets, 100);
    assert_eq!(target.classes[TrafficClass::TcpAck.index()].passed.packets, 1);
    let (source, counted) = &reading.sources[0];
    assert_eq!((reading.sources.len(), source.to_string()), (1, "10.99.0.2".to_owned()));
    assert!((40..=60).contains(&counted.flow.passed.packets), "promoted at 50 of 100: {counted:?}");
}

#[test]
fn samples_carry_the_frame_and_its_verdict() {
    if skip_without_root("samples_carry_the_frame_and_its_verdict") {
        return;
    }
    let mut datapath = Datapath::new();
    let mut samples = Samples::open(&Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps()).expect("the ring");
    datapath.apply(&set(vec![rule(1, Matches::target(net("10.99.0.1/32")), Verdict::Drop)]));
    datapath.judge(&to_edge().udp(53, 2_000).payload(b"the payload").build());
    let taken = samples.take();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].reason, taken[0].one_in), (Reason::TargetRule, 1));
    assert_eq!((taken[0].packet.src_port, taken[0].payload.as_slice()), (53, &b"the payload"[..]));
}

#[test]
fn every_way_to_attach_works_and_is_adopted() {
    if skip_without_root("every_way_to_attach_works_and_is_adopted") {
        return;
    }
    for (choice, mode) in [
        (AttachChoice::Auto, AttachMode::Native),
        (AttachChoice::Native, AttachMode::Native),
        (AttachChoice::Generic, AttachMode::Generic),
        (AttachChoice::Tc, AttachMode::Tc),
    ] {
        let lab = Lab::new();
        let dir = LabDir::create("attach").expect("a bpffs");
        let pins = Pins::below(&dir.bpf()).expect("a bpffs");
        let first = attach(&lab, &pins, choice);
        let second = attach(&lab, &pins, choice);
        assert_eq!((first[0].mode, second[0].mode), (mode, mode), "{choice:?}: {}", first[0].reason);
        assert_eq!((first[0].adopted, second[0].adopted), (false, true), "{choice:?}");
        assert_eq!(first[0].link_id, second[0].link_id, "{choice:?}: the link stays");
        assert_ne!(first[0].program_id, second[0].program_id, "{choice:?}: the program is new");
        assert_eq!(pins.remove_all().expect("unpins"), ["edge0"]);
        assert!(!pins.maps().exists(), "nothing is left pinned");
    }
}

#[test]
fn a_link_of_another_version_is_taken_over_and_an_interface_no_longer_named_is_left() {
    if skip_without_root("a_link_of_another_version_is_taken_over_and_an_interface_no_longer_named_is_left") {
        return;
    }
    let lab = Lab::new();
    let dir = LabDir::create("versions").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let first = attach(&lab, &pins, AttachChoice::Auto);
    let root = dir.bpf().join("ftagent");
    std::fs::rename(root.join(format!("v{}", ftagent_common::abi::ABI_VERSION)), root.join("v0")).expect("renamed");
    let second = attach(&lab, &pins, AttachChoice::Auto);
    assert_eq!((second[0].mode, second[0].adopted), (AttachMode::Native, true), "{}", second[0].reason);
    assert_eq!(first[0].link_id, second[0].link_id, "the other version's link runs our program");
    assert!(!root.join("v0").exists(), "nothing of the other version is left");

    let third = attach(&lab, &pins, AttachChoice::Nftables);
    assert_eq!(third[0].mode, AttachMode::Nftables);
    assert!(pins.pinned_links().is_empty(), "the program went with its place in the configuration");
}

#[test]
fn a_foreign_program_is_left_alone() {
    if skip_without_root("a_foreign_program_is_left_alone") {
        return;
    }
    let lab = Lab::new();
    let dir = LabDir::create("foreign").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let foreign =
        lab.edge.run(|| bpf_tests::meter::XdpCounter::attach("edge0", bpf_tests::meter::Then::Pass).expect("attaches"));
    let attached = attach(&lab, &pins, AttachChoice::Auto);
    assert_eq!(attached[0].mode, AttachMode::Tc, "{}", attached[0].reason);
    assert!(attached[0].reason.contains("another XDP program"), "{}", attached[0].reason);
    drop(foreign);
}

#[test]
fn the_program_stays_within_the_verifiers_budget() {
    if skip_without_root("the_program_stays_within_the_verifiers_budget") {
        return;
    }
    let datapath = Datapath::new();
    let mean = time(&datapath.program(), &to_edge().udp(1, 2).build(), 100_000).expect("runs");
    println!("{mean:?} a packet");
    let lab = Lab::new();
    let dir = LabDir::create("tc").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let began = bpf_tests::clock::now();
    attach(&lab, &pins, AttachChoice::Tc);
    println!("{:?} to make the maps, verify and attach one program", began.elapsed());
    let paths = [(Pins::below(&datapath.dir.bpf()).expect("a bpffs"), "ftagent_xdp"), (pins, "ftagent_tc")];
    for (pins, name) in paths {
        let info = ProgramInfo::from_pin(pins.program("edge0")).expect("a pinned program");
        let verified = info.verified_instruction_count().expect("kernel 5.16 tells");
        println!(
            "{name}: {verified} instructions verified, {:?} bytes translated, {} jited, BTF {:?}",
            info.size_translated(),
            info.size_jitted(),
            info.btf_id(),
        );
        assert_eq!(info.name_as_str(), Some(name));
        assert!(info.btf_id().is_some() && info.size_jitted() > 0);
        assert!(verified <= 200_000, "{name}: {verified} instructions");
    }
}
