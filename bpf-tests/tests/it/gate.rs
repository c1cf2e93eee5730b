//! Reflectors and the TCP gate on a wire: what was asked for passes, what was not is dropped.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::http::{Client, Load, Server, Tally};
use bpf_tests::meter::{Then, XdpCounter};
use bpf_tests::netns::NetnsError;
use bpf_tests::packet::PacketBuilder;
use bpf_tests::skip_without_root;
use ftagent::xdp::compile::key;
use ftagent::xdp::counters;
use ftagent::xdp::egress::Learning;
use ftagent::xdp::gate::{self, GateMaps, Wanted};
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent_common::abi::{GateSettings, GatedTarget, NO_RULE, Reason, feature, gate as gate_flag};
use ftagent_common::packet::tcp_flag::{ACK, RST, SYN};
use ftagent_common::vocab::TrafficClass;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
use serde_json::Value;

use crate::agent::{self, Agent};
use crate::datapath::{Datapath, attach, net};
use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, Lab, WAN_MAC, WAN_V4, WAN_V6};

const PATIENCE: Duration = Duration::from_millis(300);

pub(crate) fn gate_maps(datapath: &Datapath) -> GateMaps {
    GateMaps::open(&Pins::below(&datapath.dir.bpf()).expect("a bpffs").maps()).expect("maps")
}

/// Writes the gate's settings as if everything had been learnt for long.
pub(crate) fn trust_what_was_learnt(datapath: &Datapath, served_ports: Vec<u16>) -> GateSettings {
    let maps = gate_maps(datapath);
    let there = maps.settings.lookup(&0).expect("readable").expect("an array has its element");
    let wanted = Wanted { reflector_ports: vec![], served_ports, warmup_ns: 0 };
    let mut settings = gate::settings(&there, &wanted, &[], true, 1, || [0x1234_5678_9abc_def0, 0xfedc_ba98_7654_3210]);
    (settings.flows_from_ns, settings.queries_from_ns) = (1, 1);
    maps.settings.insert(&0, &settings).expect("written");
    settings
}

fn with_reflectors() -> Datapath {
    let mut datapath = Datapath::new();
    assert_eq!(datapath.attached[0].egress, Learning::Active { adopted: false });
    datapath.settings.features |= feature::REFLECTORS;
    datapath.apply(&Default::default());
    trust_what_was_learnt(&datapath, vec![]);
    datapath
}

pub(crate) fn count(datapath: &Datapath, reason: Reason) -> u64 {
    counters::interface(&datapath.maps, 0).expect("counters").reasons[reason.index()].packets
}

fn bound(netns: &bpf_tests::netns::Netns, address: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let address = SocketAddr::new(address.into(), port);
    let socket = netns.run(|| UdpSocket::bind(address)).expect("inside").expect("bound");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

fn arrives(socket: &UdpSocket) -> bool {
    match socket.recv(&mut [0; 64]) {
        Ok(_) => true,
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        Err(e) => panic!("{e}"),
    }
}

/// The lab's edge behind the gate, in the way that `how` names.
pub(crate) fn behind_the_gate(how: u8) -> Datapath {
    let mut datapath = Datapath::new();
    datapath.settings.features |= feature::GATE;
    datapath.apply(&Default::default());
    trust_what_was_learnt(&datapath, vec![]);
    let target = GatedTarget { rule: NO_RULE, how, ..GatedTarget::default() };
    let maps = gate_maps(&datapath);
    for prefix in ["10.99.0.1/32", "fd99::1/128"] {
        maps.gated.insert(&key(net(prefix)), &target).expect("written");
    }
    datapath
}

/// Sends forged segments with `flags` to port 80 of the edge in the background.
fn flood(datapath: &Datapath, flags: u8, v6: bool, pps: u64, frames: u64) -> JoinHandle<Result<u64, NetnsError>> {
    let device = datapath.lab.wan0.index;
    let work = move || {
        let forged = if v6 { "2001:db8::1" } else { "198.18.0.1" }.parse().expect("an address");
        let edge = if v6 { IpAddr::from(EDGE_V6) } else { IpAddr::from(EDGE_V4) };
        let frame = PacketBuilder::new(forged, edge).macs(WAN_MAC, EDGE_MAC).tcp(40_000, 80, flags).build();
        let sources = if v6 { "2001:db8::/32" } else { "128.0.0.0/2" };
        let vary = Vary { sources: Some(net(sources)), source_ports: Some(1_024..=65_535), ..Vary::default() };
        let mut generator = Generator::load(&frame, &vary, 7).expect("the generator loads");
        let bounds = Bounds::new(frames, Duration::from_secs(20));
        generator.send(device, Pace::PerSecond(pps), bounds).expect("sends").arrived()
    };
    datapath.lab.wan.spawn(work).expect("a thread in the namespace")
}

/// Asks the edge's web server by new connections while forged SYNs come, and returns the account and the frames sent.
fn clients_under_a_syn_flood(datapath: &Datapath, v6: bool, rate: u32) -> (Tally, u64) {
    let address = if v6 { IpAddr::from(EDGE_V6) } else { IpAddr::from(EDGE_V4) };
    let server = Server::start(&datapath.lab.edge, (address, 80).into(), 20_000).expect("a server");
    let flood = flood(datapath, SYN, v6, 50_000, 300_000);
    std::thread::sleep(Duration::from_millis(500));
    let load = Load { server: server.address(), rate, keep_alive: false, timeout: Duration::from_secs(4) };
    let clients: Vec<Client> = (0..4).map(|_| Client::start(&datapath.lab.wan, load).expect("a client")).collect();
    std::thread::sleep(Duration::from_millis(4_500));
    let mut all = Tally::default();
    for client in clients {
        all.merge(client.finish().expect("inside"));
    }
    (all, flood.join().expect("no panic").expect("sent"))
}

#[test]
fn drop_first_costs_an_honest_client_a_second_and_a_forged_syn_everything() {
    if skip_without_root("drop_first_costs_an_honest_client_a_second_and_a_forged_syn_everything") {
        return;
    }
    let datapath = behind_the_gate(gate_flag::LOCAL);
    for v6 in [false, true] {
        let (gated, clean) = (count(&datapath, Reason::SynGate), count(&datapath, Reason::Clean));
        let (tally, sent) = clients_under_a_syn_flood(&datapath, v6, 10);
        let gated = count(&datapath, Reason::SynGate) - gated;
        let clean = count(&datapath, Reason::Clean) - clean;
        println!(
            "drop-first, v6 {v6}: {sent} forged SYNs, {gated} dropped, {clean} passed with the clients' packets; {} \
             requests answered, {} lost, median {:?}, slowest {:?}",
            tally.answered,
            tally.lost,
            tally.quantile(0.5),
            tally.quantile(1.0)
        );
        assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
        assert!(tally.answered >= 10, "{tally:?}");
        // Not of every client: a forged SYN may by chance have the same place in the table, one in some hundred.
        assert!(tally.quantile(0.5) >= Some(Duration::from_millis(900)), "first SYNs were dropped: {tally:?}");
        assert!(gated > sent * 98 / 100, "{gated} of {sent}");
    }
}

#[test]
fn with_cookies_no_honest_connection_is_lost() {
    if skip_without_root("with_cookies_no_honest_connection_is_lost") {
        return;
    }
    let datapath = behind_the_gate(gate_flag::LOCAL | gate_flag::COOKIES);
    // A veth device takes frames that are sent back only while its peer polls, as with a program of its own.
    let wan = datapath.lab.wan.run(|| XdpCounter::attach("wan0", Then::Pass).expect("attaches")).expect("inside");
    let set = || std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2");
    datapath.lab.edge.run(set).expect("inside").expect("a setting of the namespace");
    for v6 in [false, true] {
        let cookies = count(&datapath, Reason::SynCookie);
        let (tally, sent) = clients_under_a_syn_flood(&datapath, v6, 100);
        let cookies = count(&datapath, Reason::SynCookie) - cookies;
        println!(
            "cookies, v6 {v6}: {sent} forged SYNs, {cookies} answered with a cookie; {} requests answered, {} lost, \
             median {:?}, slowest {:?}",
            tally.answered,
            tally.lost,
            tally.quantile(0.5),
            tally.quantile(1.0)
        );
        assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
        assert!(tally.answered >= 400, "{tally:?}");
        assert!(tally.quantile(0.5) < Some(Duration::from_millis(200)), "{:?}", tally.quantile(0.5));
        // Frames that come back are used again by the generator, as what they were turned into: not every frame that was
        // sent is a SYN.
        assert!(cookies > sent / 2, "{cookies} of {sent}");
        let syns = counters::interface(&datapath.maps, 0).expect("counters").classes[TrafficClass::TcpSyn.index()];
        // But where a client takes a port again whose connection is still known.
        let taken_again = syns.passed.packets;
        assert!(taken_again < tally.requests() / 5, "{taken_again} SYNs reach the stack");
        assert_eq!(count(&datapath, Reason::SynGate), 0);
    }
    assert!(wan.counts().expect("readable").other > 0);
}

#[test]
fn segments_of_no_connection_are_dropped_while_a_real_one_goes_on() {
    if skip_without_root("segments_of_no_connection_are_dropped_while_a_real_one_goes_on") {
        return;
    }
    let datapath = behind_the_gate(gate_flag::LOCAL);
    for v6 in [false, true] {
        let address = if v6 { IpAddr::from(EDGE_V6) } else { IpAddr::from(EDGE_V4) };
        let server = Server::start(&datapath.lab.edge, (address, 80).into(), 20_000).expect("a server");
        let load = Load { server: server.address(), rate: 100, keep_alive: true, timeout: Duration::from_secs(3) };
        let client = Client::start(&datapath.lab.wan, load).expect("a client");
        // Its own first SYN is dropped: it is connected after a second.
        std::thread::sleep(Duration::from_millis(1_500));
        assert!(client.take().answered > 0);
        let (before, mut sent) = (count(&datapath, Reason::UnsolicitedTcp), 0);
        for flags in [ACK, RST, SYN | ACK, ACK | RST] {
            sent += flood(&datapath, flags, v6, 50_000, 50_000).join().expect("no panic").expect("sent");
        }
        let dropped = count(&datapath, Reason::UnsolicitedTcp) - before;
        let tally = client.finish().expect("inside");
        println!("v6 {v6}: {dropped} of {sent} dropped; {} requests answered, {} lost", tally.answered, tally.lost);
        assert_eq!(dropped, sent, "all of them and nobody else");
        assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
        assert!(tally.answered > 150, "{tally:?}");
    }
}

#[test]
fn a_million_forged_sources_evict_no_learnt_flow_and_a_restart_keeps_them() {
    /// All come at once, and the backlog of a listener has 128 places.
    const CONNECTIONS: u64 = 100;
    let name = "a_million_forged_sources_evict_no_learnt_flow_and_a_restart_keeps_them";
    if skip_without_root(name) {
        return;
    }
    let datapath = behind_the_gate(gate_flag::LOCAL);
    let listener = datapath.lab.edge.run(|| TcpListener::bind((IpAddr::from(EDGE_V4), 80))).expect("inside").expect("");
    let address = listener.local_addr().expect("bound");
    let connected = datapath.lab.wan.spawn(move || {
        let connect =
            || std::thread::spawn(move || TcpStream::connect_timeout(&address, PATIENCE * 20).expect("connects"));
        // All at once: each waits for the second of drop-first. Threads stay in the namespace of their parent.
        let threads: Vec<_> = (0..CONNECTIONS).map(|_| connect()).collect();
        threads.into_iter().map(|t| t.join().expect("no panic")).collect::<Vec<TcpStream>>()
    });
    let accepted: Vec<TcpStream> = (0..CONNECTIONS).map(|_| listener.accept().expect("accepted").0).collect();
    let connected = connected.expect("a thread").join().expect("no panic").expect("inside");
    let learnt = || gate_maps(&datapath).learnt(ftagent::clock::mono_ns()).expect("readable").connections;
    assert_eq!(learnt(), CONNECTIONS);

    let mut sent = 0;
    for flags in [SYN, ACK, SYN | ACK] {
        sent += flood(&datapath, flags, false, 400_000, 400_000).join().expect("no panic").expect("sent");
    }
    assert!(sent > 1_000_000, "{sent}");
    println!("{sent} frames of forged sources");
    assert_eq!(learnt(), CONNECTIONS, "none more, none fewer");

    let pins = Pins::below(&datapath.dir.bpf()).expect("a bpffs");
    let again = attach(&datapath.lab, &pins, AttachChoice::Auto);
    assert_eq!(again[0].egress, Learning::Active { adopted: true });
    assert_eq!(learnt(), CONNECTIONS, "a new program on the old tables");
    let mut streams: Vec<TcpStream> = connected.into_iter().chain(accepted).collect();
    for stream in &mut streams {
        stream.set_read_timeout(Some(PATIENCE * 10)).expect("a timeout");
        stream.write_all(b"x").expect("sent");
    }
    for stream in &mut streams {
        stream.read_exact(&mut [0]).expect("every connection carries, both ways");
    }
    assert_eq!(learnt(), CONNECTIONS);
}

#[test]
fn an_answer_passes_to_who_asked_and_to_nobody_else() {
    if skip_without_root("an_answer_passes_to_who_asked_and_to_nobody_else") {
        return;
    }
    let datapath = with_reflectors();
    let lab = &datapath.lab;
    for (edge, wan) in [(IpAddr::from(EDGE_V4), IpAddr::from(WAN_V4)), (IpAddr::from(EDGE_V6), IpAddr::from(WAN_V6))] {
        let before = count(&datapath, Reason::Reflection);
        let server = bound(&lab.wan, wan, 53);
        let resolver = bound(&lab.edge, edge, 0);
        let bystander = bound(&lab.edge, edge, 0);
        let to = |s: &UdpSocket| s.local_addr().expect("bound");

        server.send_to(b"unasked", to(&resolver)).expect("sent");
        assert!(!arrives(&resolver), "{edge}: an answer before the question");
        resolver.send_to(b"question", to(&server)).expect("sent");
        assert!(arrives(&server), "{edge}: questions leave");
        server.send_to(b"answer", to(&resolver)).expect("sent");
        assert!(arrives(&resolver), "{edge}: the answer to the question");
        server.send_to(b"unasked", to(&bystander)).expect("sent");
        assert!(!arrives(&bystander), "{edge}: another port asked nothing");
        assert_eq!(count(&datapath, Reason::Reflection) - before, 2);

        let other = bound(&lab.wan, wan, 5_000);
        other.send_to(b"hello", to(&bystander)).expect("sent");
        assert!(arrives(&bystander), "{edge}: no reflector answers from port 5000");
    }
    assert_eq!(gate_maps(&datapath).learnt(ftagent::clock::mono_ns()).expect("readable").queries, 2);
}

#[test]
fn who_serves_a_port_is_asked_from_any_port_and_learns_no_stranger() {
    if skip_without_root("who_serves_a_port_is_asked_from_any_port_and_learns_no_stranger") {
        return;
    }
    let datapath = with_reflectors();
    let lab = &datapath.lab;
    let server = bound(&lab.edge, EDGE_V4, 123);
    let client = bound(&lab.wan, WAN_V4, 123);
    client.send_to(b"time?", server.local_addr().expect("bound")).expect("sent");
    assert!(!arrives(&server), "not served as far as the kernel knows");
    trust_what_was_learnt(&datapath, vec![123]);
    client.send_to(b"time?", server.local_addr().expect("bound")).expect("sent");
    assert!(arrives(&server), "a question to the port that is served");
    server.send_to(b"noon", client.local_addr().expect("bound")).expect("sent");
    assert!(arrives(&client));
    assert_eq!(gate_maps(&datapath).learnt(ftagent::clock::mono_ns()).expect("readable").queries, 0);
}

#[test]
fn only_protected_destinations_and_learnt_tables_make_a_reflection() {
    if skip_without_root("only_protected_destinations_and_learnt_tables_make_a_reflection") {
        return;
    }
    let mut datapath = with_reflectors();
    let answer = |dst: [u8; 4]| PacketBuilder::v4([198, 51, 100, 7], dst).udp(53, 40_000).payload(&[0; 40]).build();
    assert_eq!(datapath.judge(&answer(EDGE_V4)), Reason::Reflection);
    assert_eq!(datapath.judge(&answer([10, 99, 0, 77])), Reason::Clean, "not protected");
    let reply = PacketBuilder::v4([198, 51, 100, 7], EDGE_V4).icmp(0, 0).build();
    assert_eq!(datapath.judge(&reply), Reason::Reflection, "an echo reply without a request");
    let request = PacketBuilder::v4([198, 51, 100, 7], EDGE_V4).icmp(8, 0).build();
    assert_eq!(datapath.judge(&request), Reason::Clean);
    datapath.ground.fail_safe = vec![ftagent::xdp::compile::FailSafe { prefix: net("198.51.100.7/32"), ports: vec![] }];
    datapath.apply(&Default::default());
    assert_eq!(datapath.judge(&answer(EDGE_V4)), Reason::FailSafe);
    datapath.ground.fail_safe.clear();
    datapath.apply(&Default::default());

    let maps = gate_maps(&datapath);
    let mut settings = maps.settings.lookup(&0).expect("readable").expect("there");
    settings.queries_from_ns = u64::MAX;
    maps.settings.insert(&0, &settings).expect("written");
    assert_eq!(datapath.judge(&answer(EDGE_V4)), Reason::Clean, "nothing was learnt for long enough");
    settings.queries_from_ns = 1;
    maps.settings.insert(&0, &settings).expect("written");
    assert_eq!(datapath.judge(&answer(EDGE_V4)), Reason::Reflection);
    datapath.settings.features &= !feature::REFLECTORS;
    datapath.apply(&Default::default());
    assert_eq!(datapath.judge(&answer(EDGE_V4)), Reason::Clean, "the stage is off");
}

#[test]
fn an_echo_request_of_ours_is_answered() {
    if skip_without_root("an_echo_request_of_ours_is_answered") {
        return;
    }
    let datapath = with_reflectors();
    let asked = datapath.lab.edge.run(|| {
        let socket = socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        let patience = nix::sys::time::TimeVal::new(1, 0);
        socket::setsockopt(&socket, socket::sockopt::ReceiveTimeout, &patience)?;
        // An echo request; its checksum makes the sum of its words 0xffff.
        let request = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        let peer = SockaddrIn::from(std::net::SocketAddrV4::new(WAN_V4.into(), 0));
        socket::sendto(socket.as_raw_fd(), &request, &peer, MsgFlags::empty())?;
        let mut answer = [0; 64];
        let len = socket::recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        nix::Result::Ok(answer[..len].to_vec())
    });
    let answer = asked.expect("inside").expect("an answer");
    assert_eq!(answer[20], 0, "an echo reply behind the IPv4 header");
    assert_eq!(count(&datapath, Reason::Reflection), 0);
}

/// Forged SYNs that look like those of Linux, in the background.
fn flood_like_clients(lab: &Lab) -> JoinHandle<Result<u64, NetnsError>> {
    let device = lab.wan0.index;
    let work = move || {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let frame = PacketBuilder::v4([198, 18, 0, 1], EDGE_V4).macs(WAN_MAC, EDGE_MAC).tcp(40_000, 80, SYN);
        let vary = Vary { sources: Some(net("128.0.0.0/2")), source_ports: Some(32_768..=60_999), ..Vary::default() };
        let mut generator = Generator::load(&frame.tcp_options(&options).build(), &vary, 7).expect("loads");
        let bounds = Bounds::new(350_000, Duration::from_secs(15));
        generator.send(device, Pace::PerSecond(50_000), bounds).expect("sends").arrived()
    };
    lab.wan.spawn(work).expect("a thread in the namespace")
}

#[test]
fn the_agent_puts_a_flooded_target_behind_the_gate_and_takes_it_away_again() {
    let name = "the_agent_puts_a_flooded_target_behind_the_gate_and_takes_it_away_again";
    if skip_without_root(name) {
        return;
    }
    let Some(program) = agent::program("FTAGENT_BIN", "ftagent") else { return };
    let lab = Lab::new();
    let dir = LabDir::create("gate").expect("a directory");
    let extra = "[datapath.gate]\nwarmup_secs = 1\nsyn = \"cookies\"\n";
    let mut agent = Agent::new(program, dir.path(), &lab.edge, extra);
    let setting = || {
        let read = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").expect("a setting");
        lab.edge.run(read).expect("inside").trim().to_owned()
    };
    let before = setting();
    assert_ne!(before, "2");
    // A veth device takes frames that are sent back only while its peer polls, as with a program of its own.
    let wan = lab.wan.run(|| XdpCounter::attach("wan0", Then::Pass).expect("attaches")).expect("inside");
    agent.start();
    let gate = |agent: &Agent| agent.ask("status").map(|s| s["gate"].clone()).unwrap_or_default();
    let shown = gate(&agent);
    assert_eq!((&shown["unlearnt"], &shown["reflectors_off"]), (&Value::Null, &Value::Null), "{shown}");
    assert_eq!(shown["targets"], serde_json::json!([]));

    let server = Server::start(&lab.edge, (EDGE_V4, 80).into(), 20_000).expect("a server");
    // SYNs as honest clients send them, and some of those before: no signature tells them apart.
    let load = Load { server: server.address(), rate: 50, keep_alive: false, timeout: Duration::from_secs(4) };
    let early = Client::start(&lab.wan, load).expect("a client");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(early.finish().expect("inside").lost, 0);
    let flood = flood_like_clients(&lab);
    agent.wait("behind the gate", Duration::from_secs(5), || {
        gate(&agent)["targets"] == serde_json::json!(["10.99.0.1/32"])
    });
    assert_eq!(setting(), "2");
    let load = Load { server: server.address(), rate: 100, keep_alive: false, timeout: Duration::from_secs(4) };
    let client = Client::start(&lab.wan, load).expect("a client");
    std::thread::sleep(Duration::from_secs(3));
    let tally = client.finish().expect("inside");
    println!("{} requests answered, {} lost, median {:?}", tally.answered, tally.lost, tally.quantile(0.5));
    assert_eq!(tally.lost, 0, "{:?}", tally.first_loss);
    assert!(tally.answered > 50);
    let verdicts = agent.ask("status").expect("an answer")["verdicts"]["edge0"].clone();
    assert!(verdicts["syn_cookie"]["packets"].as_u64() > Some(10_000), "{verdicts}");
    agent.kill();
    agent.start();
    assert_eq!(gate(&agent)["targets"], serde_json::json!(["10.99.0.1/32"]), "an heir keeps it");

    flood.join().expect("no panic").expect("sent");
    agent.wait("taken away", Duration::from_secs(20), || gate(&agent)["targets"] == serde_json::json!([]));
    assert_eq!(setting(), before, "the host's own setting is back");
    drop(wan);
}
