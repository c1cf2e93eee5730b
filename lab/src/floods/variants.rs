//! Attacks as tools that the literature describes send them, reflection apart: what bots, load generators and packet
//! crafters put on the wire, not what is easiest to generate.

use std::net::IpAddr;

use ftagent_common::vocab::AttackFamily as F;

use super::scene::{
    bursts, each, ephemeral, far, fragmented, host, letters, noise, one_of, ordinary_ttl, scene, tcp, udp,
};
use super::{Dice, Scene, Spec, forged};

const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;
const PSH_ACK: u8 = 24;
const FIN_ACK: u8 = 17;
/// What a real system's SYN carries, and its other segments where it keeps time stamps.
const SYN_OPTIONS: usize = 20;
const STAMPS: usize = 12;
/// Groups of hosts.
const BOTS: u64 = 1;
const CLIENTS: u64 = 2;
const RESOLVERS: u64 = 3;

fn any_port(d: &mut Dice) -> u16 {
    1 + d.below(65_535) as u16
}

fn flags(d: &mut Dice, src: IpAddr, to: IpAddr, port: u16, flags: u8, payload: Vec<u8>) -> Spec {
    tcp(src, to, (any_port(d), port), flags, 0, payload)
}

fn echo(t: IpAddr) -> u8 {
    if t.is_ipv4() { 8 } else { 128 }
}

fn icmp(src: IpAddr, t: IpAddr, v4: [u8; 2], v6: [u8; 2], payload: Vec<u8>) -> Spec {
    let mut s = Spec::new(src, t, if t.is_ipv4() { 1 } else { 58 });
    (s.icmp, s.payload, s.ttl) = (if t.is_ipv4() { v4 } else { v6 }, payload, ordinary_ttl(src));
    s
}

/// One stack behind forged addresses: all its packets come the same way.
fn spoofing(mut s: Spec, t: IpAddr, d: &mut Dice) -> Spec {
    (s.src, s.ttl) = (forged(d, t), 54);
    s
}

fn query(d: &mut Dice, name: &[&[u8]], kind: u8) -> Vec<u8> {
    let mut p = noise(d, 2);
    p.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name {
        p.push(label.len() as u8);
        p.extend(*label);
    }
    p.extend([0, 0, kind, 0, 1]);
    p
}

/// A packet inside GRE.
fn gre(src: IpAddr, t: IpAddr, inner: &Spec, ethernet: bool) -> Spec {
    let frame = inner.frame();
    let mut s = Spec::new(src, t, 47);
    s.ttl = far(src, 64);
    s.payload = if ethernet {
        [&[0, 0, 0x65, 0x58][..], &frame].concat()
    } else {
        [&[0, 0, frame[12], frame[13]][..], &frame[14..]].concat()
    };
    s
}

/// Segments of TCP.
pub(super) const OF_TCP: &[Scene] = &[
    scene("hping3 -S --flood, one host", &[F::SynFlood], |d, t| {
        let mut n = 0u16;
        each(d, move |_| {
            n = n.wrapping_add(1);
            tcp(host(BOTS, 1, t), t, (2_000 + n % 60_000, 80), SYN, 0, vec![])
        })
    }),
    scene("hping3 -S --rand-source -d 120", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let s = flags(d, t, t, 443, SYN, vec![b'X'; 120]);
            spoofing(s, t, d)
        })
    }),
    scene("XOR.DDoS SYN of a kilobyte", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let data = noise(d, 900 + 4 * (d.0 as usize & 15));
            let s = flags(d, t, t, 80, SYN, data);
            spoofing(s, t, d)
        })
    }),
    scene("Mirai syn from bots, with options", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 800, t);
            let mut s = tcp(src, t, (any_port(d), 80), SYN, SYN_OPTIONS, vec![]);
            s.ttl = far(src, 64);
            s
        })
    }),
    scene("Mirai syn to any port", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 3_000, t);
            tcp(src, t, (any_port(d), any_port(d)), SYN, SYN_OPTIONS, vec![])
        })
    }),
    scene("SYN with options, addresses of one network", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let mut s = tcp(host(BOTS, 5, t), t, (any_port(d), 25_565), SYN, 4, vec![]);
            if let IpAddr::V4(v4) = s.src {
                let [a, b, ..] = v4.octets();
                s.src = IpAddr::from([a, b, d.roll() as u8, d.roll() as u8]);
            }
            s.ttl = 118;
            s
        })
    }),
    scene("SYN with ECE and CWR, forged", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let mut s = flags(d, t, t, 80, SYN | 0xc0, vec![]);
            s.tcp_options = 12;
            spoofing(s, t, d)
        })
    }),
    scene("SYN from 40 hosts, new port each", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 40, t);
            tcp(src, t, (any_port(d), 22), SYN, SYN_OPTIONS, vec![])
        })
    }),
    scene("Mirai ack, 512 bytes", &[F::AckFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 800, t);
            let data = noise(d, 512);
            tcp(src, t, (any_port(d), any_port(d)), ACK, 0, data)
        })
    }),
    scene("hping3 -A, one host", &[F::AckFlood], |d, t| {
        let mut n = 0u16;
        each(d, move |_| {
            n = n.wrapping_add(1);
            tcp(host(BOTS, 1, t), t, (1_024 + n % 60_000, 443), ACK, 0, vec![])
        })
    }),
    scene("ACK, forged, port 443", &[F::AckFlood], |d, t| {
        each(d, move |d| {
            let s = flags(d, t, t, 443, ACK, vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("Mirai stomp, 768 bytes in connections", &[F::AckFlood, F::TcpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 500, t);
            let data = noise(d, 768);
            tcp(src, t, (ephemeral(src, 1), 80), if d.below(2) == 0 { ACK } else { PSH_ACK }, 0, data)
        })
    }),
    scene("PSH-ACK, forged, 900 bytes", &[F::TcpFlood, F::AckFlood], |d, t| {
        each(d, move |d| {
            let data = noise(d, 900);
            let s = flags(d, t, t, 443, PSH_ACK, data);
            spoofing(s, t, d)
        })
    }),
    scene("LOIC TCP", &[F::TcpFlood, F::AckFlood, F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 12, t);
            let line = b"U dun goofed";
            let text = line.repeat(1 + d.below(4) as usize);
            tcp(src, t, (ephemeral(src, d.below(10)), 80), PSH_ACK, 0, text)
        })
    }),
    scene("RST, forged", &[F::RstFlood], |d, t| {
        each(d, move |d| {
            let s = flags(d, t, t, 80, RST, vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("RST-ACK from bots", &[F::RstFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 400, t);
            tcp(src, t, (any_port(d), 443), RST | ACK, 0, vec![])
        })
    }),
    scene("FIN-ACK from bots", &[F::TcpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 400, t);
            tcp(src, t, (any_port(d), 443), FIN_ACK, 0, vec![])
        })
    }),
    scene("XMAS from one host", &[F::TcpFlood], |d, t| {
        each(d, move |d| tcp(host(BOTS, 1, t), t, (any_port(d), 80), 0x29, 0, vec![]))
    }),
    scene("NULL from bots", &[F::TcpFlood], |d, t| {
        each(d, move |d| tcp(one_of(d, BOTS, 300, t), t, (any_port(d), 80), 0, 0, vec![]))
    }),
    scene("URG-PSH-SYN, forged", &[F::TcpFlood, F::SynFlood], |d, t| {
        each(d, move |d| {
            let s = flags(d, t, t, 80, 0x2a, vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("SYN-FIN from one host", &[F::TcpFlood], |d, t| {
        each(d, move |d| tcp(host(BOTS, 1, t), t, (any_port(d), 80), 3, 0, vec![]))
    }),
    scene("every combination of flags, forged", &[F::TcpFlood, F::MultiVector], |d, t| {
        each(d, move |d| {
            let f = d.below(64) as u8;
            let s = flags(d, t, t, 80, f, vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("connections opened and left", &[F::TcpFlood, F::HttpFlood, F::SynFlood], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, BOTS, 60, t);
            let ports = (any_port(d), 3_389);
            vec![tcp(src, t, ports, SYN, SYN_OPTIONS, vec![]), tcp(src, t, ports, ACK, STAMPS, vec![])]
        })
    }),
];

/// Requests of the web.
pub(super) const OF_THE_WEB: &[Scene] = &[
    scene("HOIC: a request for a connection", &[F::HttpFlood], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, BOTS, 30, t);
            let ports = (any_port(d), 80);
            let text = format!("GET / HTTP/1.0\r\nAccept: */*\r\nHost: a{}.example\r\n\r\n", d.below(9)).into_bytes();
            let segment = |f, o, p| tcp(src, t, ports, f, o, p);
            vec![
                segment(SYN, SYN_OPTIONS, vec![]),
                segment(ACK, STAMPS, vec![]),
                segment(PSH_ACK, STAMPS, text),
                segment(ACK, STAMPS, vec![]),
                segment(FIN_ACK, STAMPS, vec![]),
            ]
        })
    }),
    scene("GET over connections that stay", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 12, t);
            let ports = (ephemeral(src, d.below(20)), 80);
            if d.below(2) == 0 {
                return tcp(src, t, ports, ACK, STAMPS, vec![]);
            }
            let text = format!("GET /?{}={} HTTP/1.1\r\nHost: www", d.below(999), d.roll()).into_bytes();
            tcp(src, t, ports, PSH_ACK, STAMPS, text)
        })
    }),
    scene("GET from 600 bots", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 600, t);
            let ports = (ephemeral(src, d.below(4)), 80);
            if d.below(3) == 0 {
                return tcp(src, t, ports, ACK, STAMPS, vec![]);
            }
            let text = format!("GET /search?q={} HTTP/1.1\r\nHost: www.example.com\r\n", d.roll()).into_bytes();
            tcp(src, t, ports, PSH_ACK, STAMPS, text)
        })
    }),
    scene("POST from one host", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = host(BOTS, 1, t);
            let ports = (ephemeral(src, d.below(200)), 8_080);
            let text = format!("POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n", d.below(900)).into_bytes();
            tcp(src, t, ports, PSH_ACK, STAMPS, text)
        })
    }),
    scene("slowloris, both sides of its talk cut", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = host(BOTS, 1, t);
            let ports = (ephemeral(src, d.below(900)), 80);
            if d.below(3) == 0 {
                return tcp(src, t, ports, ACK, STAMPS, vec![]);
            }
            tcp(src, t, ports, PSH_ACK, STAMPS, format!("X-a: {}\r\n", d.below(5_000)).into_bytes())
        })
    }),
    scene("slow POST, some bytes at a time", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = host(BOTS, d.below(3), t);
            let ports = (ephemeral(src, d.below(500)), 80);
            if d.below(2) == 0 {
                return tcp(src, t, ports, ACK, STAMPS, vec![]);
            }
            let len = 1 + d.below(3) as usize;
            let data = letters(d, len);
            tcp(src, t, ports, PSH_ACK, STAMPS, data)
        })
    }),
    scene("TLS greetings from 20 hosts", &[F::HttpFlood, F::TcpFlood], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, BOTS, 20, t);
            let ports = (any_port(d), 443);
            let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
            hello.extend(noise(d, 500));
            let segment = |f, o, p| tcp(src, t, ports, f, o, p);
            vec![
                segment(SYN, SYN_OPTIONS, vec![]),
                segment(ACK, STAMPS, vec![]),
                segment(PSH_ACK, STAMPS, hello),
                segment(RST, 0, vec![]),
            ]
        })
    }),
];

/// Datagrams of UDP that nobody reflected.
pub(super) const OF_UDP: &[Scene] = &[
    scene("LOIC UDP", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 8, t);
            udp(src, t, (ephemeral(src, d.below(10)), 80), b"A cat is fine too. Desudesudesu~".to_vec())
        })
    }),
    scene("Mirai udpplain", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 500, t);
            let data = noise(d, 512);
            udp(src, t, (ephemeral(src, 1), 7_777), data)
        })
    }),
    scene("udpplain of 1400 bytes from 25 hosts", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 25, t);
            let data = noise(d, 1_400);
            udp(src, t, (ephemeral(src, 1), 443), data)
        })
    }),
    scene("Mirai udp, any ports", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let data = noise(d, 512);
            udp(one_of(d, BOTS, 900, t), t, (any_port(d), any_port(d)), data)
        })
    }),
    scene("Mirai vse", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 700, t);
            udp(src, t, (any_port(d), 27_015), b"\xff\xff\xff\xffTSource Engine Query\0".to_vec())
        })
    }),
    scene("hping3 --udp --rand-source, empty", &[F::UdpFlood, F::DnsFlood], |d, t| {
        each(d, move |d| {
            let s = udp(t, t, (any_port(d), 53), vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("one host, lengths at random", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let len = 1 + d.below(1_400) as usize;
            let data = noise(d, len);
            udp(host(BOTS, 1, t), t, (any_port(d), any_port(d)), data)
        })
    }),
    scene("forged, lengths at random", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let len = 1 + d.below(1_000) as usize;
            let data = noise(d, len);
            let s = udp(t, t, (any_port(d), 30_120), data);
            spoofing(s, t, d)
        })
    }),
    scene("zeros from 200 bots to 443", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 200, t);
            let len = 200 + d.below(1_000) as usize;
            udp(src, t, (any_port(d), 443), vec![0; len])
        })
    }),
    scene("flood from source port 53 without DNS", &[F::UdpFlood, F::DnsAmplification], |d, t| {
        each(d, move |d| {
            let data = noise(d, 1_000);
            let s = udp(t, t, (53, 80), data);
            spoofing(s, t, d)
        })
    }),
    scene("datagrams of 8 KiB in fragments", &[F::FragmentFlood, F::UdpFlood, F::MultiVector], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, BOTS, 15, t);
            fragmented(udp(src, t, (any_port(d), 80), vec![b'X'; 8_192]))
        })
    }),
    scene("datagrams of 60 KiB in fragments", &[F::FragmentFlood], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, BOTS, 200, t);
            fragmented(udp(src, t, (any_port(d), 80), vec![0; 60_000]))
        })
    }),
    scene("water torture through resolvers", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, RESOLVERS, 900, t);
            let label = letters(d, 12);
            let data = query(d, &[&label, b"shop", b"example", b"com"], 1);
            udp(src, t, (any_port(d), 53), data)
        })
    }),
    scene("water torture from bots", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 5_000, t);
            let len = 8 + d.below(12) as usize;
            let label = letters(d, len);
            let data = query(d, &[&label, b"example", b"org"], 1);
            udp(src, t, (any_port(d), 53), data)
        })
    }),
    scene("queries of ANY for one name, forged", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let data = query(d, &[b"example", b"com"], 255);
            let s = udp(t, t, (any_port(d), 53), data);
            spoofing(s, t, d)
        })
    }),
    scene("queries of ANY for one name from bots", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 400, t);
            let data = query(d, &[b"example", b"com"], 255);
            udp(src, t, (any_port(d), 53), data)
        })
    }),
    scene("queries from one host", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let label = letters(d, 10);
            let data = query(d, &[&label, b"example", b"net"], 1);
            udp(host(BOTS, 1, t), t, (any_port(d), 53), data)
        })
    }),
];

/// Everything else.
pub(super) const OF_OTHERS: &[Scene] = &[
    scene("ping -f from one host", &[F::IcmpFlood], |d, t| {
        each(d, move |d| icmp(host(BOTS, 1, t), t, [8, 0], [128, 0], noise(d, 60)))
    }),
    scene("hping3 -1 --rand-source", &[F::IcmpFlood], |d, t| {
        each(d, move |d| {
            let s = icmp(t, t, [8, 0], [128, 0], vec![]);
            spoofing(s, t, d)
        })
    }),
    scene("smurf: echo replies of many", &[F::IcmpFlood], |d, t| {
        each(d, move |d| icmp(one_of(d, CLIENTS, 4_000, t), t, [0, 0], [129, 0], vec![0; 1_000]))
    }),
    scene("blacknurse", &[F::IcmpFlood], |d, t| {
        each(d, move |d| icmp(host(BOTS, d.below(3), t), t, [3, 3], [1, 4], vec![0x45; 28]))
    }),
    scene("time stamps requested, forged", &[F::IcmpFlood], |d, t| {
        each(d, move |d| {
            let s = icmp(t, t, [13, 0], [128, 0], vec![0; 16]);
            spoofing(s, t, d)
        })
    }),
    scene("pings of 40 KiB in fragments", &[F::FragmentFlood, F::IcmpFlood], |d, t| {
        bursts(d, move |d| {
            let mut all = Vec::new();
            let src = one_of(d, BOTS, 30, t);
            for n in 0..27u16 {
                let mut s = icmp(src, t, [8, 0], [128, 0], vec![0; if n == 0 { 1_472 } else { 1_480 }]);
                s.icmp[0] = echo(t);
                s.fragment = Some((n * 185, n < 26));
                all.push(s);
            }
            all
        })
    }),
    scene("fragments of teardrop", &[F::FragmentFlood], |d, t| {
        bursts(d, move |d| {
            let src = forged(d, t);
            let ports = (any_port(d), any_port(d));
            let part = |fragment, len| Spec { fragment: Some(fragment), ttl: 60, ..udp(src, t, ports, vec![0; len]) };
            vec![part((0, true), 28), part((3, false), 4)]
        })
    }),
    scene("Mirai greip", &[F::GreFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 600, t);
            let data = noise(d, 512);
            let inner = udp(forged(d, t), t, (any_port(d), any_port(d)), data);
            gre(src, t, &inner, false)
        })
    }),
    scene("Mirai greeth", &[F::GreFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 600, t);
            let data = noise(d, 512);
            let inner = udp(forged(d, t), t, (any_port(d), any_port(d)), data);
            gre(src, t, &inner, true)
        })
    }),
    scene("any protocol", &[F::ProtocolFlood, F::MultiVector], |d, t| {
        each(d, move |d| {
            let mut s = Spec::new(t, t, 140 + d.below(100) as u8);
            s.payload = noise(d, 64);
            spoofing(s, t, d)
        })
    }),
    scene("ESP from bots", &[F::ProtocolFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 300, t);
            let mut s = Spec::new(src, t, 50);
            (s.ttl, s.payload) = (far(src, 64), noise(d, 500));
            s
        })
    }),
    scene("IGMP, forged", &[F::ProtocolFlood], |d, t| {
        each(d, move |d| {
            let mut s = Spec::new(t, t, 2);
            s.payload = vec![0x11, 0, 0, 0, 0, 0, 0, 0];
            spoofing(s, t, d)
        })
    }),
    scene("SYN and UDP, 70 to 30", &[F::MultiVector], |d, t| {
        each(d, move |d| {
            let data = noise(d, 512);
            let s = if d.below(10) < 7 { flags(d, t, t, 80, SYN, vec![]) } else { udp(t, t, (any_port(d), 80), data) };
            spoofing(s, t, d)
        })
    }),
    scene("ACK and SYN of bots, half each", &[F::MultiVector, F::TcpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, BOTS, 700, t);
            let f = if d.below(2) == 0 { SYN } else { ACK };
            tcp(src, t, (any_port(d), 80), f, if f == SYN { SYN_OPTIONS } else { 0 }, vec![])
        })
    }),
];
