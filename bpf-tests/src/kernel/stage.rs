//! The stage of a row: two namespaces, one wire, a socket that hears what passes, and frames to send.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ftagent::engine::{Matches, Origin, Point, Rule, RuleId, RuleSet, Verdict};
use ftagent_common::abi::{Rate, Settings, feature};
use ipnet::IpNet;

use crate::bpffs::LabDir;
use crate::generator::{Bounds, Pace};
use crate::netns::Netns;
use crate::packet::PacketBuilder;
use crate::replay::{Recording, Timing, send};
use crate::veth::{self, EndSpec};

pub(super) const EDGE_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub(super) const EDGE_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 1);
/// Address of a device above the wire's, such as a VLAN's.
pub(super) const UPPER_V4: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);
pub(super) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(super) const BAD_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 66);
pub(super) const BAD_V6: Ipv6Addr = Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 0x66);
pub(super) const GOOD_V4: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// Of the wire, and of what stands above it: nothing may be dropped for its route.
pub(super) const BAD_UPPER_V4: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 66);
pub(super) const GOOD_UPPER_V4: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
pub(super) const PORT: u16 = 9_999;

pub(super) struct Stage {
    pub(super) edge: Netns,
    pub(super) wan: Netns,
    pub(super) dir: LabDir,
}

pub(super) fn text(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Stage {
    pub(super) fn new() -> Result<Self, String> {
        let edge = Netns::create("edge").map_err(text)?;
        let wan = Netns::create("wan").map_err(text)?;
        let dir = LabDir::create("matrix").map_err(text)?;
        let spec = |name: &str, mac, v4: Ipv4Addr, v6: Ipv6Addr| EndSpec {
            name: name.to_owned(),
            mac,
            addresses: vec![(IpAddr::V4(v4), 24), (IpAddr::V6(v6), 64)],
            queues: 1,
            default_route: true,
        };
        let near = spec("edge0", EDGE_MAC, EDGE_V4, EDGE_V6);
        let far = spec("wan0", WAN_MAC, GOOD_V4, Ipv6Addr::new(0xfd99, 0, 0, 0, 0, 0, 0, 2));
        veth::connect((&edge, &near), (&wan, &far)).map_err(text)?;
        Ok(Self { edge, wan, dir })
    }

    /// Runs a program with `arguments` in the edge's namespace.
    pub(super) fn run(&self, program: &Path, arguments: &str) -> Result<String, String> {
        let output = self
            .edge
            .run(|| Command::new(program).args(arguments.split(' ')).stdin(Stdio::null()).output())
            .map_err(text)?
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(said) } else { Err(format!("{arguments}: {}", said.trim())) }
    }

    /// A socket on `address` that hears what passes.
    pub(super) fn listen(&self, address: impl Into<IpAddr>) -> Result<Ear, String> {
        let address = SocketAddr::new(address.into(), PORT);
        let socket = self.edge.run(|| UdpSocket::bind(address)).map_err(text)?.map_err(text)?;
        socket.set_nonblocking(true).map_err(text)?;
        Ok(Ear { socket })
    }

    /// Sends `count` copies of `frame` from the far end of the wire.
    pub(super) fn send(&self, frame: &[u8], count: u64) -> Result<(), String> {
        let recording = Recording::from_frames(vec![frame.to_vec()]);
        let bounds = Bounds::new(count, Duration::from_secs(20));
        let sent = self.wan.run(|| send("wan0", &recording, Timing::Paced(Pace::Full), bounds)).map_err(text)?;
        let sent = sent.map_err(text)?;
        if sent.frames == count { Ok(()) } else { Err(format!("{} of {count} frames were sent", sent.frames)) }
    }
}

/// Counts datagrams.
pub(super) struct Ear {
    socket: UdpSocket,
}

impl Ear {
    /// Datagrams that came in until `enough` are there, or none came for a while.
    pub(super) fn heard(&self, enough: u64) -> u64 {
        let mut count = 0;
        let mut silent = Duration::ZERO;
        const STEP: Duration = Duration::from_millis(10);
        while count < enough && silent < Duration::from_millis(400) {
            match self.socket.recv(&mut [0; 64]) {
                Ok(_) => (count, silent) = (count + 1, Duration::ZERO),
                Err(_) => {
                    std::thread::sleep(STEP);
                    silent += STEP;
                }
            }
        }
        count
    }
}

/// A datagram for the ear.
pub(super) fn datagram(source: impl Into<IpAddr>, target: impl Into<IpAddr>) -> PacketBuilder {
    PacketBuilder::new(source.into(), target.into()).macs(WAN_MAC, EDGE_MAC).udp(4_000, PORT).payload(b"matrix")
}

pub(super) fn net(address: impl Into<IpAddr>) -> IpNet {
    IpNet::from(address.into())
}

pub(super) fn rule(id: u64, matches: Matches, verdict: Verdict) -> Rule {
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

pub(super) fn set(rules: Vec<Rule>) -> RuleSet {
    RuleSet { rules: rules.into_iter().map(|r| (r.id, r)).collect::<BTreeMap<_, _>>(), ..RuleSet::default() }
}

/// Drops everything from the bad sources.
pub(super) fn blocked() -> RuleSet {
    let sources = [net(BAD_V4), net(BAD_V6), net(BAD_UPPER_V4)];
    set(sources.into_iter().zip(1..).map(|(s, id)| rule(id, Matches::source(s), Verdict::Drop)).collect())
}

pub(super) fn settings() -> Settings {
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
