//! P1 and P2: one frame, repeated by the kernel itself (`BPF_PROG_TEST_RUN`).

use aya::programs::Xdp;
use ftagent::engine::{Matches, Verdict};
use ftagent_common::abi::Reason;
use ftagent_common::api::AllowEntry;
use ftagent_common::packet::tcp_flag;
use ipnet::{IpNet, Ipv4Net};

use super::peer::XdpFilter;
use super::shares::Shares;
use super::{Goal, over_floor};
use crate::bench::under_test::{Floor, Load, UnderTest, Wires, net, rules};
use crate::bench::{Options, stats};
use crate::generator::{Entries, Listed};
use crate::ladder::ADDRESS;
use crate::packet::PacketBuilder;
use crate::run::time;

/// Blocks of the two rule sets.
const FEW: u32 = 10;
const MANY: u32 = 10_000;
/// What xdp-filter takes.
const PEER: u32 = 9_999;
/// The peer's builds, as the ladder names them.
const LEAN: &str = "xdp-filter";
const WHOLE: &str = "xdp-filter-all";
/// Its scenarios.
const PEER_FEW: &str = "xdp-filter of addresses";
const PEER_MANY: &str = "xdp-filter of addresses, 9,999";
const PEER_PASS: &str = "xdp-filter with every feature";
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// One frame on one program.
struct Scenario<'a> {
    id: &'static str,
    what: &'static str,
    at_most: f64,
    /// Absent: a peer.
    under_test: Option<&'a UnderTest>,
    program: &'a Xdp,
    frame: Vec<u8>,
    /// Absent: it is judged as expected.
    wrong: Option<String>,
    ns: Vec<f64>,
    shares: Shares,
}

pub(super) fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let floor = Floor::new(Wires::new(1)?)?;
    let few = UnderTest::new(Wires::new(1)?, &every_stage(FEW))?;
    let many = UnderTest::new(Wires::new(1)?, &every_stage(MANY))?;
    let v4 = |source: [u8; 4]| PacketBuilder::v4(source, ADDRESS).udp(4_000, 5_000).payload(&[0; 18]);
    let blocked = v4(Listed::new(Entries::Addresses, 1).first().octets()).build();
    let clean = v4([198, 51, 100, 7]).build();
    let mut peers = Vec::new();
    for (build, addresses) in [(LEAN, FEW), (LEAN, PEER), (WHOLE, FEW)] {
        match XdpFilter::new(build, addresses, &[(&blocked, XDP_DROP), (&clean, XDP_PASS)]) {
            Ok(peer) => peers.push((build, addresses, peer)),
            Err(error) => progress(&format!("{build} is not available: {error:#}")),
        }
    }

    let six = PacketBuilder::v6([0x2001, 0xdb8, 7, 1, 0, 0, 0, 1], [0xfd99, 0, 0, 0, 0, 0, 0, 1])
        .vlan(0x8100, 7)
        .extension(0, &[0; 6])
        .extension(60, &[0; 6])
        .udp(4_000, 5_000)
        .payload(&[0; 18])
        .build();
    let tcp = PacketBuilder::v4([198, 51, 100, 9], ADDRESS).tcp(40_000, 80, tcp_flag::ACK).payload(&[0; 18]).build();
    let (few_program, many_program) = (few.program()?, many.program()?);
    let rows = [
        (
            "P1a",
            "malformed: cut in the ports",
            10.0,
            &few,
            v4([198, 51, 100, 7]).truncate(36).build(),
            Reason::Malformed,
        ),
        ("P1b", "martian source", 10.0, &few, v4([127, 0, 0, 1]).build(), Reason::MartianSource),
        ("P1c", "LAND", 10.0, &few, v4(ADDRESS.octets()).build(), Reason::Land),
        ("P1d", "blocked source, 10 blocks", 30.0, &few, blocked.clone(), Reason::BlockedSource),
        ("P1e", "blocked source, 10,000 blocks", 45.0, &many, blocked.clone(), Reason::BlockedSource),
        (
            "P1f",
            "reflector: an answer from port 53 that nobody asked for",
            15.0,
            &few,
            PacketBuilder::v4([198, 51, 100, 8], ADDRESS).udp(53, 5_000).payload(&[0; 18]).build(),
            Reason::Reflection,
        ),
        ("P2a", "clean IPv4, every stage on", 110.0, &few, clean.clone(), Reason::Clean),
        ("P2b", "clean IPv6, VLAN, 2 extension headers", 140.0, &few, six, Reason::Clean),
        ("P2c", "clean IPv4 TCP, another target behind the gate", 110.0, &few, tcp, Reason::Clean),
    ];
    let mut scenarios: Vec<Scenario<'_>> = Vec::new();
    for (id, what, at_most, under_test, frame, reason) in rows {
        let program = if std::ptr::eq(under_test, &few) { &few_program } else { &many_program };
        let wrong = under_test.expect(&frame, reason).err().map(|error| format!("{error:#}"));
        let under_test = Some(under_test);
        let shares = Shares::new();
        scenarios.push(Scenario { id, what, at_most, under_test, program, frame, wrong, ns: Vec::new(), shares });
    }
    for (build, addresses, peer) in &peers {
        let (id, frame) = match (*build, *addresses) {
            (LEAN, FEW) => (PEER_FEW, &blocked),
            (LEAN, _) => (PEER_MANY, &blocked),
            _ => (PEER_PASS, &clean),
        };
        let (program, frame) = (&peer.program, frame.clone());
        let (ns, shares) = (Vec::new(), Shares::new());
        let what = id;
        scenarios.push(Scenario { id, what, at_most: 0.0, under_test: None, program, frame, wrong: None, ns, shares });
    }

    let repeat = if options.quick { 50_000 } else { 200_000 };
    let mut floors = Vec::new();
    for _ in 0..options.rounds {
        let floor_ns = time(floor.program(), &clean, repeat)?.as_nanos() as f64;
        floors.push(floor_ns);
        for scenario in scenarios.iter_mut().filter(|s| s.wrong.is_none()) {
            scenario.ns.push(time(scenario.program, &scenario.frame, repeat)?.as_nanos() as f64);
        }
        // After all of them, so that they stand as close together as they can.
        for scenario in scenarios.iter_mut().filter(|s| s.wrong.is_none()) {
            let Some(under_test) = scenario.under_test else { continue };
            scenario.shares.measure(under_test, scenario.program, &scenario.frame, repeat / 4, floor_ns)?;
        }
    }
    Ok(judged(&scenarios, &floors))
}

/// Goals from the rounds; the peer's scenarios stand beside those of the datapath that they compare with.
fn judged(scenarios: &[Scenario<'_>], floors: &[f64]) -> Vec<Goal> {
    let over = |s: &Scenario<'_>| -> Vec<f64> { s.ns.iter().zip(floors).map(|(ns, floor)| ns - floor).collect() };
    let find = |id: &str| scenarios.iter().find(|s| s.id == id).map(|s| (s, stats::median(&over(s))));
    let mut goals = Vec::new();
    for scenario in scenarios.iter().filter(|s| s.id.starts_with('P')) {
        let row = (scenario.id, scenario.what, scenario.at_most);
        if let Some(why) = &scenario.wrong {
            goals.push(Goal::missing(row.0, row.1, "ns", &format!("<= floor + {:.0} ns", row.2), why));
            continue;
        }
        let differences = over(scenario);
        let mut goal = over_floor(row, &differences, floors, String::new());
        let peer = match scenario.id {
            "P1d" => find(PEER_FEW),
            "P1e" => find(PEER_MANY),
            "P2a" => find(PEER_PASS),
            _ => None,
        };
        if let Some((peer, Some(ns))) = peer {
            goal.peer = Some(format!("{} {ns:.0} ns", peer.id));
            // "No slower" where the goal says so: than the peer of the same rounds.
            if scenario.id != "P1d" {
                goal.met = goal.value.map(|value| value <= scenario.at_most && value <= ns);
                goal.goal.push_str(", <= peer");
            }
        }
        goal.detail = scenario.shares.words(goal.met == Some(true));
        goals.push(goal);
    }
    goals
}

/// Something for every stage to do: trust, blocks, prefixes, a list, limits, a target's rule and rules for all.
fn every_stage(blocks: u32) -> Load {
    let limit = Verdict::LimitPps { pps: 1_000_000, burst: 1_000_000 };
    let udp_port = |port| Matches { protocol: Some(17), dst_port: Some([port, port]), ..Matches::default() };
    let mut set = rules([
        (Matches::source(net("203.0.113.0/24")), Verdict::Drop),
        (Matches::source(net("2001:db8:1::5/128")), Verdict::Drop),
        (Matches::source(net("2001:db8:2::/64")), Verdict::Drop),
        (Matches::source(net("2001:db8:30::/44")), Verdict::Drop),
        (Matches::source(net("192.0.2.0/24")), limit),
        (Matches { target: Some(IpNet::from(std::net::IpAddr::V4(ADDRESS))), ..udp_port(19) }, Verdict::Drop),
        (udp_port(11_211), Verdict::Drop),
        (Matches { tcp_flags: Some([0x3f, 0x29]), protocol: Some(6), ..Matches::default() }, Verdict::Drop),
    ]);
    set.allow = vec![AllowEntry { prefix: net("198.18.7.0/24"), label: String::new() }];
    let list: Vec<Ipv4Net> = Listed::new(Entries::Networks, 1_000).networks().skip(1).collect();
    let blocks = Listed::new(Entries::Addresses, blocks).networks().map(|n| n.addr().octets()).collect();
    Load { rules: set, list, blocks, ..Load::default() }
}
