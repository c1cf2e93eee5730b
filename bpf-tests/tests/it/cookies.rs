//! Cookies frame by frame and connection by connection: what the gate sends back is what the stack behind it takes for
//! its own, over tags and with options, and nothing else opens a connection.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bpf_tests::bpffs::LabDir;
use bpf_tests::checksum;
use bpf_tests::clock::now;
use bpf_tests::generator::{Bounds, Generator, Pace, Vary};
use bpf_tests::meter::{Then, XdpCounter};
use bpf_tests::netns::Netns;
use bpf_tests::packet::{PacketBuilder, extension};
use bpf_tests::run::run_xdp;
use bpf_tests::skip_without_root;
use bpf_tests::veth::{self, EndSpec};
use ftagent::xdp::compile::key;
use ftagent::xdp::counters;
use ftagent::xdp::maps::Maps;
use ftagent::xdp::pins::Pins;
use ftagent::xdp::program::AttachChoice;
use ftagent::xdp::writer::Writer;
use ftagent_common::abi::{AUTOMATIC, EVALUATE, GatedTarget, NO_RULE, Reason, feature, gate as how, mode};
use ftagent_common::packet::tcp_flag::{ACK, PSH, RST, SYN};
use ftagent_common::vocab::AttachMode;
use nix::sys::socket::{getsockopt, sockopt};

use crate::datapath::{Datapath, XDP_DROP, attach, net, settings};
use crate::gate::{count, gate_maps, trust_what_was_learnt};
use crate::lab::{EDGE_MAC, EDGE_V4, EDGE_V6, Lab, WAN_MAC, WAN_V4, WAN_V6};

const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const PORT: u16 = 80;
/// The sequence number of every segment that the packet builder makes.
const SEQUENCE: u32 = 4_096;
const PATIENCE: Duration = Duration::from_secs(5);

/// A target behind the gate: cookies from its own sockets.
const COOKIES: GatedTarget =
    GatedTarget { expires_at_ns: 0, rule: NO_RULE, flags: 0, how: how::LOCAL | how::COOKIES, padding: [0; 2] };

/// Every address of the lab behind the gate.
fn gated(target: &GatedTarget) -> Datapath {
    let mut datapath = Datapath::new();
    guard(&mut datapath, target);
    datapath
}

fn guard(datapath: &mut Datapath, target: &GatedTarget) {
    let all = ["10.0.0.0/8", "fd00::/8"].map(net);
    datapath.settings.features |= feature::GATE;
    datapath.ground.protected.extend(all);
    datapath.apply(&Default::default());
    trust_what_was_learnt(datapath, vec![]);
    let always = || std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2");
    datapath.lab.edge.run(always).expect("inside").expect("a setting of the namespace");
    for prefix in all {
        gate_maps(datapath).gated.insert(&key(prefix), target).expect("written");
    }
}

/// A listener of the edge that is asked without waiting.
fn listener(edge: &Netns, address: IpAddr) -> TcpListener {
    let listener = edge.run(|| TcpListener::bind((address, PORT))).expect("inside").expect("bound");
    listener.set_nonblocking(true).expect("set");
    listener
}

fn accept(listener: &TcpListener, patience: Duration) -> Option<TcpStream> {
    let deadline = now() + patience;
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(e) if e.kind() == ErrorKind::WouldBlock && now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return None,
            Err(e) => panic!("{e}"),
        }
    }
}

/// One frame through the program, in the edge's namespace, whose sockets are asked.
fn judged(datapath: &Datapath, frame: &[u8]) -> (u32, Reason, Vec<u8>) {
    let read = || counters::interface(&datapath.maps, 0).expect("counters").reasons;
    let before = read();
    let program = datapath.program();
    let outcome = datapath.lab.edge.run(|| run_xdp(&program, frame, None).expect("runs")).expect("inside");
    let after = read();
    let grown = |r: &&Reason| after[r.index()].packets != before[r.index()].packets;
    (outcome.verdict, *Reason::ALL.iter().find(grown).expect("counted"), outcome.frame)
}

/// Puts frames on the wire towards the edge.
fn send(datapath: &Datapath, frame: &[u8], copies: u64) {
    let device = datapath.lab.wan0.index;
    let sent = datapath.lab.wan.run(|| {
        let mut generator = Generator::load(frame, &Vary::default(), 7).expect("loads");
        generator.send(device, Pace::PerSecond(1_000), Bounds::new(copies, PATIENCE)).expect("sends").arrived()
    });
    assert_eq!(sent.expect("inside"), copies);
}

/// Sets the numbers of a segment whose TCP header begins at `at`.
fn numbered(mut frame: Vec<u8>, at: usize, seq: u32, ack: u32) -> Vec<u8> {
    frame[at + 4..at + 8].copy_from_slice(&seq.to_be_bytes());
    frame[at + 8..at + 12].copy_from_slice(&ack.to_be_bytes());
    checksum::fill(&mut frame);
    frame
}

/// Both ends: a client whom nobody stands behind, since a stack would reset what it knows nothing of, and the edge.
fn ends() -> [(IpAddr, IpAddr); 2] {
    let clients = ["10.99.0.50", "fd99::50"].map(|text| text.parse().expect(text));
    [(clients[0], EDGE_V4.into()), (clients[1], EDGE_V6.into())]
}

/// One way that a client is connected.
#[derive(Clone)]
struct Way {
    name: &'static str,
    tags: Vec<(u16, u16)>,
    client: IpAddr,
    server: IpAddr,
    options: Vec<u8>,
    /// Segment size that the client asks for.
    mss: u16,
}

impl Way {
    fn segment(&self, port: u16, flags: u8) -> PacketBuilder {
        let packet = PacketBuilder::new(self.client, self.server).macs(WAN_MAC, EDGE_MAC).tcp(port, PORT, flags);
        self.tags.iter().fold(packet, |packet, (ether_type, id)| packet.vlan(*ether_type, *id))
    }

    fn syn(&self, port: u16) -> Vec<u8> {
        let syn = self.segment(port, SYN);
        if self.options.is_empty() { syn.build() } else { syn.tcp_options(&self.options).build() }
    }

    fn l3(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    fn l4(&self) -> usize {
        self.l3() + if self.client.is_ipv4() { 20 } else { 40 }
    }

    /// The segment that acknowledges `number`, with data.
    fn acknowledge(&self, port: u16, number: u32) -> Vec<u8> {
        let frame = self.segment(port, ACK | PSH).payload(b"hello").build();
        numbered(frame, self.l4(), SEQUENCE + 1, number)
    }

    /// Reads the answer to a SYN; its cookie and its segment size, if it tells one.
    fn read(&self, syn: &[u8], answer: &[u8], port: u16) -> (u32, Option<u16>) {
        let (name, l3, l4) = (self.name, self.l3(), self.l4());
        assert_eq!((&answer[..6], &answer[6..12]), (&WAN_MAC[..], &EDGE_MAC[..]), "{name}: back where it came from");
        assert_eq!(answer[12..l3], syn[12..l3], "{name}: in the same VLAN");
        let size = if self.client.is_ipv4() { 4 } else { 16 };
        let source = if self.client.is_ipv4() { l3 + 12 } else { l3 + 8 };
        assert_eq!(answer[source..source + size], syn[source + size..source + 2 * size], "{name}: from the server");
        assert_eq!(answer[source + size..source + 2 * size], syn[source..source + size], "{name}: to the client");
        let word = |at: usize| u32::from_be_bytes(answer[at..at + 4].try_into().expect("four bytes"));
        assert_eq!(word(l4), u32::from(PORT) << 16 | u32::from(port), "{name}: ports");
        assert_eq!(word(l4 + 8), SEQUENCE + 1, "{name}: acknowledges the SYN");
        assert_eq!(answer[l4 + 13], SYN | ACK, "{name}");
        assert!(answer.len() >= syn.len().min(60), "{name}: not below Ethernet's shortest frame: {}", answer.len());
        let has_option = answer[l4 + 12] >> 4 == 6;
        let mss = has_option.then(|| {
            assert_eq!(answer[l4 + 20..l4 + 22], [2, 4], "{name}: a segment size");
            u16::from_be_bytes([answer[l4 + 22], answer[l4 + 23]])
        });
        let end = l4 + if has_option { 24 } else { 20 };
        assert_eq!(checksum::verify(&answer[..end]), checksum::Verdict::Right, "{name}: checksums");
        (word(l4 + 4), mss)
    }
}

/// As Linux's SYNs: segment size, permission for selective acknowledgements, time stamps, window scale.
fn options(mss: u16) -> Vec<u8> {
    let [high, low] = mss.to_be_bytes();
    vec![2, 4, high, low, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    // A cookie is of addresses, ports and numbers: what tags a frame has is no part of it.
    let tagged: [(&str, Vec<(u16, u16)>); 4] = [
        ("plain", vec![]),
        ("VLAN", vec![(0x8100, 7)]),
        ("priority tag", vec![(0x8100, 0xe000)]),
        ("QinQ", vec![(0x88a8, 9), (0x8100, 8)]),
    ];
    for (name, tags) in tagged {
        for (client, server) in ends() {
            // No option stands for the smallest segments.
            for (options, mss) in [(vec![], 536), (options(536), 536), (options(1_460), 1_460), (options(9_000), 9_000)]
            {
                ways.push(Way { name, tags: tags.clone(), client, server, options, mss });
            }
        }
    }
    ways
}

#[test]
fn a_cookie_over_tags_and_with_options_opens_a_connection_of_the_stack() {
    if skip_without_root("a_cookie_over_tags_and_with_options_opens_a_connection_of_the_stack") {
        return;
    }
    let datapath = gated(&COOKIES);
    for (way, port) in ways().into_iter().zip(40_000..) {
        let name = format!("{} {} {:?}", way.name, way.server, way.options);
        let listener = listener(&datapath.lab.edge, way.server);
        let syn = way.syn(port);
        let (verdict, reason, answer) = judged(&datapath, &syn);
        assert_eq!((verdict, reason), (XDP_TX, Reason::SynCookie), "{name}");
        let (cookie, mss) = way.read(&syn, &answer, port);
        assert_eq!(mss.is_some(), !way.options.is_empty(), "{name}: an option where there was room for one");
        // What the kernel's cookies have room for begins where no network is narrower (RFC 9293, RFC 8200).
        let least = if way.client.is_ipv4() { 536 } else { 1_220 };
        assert!(mss.unwrap_or(least) <= way.mss.max(least), "{name}: {mss:?}");

        let right = cookie.wrapping_add(1);
        assert_eq!(judged(&datapath, &way.acknowledge(port, right)).1, Reason::Clean, "{name}: known by its cookie");
        // The kernel's own stack takes the cookie for its own: data with it, a connection. It comes without tags, since
        // a stack has devices for them only where somebody made some.
        let plain = Way { tags: Vec::new(), ..way.clone() };
        send(&datapath, &plain.acknowledge(port, right), 1);
        let mut stream = accept(&listener, PATIENCE).unwrap_or_else(|| panic!("{name}: no connection"));
        assert_eq!(stream.peer_addr().expect("connected"), (way.client, port).into(), "{name}");
        stream.set_nonblocking(false).expect("set");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        let mut data = [0; 5];
        stream.read_exact(&mut data).expect("data with the acknowledgement");
        assert_eq!(&data, b"hello", "{name}");
        let sends = getsockopt(&stream, sockopt::TcpMaxSeg).expect("a segment size");
        assert!(sends <= u32::from(way.mss.max(least)), "{name}: segments of {sends} to who asked for {}", way.mss);
        assert!(way.mss != 1_460 || sends >= 1_400, "{name}: the segment size is lost: {sends}");
    }
}

#[test]
fn nothing_but_the_right_acknowledgement_is_let_in_and_it_only_once() {
    if skip_without_root("nothing_but_the_right_acknowledgement_is_let_in_and_it_only_once") {
        return;
    }
    let datapath = gated(&COOKIES);
    for (client, server) in ends() {
        let way = Way { name: "plain", tags: vec![], client, server, options: options(1_460), mss: 1_460 };
        let listener = listener(&datapath.lab.edge, server);
        let port = 41_000;
        let syn = way.syn(port);
        let (cookie, _) = way.read(&syn, &judged(&datapath, &syn).2, port);
        let right = cookie.wrapping_add(1);
        let as_if = |flags: u8, seq: u32, ack: u32| numbered(way.segment(port, flags).build(), way.l4(), seq, ack);
        let rows = [
            // The lowest bits are the segment size's place in a table of four: numbers beside it may be cookies too.
            ("a number above", as_if(ACK, SEQUENCE + 1, right.wrapping_add(5))),
            ("a number below", as_if(ACK, SEQUENCE + 1, right.wrapping_sub(5))),
            ("another number", as_if(ACK, SEQUENCE + 1, 0x1234_5678)),
            ("of another SYN", as_if(ACK, SEQUENCE + 77, right)),
            ("a reset", as_if(RST, SEQUENCE + 1, right)),
            ("a reset with ACK", as_if(RST | ACK, SEQUENCE + 1, right)),
            ("a SYN-ACK", as_if(SYN | ACK, SEQUENCE + 1, right)),
            ("of another port", way.acknowledge(port + 1, right)),
        ];
        for (name, frame) in rows {
            let (verdict, reason, _) = judged(&datapath, &frame);
            assert_eq!((verdict, reason), (XDP_DROP, Reason::UnsolicitedTcp), "{name}");
            send(&datapath, &frame, 1);
        }
        assert!(accept(&listener, Duration::from_millis(100)).is_none(), "none of them opens a connection");

        send(&datapath, &way.acknowledge(port, right), 1);
        let stream = accept(&listener, PATIENCE).expect("the right one does");
        send(&datapath, &way.acknowledge(port, right), 20);
        assert!(accept(&listener, Duration::from_millis(100)).is_none(), "and its copies open no other");
        drop(stream);
        // A new SYN on the ports of a connection that is known goes to the stack.
        assert_eq!(judged(&datapath, &way.syn(port)).1, Reason::Clean);
    }
}

#[test]
fn where_no_cookie_can_be_given_the_first_syn_is_dropped() {
    if skip_without_root("where_no_cookie_can_be_given_the_first_syn_is_dropped") {
        return;
    }
    let datapath = gated(&COOKIES);
    let _listeners = [IpAddr::from(EDGE_V4), EDGE_V6.into()].map(|address| listener(&datapath.lab.edge, address));
    let v4 = |port| PacketBuilder::v4(WAN_V4, EDGE_V4).tcp(port, PORT, SYN).tcp_options(&options(1_460));
    let v6 = |port| PacketBuilder::v6(WAN_V6, EDGE_V6).tcp(port, PORT, SYN).tcp_options(&options(1_460));
    let closed = PacketBuilder::v4(WAN_V4, EDGE_V4).tcp(42_000, PORT + 1, SYN).tcp_options(&options(1_460));
    let rows = [
        ("options of IPv4", v4(42_001).options(&[1; 4]).build()),
        ("all options of IPv4", v4(42_002).options(&[1; 40]).build()),
        ("an extension header", v6(42_003).extension(extension::DESTINATION, &[0; 6]).build()),
        ("a closed port", closed.build()),
    ];
    for (name, frame) in &rows {
        let (verdict, reason, _) = judged(&datapath, frame);
        assert_eq!((verdict, reason), (XDP_DROP, Reason::SynGate), "{name}");
    }
    std::thread::sleep(Duration::from_millis(600));
    for (name, frame) in &rows {
        let (verdict, reason, _) = judged(&datapath, frame);
        assert_eq!((verdict, reason), (XDP_PASS, Reason::Clean), "{name}, repeated");
    }
}

#[test]
fn a_gate_that_is_not_in_force_answers_nobody() {
    if skip_without_root("a_gate_that_is_not_in_force_answers_nobody") {
        return;
    }
    let mut datapath = gated(&COOKIES);
    let _listener = listener(&datapath.lab.edge, EDGE_V4.into());
    let segment = |port, flags| PacketBuilder::v4(WAN_V4, EDGE_V4).tcp(port, PORT, flags).build();
    let seen = |datapath: &Datapath, port| {
        [SYN, ACK].map(|flags| {
            let (verdict, reason, _) = judged(datapath, &segment(port, flags));
            (verdict, reason)
        })
    };
    let nothing = [(XDP_PASS, Reason::Clean); 2];
    let strict = [(XDP_TX, Reason::SynCookie), (XDP_DROP, Reason::UnsolicitedTcp)];
    assert_eq!(seen(&datapath, 43_000), strict);
    for (name, target) in [
        ("ended", GatedTarget { expires_at_ns: 1, ..COOKIES }),
        ("only evaluated", GatedTarget { flags: EVALUATE, ..COOKIES }),
    ] {
        guard(&mut datapath, &target);
        assert_eq!(seen(&datapath, 43_001), nothing, "{name}");
    }
    guard(&mut datapath, &GatedTarget { flags: AUTOMATIC, ..COOKIES });
    assert_eq!(seen(&datapath, 43_002), strict);
    (datapath.settings.heartbeat_ns, datapath.settings.dead_man_ns) = (1, 1);
    datapath.apply(&Default::default());
    assert_eq!(seen(&datapath, 43_003), nothing, "the agent is silent");
    (datapath.settings.heartbeat_ns, datapath.settings.dead_man_ns) = (0, 0);

    datapath.settings.mode = mode::EVALUATE;
    datapath.apply(&Default::default());
    let counted = [(XDP_PASS, Reason::SynGate), (XDP_PASS, Reason::UnsolicitedTcp)];
    assert_eq!(seen(&datapath, 43_004), counted, "evaluate: counted, passed, and no cookie");
    datapath.settings.mode = mode::BYPASS;
    datapath.apply(&Default::default());
    assert_eq!(seen(&datapath, 43_005), [(XDP_PASS, Reason::Bypassed); 2]);
}

/// Connects from the other end of the wire, sends a line and reads it back; how long the connection took to be made.
fn echo(datapath: &Datapath, server: IpAddr, listener: &TcpListener) -> Duration {
    let began = now();
    let client = datapath.lab.wan.spawn(move || {
        let mut stream = TcpStream::connect_timeout(&(server, PORT).into(), PATIENCE).expect("connects");
        let took = began.elapsed();
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(b"hello").expect("sent");
        let mut data = [0; 5];
        stream.read_exact(&mut data).expect("read back");
        assert_eq!(&data, b"hello");
        took
    });
    let mut stream = accept(listener, PATIENCE).expect("a connection");
    stream.set_nonblocking(false).expect("set");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    let mut data = [0; 5];
    stream.read_exact(&mut data).expect("a line");
    stream.write_all(&data).expect("sent back");
    client.expect("a thread").join().expect("no panic").expect("inside")
}

#[test]
fn what_is_forwarded_is_gated_by_drop_first_where_it_is_gated_at_all() {
    let name = "what_is_forwarded_is_gated_by_drop_first_where_it_is_gated_at_all";
    if skip_without_root(name) {
        return;
    }
    let mut datapath = Datapath::new();
    // A host behind the edge, whose sockets nobody here can ask.
    let host = Netns::create("host").expect("a namespace");
    let end = |name: &str, last: u8| EndSpec {
        name: name.to_owned(),
        mac: [2, 0, 0, 0, 1, last],
        addresses: vec![
            (IpAddr::from([10, 97, 0, last]), 24),
            (IpAddr::from([0xfd97, 0, 0, 0, 0, 0, 0, u16::from(last)]), 64),
        ],
        queues: 1,
        default_route: name == "host0",
    };
    veth::connect((&datapath.lab.edge, &end("edge1", 1)), (&host, &end("host0", 2))).expect("a wire");
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let set = || std::fs::write(format!("/proc/sys/net/{setting}"), "1");
        datapath.lab.edge.run(set).expect("inside").expect("a setting of the namespace");
    }
    datapath.settings.features |= feature::GATE;
    datapath.ground.protected.extend(["10.97.0.2/32", "fd97::2/128"].map(net));
    datapath.apply(&Default::default());
    trust_what_was_learnt(&datapath, vec![]);
    for server in ["10.97.0.2", "fd97::2"].map(|text| text.parse::<IpAddr>().expect(text)) {
        let gate = |how| {
            let target = GatedTarget { how, ..COOKIES };
            let prefix = net(&format!("{server}/{}", if server.is_ipv4() { 32 } else { 128 }));
            gate_maps(&datapath).gated.insert(&key(prefix), &target).expect("written");
        };
        let listener = listener(&host, server);
        let open = echo(&datapath, server, &listener);
        assert!(open < Duration::from_millis(900), "not gated: {open:?}");
        // Cookies are asked for, but no socket of this node is there to give them.
        for how in [0, how::COOKIES] {
            gate(how);
            let (gated, answered) = (count(&datapath, Reason::SynGate), count(&datapath, Reason::SynCookie));
            let took = echo(&datapath, server, &listener);
            println!("{server}, how {how}: connected after {took:?}, without the gate after {open:?}");
            assert!(took >= Duration::from_millis(900), "the first SYN is dropped: {took:?}");
            assert_eq!(count(&datapath, Reason::SynGate) - gated, 1);
            assert_eq!(count(&datapath, Reason::SynCookie), answered);
        }
        let forged = PacketBuilder::new(if server.is_ipv4() { WAN_V4.into() } else { WAN_V6.into() }, server);
        assert_eq!(datapath.judge(&forged.tcp(44_000, PORT, ACK).build()), Reason::UnsolicitedTcp);
    }
}

/// The datapath before the kernel's own generic XDP, where frames have been through the stack's first steps.
fn generic() -> Datapath {
    let lab = Arc::new(Lab::new());
    let dir = LabDir::create("cookies").expect("a bpffs");
    let pins = Pins::below(&dir.bpf()).expect("a bpffs");
    let attached = attach(&lab, &pins, AttachChoice::Generic);
    assert_eq!(attached[0].mode, AttachMode::Generic, "{}", attached[0].reason);
    let maps = Maps::open(&pins.maps()).expect("maps");
    let writer = Writer::adopt(&maps).expect("maps can be read");
    let (slots, ground) = Default::default();
    Datapath { lab, dir, maps, attached, slots, ground, writer, settings: settings() }
}

#[test]
fn a_connection_of_two_real_stacks_is_made_by_a_cookie_in_native_xdp() {
    if skip_without_root("a_connection_of_two_real_stacks_is_made_by_a_cookie_in_native_xdp") {
        return;
    }
    let datapath = gated(&COOKIES);
    // A veth device takes frames that are sent back only while its peer polls, as with a program of its own.
    let wan = datapath.lab.wan.run(|| XdpCounter::attach("wan0", Then::Pass).expect("attaches")).expect("inside");
    check_real_stacks(&datapath);
    drop(wan);
}

#[test]
fn a_connection_of_two_real_stacks_is_made_by_a_cookie_in_generic_xdp() {
    if skip_without_root("a_connection_of_two_real_stacks_is_made_by_a_cookie_in_generic_xdp") {
        return;
    }
    let mut datapath = generic();
    guard(&mut datapath, &COOKIES);
    check_real_stacks(&datapath);
}

fn check_real_stacks(datapath: &Datapath) {
    for server in [IpAddr::from(EDGE_V4), EDGE_V6.into()] {
        let listener = listener(&datapath.lab.edge, server);
        let cookies = count(datapath, Reason::SynCookie);
        for _ in 0..20 {
            echo(datapath, server, &listener);
        }
        assert_eq!(count(datapath, Reason::SynCookie) - cookies, 20, "{server}: one for each");
    }
    assert_eq!(count(datapath, Reason::SynGate) + count(datapath, Reason::UnsolicitedTcp), 0);
}
