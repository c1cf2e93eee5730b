//! What busy nodes receive on good days and looks like an attack at first: one direction of it, seen from the middle.

use std::net::IpAddr;

use super::scene::{bursts, each, ephemeral, fragmented, host, letters, noise, one_of, ordinary_ttl, scene, tcp, udp};
use super::{Dice, Scene, Spec, Stream};

const SYN: u8 = 2;
const ACK: u8 = 16;
const PSH_ACK: u8 = 24;
const FIN_ACK: u8 = 17;
const SYN_OPTIONS: usize = 20;
const STAMPS: usize = 12;
const USERS: u64 = 50;
const SERVERS: u64 = 51;

/// A system without time stamps sends bare acknowledgements: one in three of the users'.
fn options(src: IpAddr) -> usize {
    if ordinary_ttl(src) > 64 { 0 } else { STAMPS }
}

/// How long the data of a segment is: what is left of a message, and full ones before it.
fn message(d: &mut Dice) -> usize {
    match d.below(10) {
        0..=4 => 30 + d.below(600) as usize,
        5..=7 => 1_448,
        _ => 600 + d.below(840) as usize,
    }
}

/// Encrypted data of a record: the first segment shows its header, the others nothing.
fn record(d: &mut Dice, len: usize) -> Vec<u8> {
    let mut data = noise(d, len);
    if d.below(2) == 0 && len > 5 {
        data[..5].copy_from_slice(&[0x17, 3, 3, (len >> 8) as u8, len as u8]);
    }
    data
}

/// Segments of connections that began long ago: data and acknowledgements, and now and then the end of one.
fn middle(d: Dice, t: IpAddr, hosts: u64, each_has: u64, port: u16, data_of_ten: u64) -> Stream {
    each(d, move |d| {
        let src = one_of(d, USERS, hosts, t);
        let ports = (ephemeral(src, d.below(each_has)), port);
        if d.below(200) == 0 {
            return tcp(src, t, ports, FIN_ACK, options(src), vec![]);
        }
        if d.below(10) >= data_of_ten {
            return tcp(src, t, ports, ACK, options(src), vec![]);
        }
        let len = message(d);
        let data = record(d, len);
        tcp(src, t, ports, if len < 1_448 { PSH_ACK } else { ACK }, options(src), data)
    })
}

/// Whole connections of clients: greeting, requests, acknowledgements, end.
fn crowd(d: Dice, t: IpAddr, hosts: u64, port: u16) -> Stream {
    let mut open: Vec<(IpAddr, u16, u32, u32)> = Vec::new();
    each(d, move |d| {
        if open.len() < 2_000 {
            let src = one_of(d, USERS, hosts, t);
            let conversation = d.roll();
            open.push((src, ephemeral(src, conversation), 0, 10 + d.below(40) as u32));
        }
        let n = d.below(open.len() as u64) as usize;
        let (src, from, sent, all) = open[n];
        let ports = (from, port);
        open[n].2 += 1;
        if sent + 1 >= all {
            open.swap_remove(n);
            return tcp(src, t, ports, FIN_ACK, options(src), vec![]);
        }
        match sent {
            0 => tcp(src, t, ports, SYN, SYN_OPTIONS, vec![]),
            1 => tcp(src, t, ports, ACK, options(src), vec![]),
            2 if port == 443 => {
                let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
                hello.extend(noise(d, 506));
                tcp(src, t, ports, PSH_ACK, options(src), hello)
            }
            _ if d.below(4) == 0 && port == 80 => {
                let text = format!("GET /news/{} HTTP/1.1\r\nHost: www.example.com\r\n{}", d.below(900), d.roll());
                tcp(src, t, ports, PSH_ACK, options(src), text.into_bytes())
            }
            _ if d.below(4) == 0 => {
                let len = 60 + d.below(700) as usize;
                let data = record(d, len);
                tcp(src, t, ports, PSH_ACK, options(src), data)
            }
            _ => tcp(src, t, ports, ACK, options(src), vec![]),
        }
    })
}

/// Full segments of a few connections, and the rest of the data at times.
fn bulk(d: Dice, t: IpAddr, hosts: u64, connections: u64, server: u16, to_server: bool) -> Stream {
    each(d, move |d| {
        let src = one_of(d, SERVERS, hosts, t);
        let client = ephemeral(src, d.below(connections));
        let ports = if to_server { (client, server) } else { (server, client) };
        let len = if d.below(12) == 0 { 200 + d.below(1_200) as usize } else { 1_448 };
        let data = noise(d, len);
        tcp(src, t, ports, if len < 1_448 { PSH_ACK } else { ACK }, STAMPS, data)
    })
}

fn answer_of_dns(d: &mut Dice, name: &[u8], len: usize) -> Vec<u8> {
    let mut p = noise(d, 2);
    p.extend([0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 1, name.len() as u8]);
    p.extend(name);
    p.extend(b"\x03com\0\0\x01\0\x01");
    let more = len.saturating_sub(p.len());
    p.extend(noise(d, more));
    p
}

fn quic(d: &mut Dice, len: usize) -> Vec<u8> {
    let mut data = noise(d, len);
    data[0] = 0x40 | data[0] & 0x3f;
    data
}

/// Packets inside a tunnel: small ones and full ones.
fn inner_len(d: &mut Dice) -> usize {
    if d.below(2) == 0 { 1_400 } else { 60 + d.below(1_000) as usize }
}

pub(super) const OF_TCP: &[Scene] = &[
    scene("fail-over: 3000 clients, connections seen from the middle", &[], |d, t| middle(d, t, 3_000, 2, 443, 5)),
    scene("fail-over: 40,000 clients, a connection each", &[], |d, t| middle(d, t, 40_000, 1, 443, 4)),
    scene("fail-over: mostly acknowledgements of downloads", &[], |d, t| middle(d, t, 20_000, 3, 443, 1)),
    scene("fail-over: a database's clients behind few addresses", &[], |d, t| middle(d, t, 12, 400, 5_432, 7)),
    scene("a load balancer: 4 addresses, 5000 connections each", &[], |d, t| middle(d, t, 4, 5_000, 8_080, 6)),
    scene("address translation of a provider", &[], |d, t| middle(d, t, 30, 900, 443, 4)),
    scene("mail between servers, from the middle", &[], |d, t| middle(d, t, 900, 2, 25, 8)),
    scene("web sockets: small messages of 30,000 clients", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 30_000, t);
            let ports = (ephemeral(src, 1), 443);
            if d.below(3) == 0 {
                return tcp(src, t, ports, ACK, options(src), vec![]);
            }
            let len = 28 + d.below(60) as usize;
            let data = record(d, len);
            tcp(src, t, ports, PSH_ACK, options(src), data)
        })
    }),
    scene("a crowd over TLS", &[], |d, t| crowd(d, t, 20_000, 443)),
    scene("a crowd over HTTP", &[], |d, t| crowd(d, t, 6_000, 80)),
    scene("a crowd at a game server of TCP", &[], |d, t| crowd(d, t, 9_000, 25_565)),
    scene("upload of one host", &[], |d, t| bulk(d, t, 1, 1, 443, true)),
    scene("backup: 8 hosts over rsync", &[], |d, t| bulk(d, t, 8, 2, 873, true)),
    scene("fill of a cache from 6 servers", &[], |d, t| bulk(d, t, 6, 40, 443, false)),
    scene("speed test: 30 connections down", &[], |d, t| bulk(d, t, 3, 10, 8_080, false)),
    scene("acknowledgements of one large download", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 3, t);
            tcp(src, t, (ephemeral(src, d.below(6)), 443), ACK, options(src), vec![])
        })
    }),
    scene("a crawler's downloads: servers of the whole world answer", &[], |d, t| {
        bursts(d, move |d| {
            let src = one_of(d, SERVERS, 4_000, t);
            let ports = ([443, 443, 443, 80][d.below(4) as usize], ephemeral(src, d.below(3)));
            let mut all: Vec<Spec> = vec![tcp(src, t, ports, 18, SYN_OPTIONS, vec![])];
            for _ in 0..6 + d.below(20) {
                let len = message(d);
                let data = record(d, len);
                all.push(tcp(src, t, ports, if len < 1_448 { PSH_ACK } else { ACK }, options(src), data));
            }
            all.push(tcp(src, t, ports, FIN_ACK, options(src), vec![]));
            all
        })
    }),
];

pub(super) const OF_UDP: &[Scene] = &[
    scene("a resolver's upstream answers", &[], |d, t| {
        each(d, move |d| {
            // Some name servers are asked far more often than all others.
            let n = d.below(40) * d.below(40);
            let len = 6 + d.below(9) as usize;
            let name = letters(d, len);
            let size = 80 + d.below(260) as usize;
            let data = answer_of_dns(d, &name, size);
            udp(host(SERVERS, n, t), t, (53, 1_024 + d.below(64_000) as u16), data)
        })
    }),
    scene("heavy answers of two resolvers", &[], |d, t| {
        bursts(d, move |d| {
            let len = 6 + d.below(9) as usize;
            let name = letters(d, len);
            let size = 200 + d.below(1_000) as usize;
            let data = answer_of_dns(d, &name, size);
            fragmented(udp(host(SERVERS, d.below(2), t), t, (53, 1_024 + d.below(64_000) as u16), data))
        })
    }),
    scene("queries of resolvers to a name server", &[], |d, t| {
        each(d, move |d| {
            let names: [&[u8]; 6] = [b"www", b"mail", b"api", b"cdn", b"shop", b"ns1"];
            let mut p = noise(d, 2);
            p.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
            let name = names[d.below(6) as usize];
            p.push(name.len() as u8);
            p.extend(name);
            p.extend(b"\x07example\x03com\0\0\x01\0\x01\0\0\x29\x10\0\0\0\0\0\0\0");
            udp(one_of(d, USERS, 2_500, t), t, (1_024 + d.below(64_000) as u16, 53), p)
        })
    }),
    scene("queries of many clients to a resolver", &[], |d, t| {
        each(d, move |d| {
            // Popular names and rare ones.
            let n = d.below(60) * d.below(60);
            let mut p = noise(d, 2);
            p.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
            let name = format!("host{n}");
            p.push(name.len() as u8);
            p.extend(name.as_bytes());
            p.extend(b"\x07example\x03net\0\0\x01\0\x01");
            udp(one_of(d, USERS, 5_000, t), t, (1_024 + d.below(64_000) as u16, 53), p)
        })
    }),
    scene("a server of an NTP pool", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 60_000, t);
            let data = [&[0x23, 0, 6, 0xec][..], &[0; 36], &noise(d, 8)].concat();
            let from = if d.below(4) == 0 { 123 } else { ephemeral(src, 1) };
            udp(src, t, (from, 123), data)
        })
    }),
    scene("HTTP/3 clients", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 4_000, t);
            let ports = (ephemeral(src, d.below(2)), 443);
            match d.below(20) {
                0 => {
                    let mut data = noise(d, 1_252);
                    data[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
                    udp(src, t, ports, data)
                }
                1..=4 => {
                    let data = quic(d, 1_252);
                    udp(src, t, ports, data)
                }
                _ => {
                    let len = 25 + d.below(60) as usize;
                    let data = quic(d, len);
                    udp(src, t, ports, data)
                }
            }
        })
    }),
    scene("answers of HTTP/3 servers", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, SERVERS, 40, t);
            let len = if d.below(10) < 8 { 1_252 } else { 30 + d.below(1_200) as usize };
            let data = quic(d, len);
            udp(src, t, (443, ephemeral(src, d.below(30))), data)
        })
    }),
    scene("upload over HTTP/3 from one host", &[], |d, t| {
        each(d, move |d| {
            let src = host(USERS, 4, t);
            let data = quic(d, 1_252);
            udp(src, t, (ephemeral(src, 1), 443), data)
        })
    }),
    scene("voice: RTP of 800 calls", &[], |d, t| {
        each(d, move |d| {
            let call = d.below(800);
            let src = host(USERS, call % 90, t);
            let data = [&[0x80, [0, 8, 18][(call % 3) as usize]][..], &noise(d, 170)].concat();
            udp(src, t, (10_000 + (call * 2) as u16, 20_000 + (call * 2) as u16), data)
        })
    }),
    scene("voice over a trunk: RTP of one host", &[], |d, t| {
        each(d, move |d| {
            let call = d.below(600);
            let data = [&[0x80, 8][..], &noise(d, 170)].concat();
            udp(host(SERVERS, 1, t), t, (16_384 + (call * 2) as u16, 30_000 + (call * 2) as u16), data)
        })
    }),
    scene("encrypted voice without a known shape", &[], |d, t| {
        each(d, move |d| {
            let call = d.below(900);
            let len = 80 + d.below(90) as usize;
            let data = noise(d, len);
            udp(host(USERS, call, t), t, (ephemeral(host(USERS, call, t), 1), 3_478), data)
        })
    }),
    scene("SIP registrations and calls", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 2_000, t);
            let words: [&[u8]; 4] = [b"REGISTER sip:", b"INVITE sip:+4", b"ACK sip:", b"SIP/2.0 200 OK\r\n"];
            let mut data = words[d.below(4) as usize].to_vec();
            data.resize(300 + d.below(600) as usize, b'a');
            udp(src, t, (5_060, 5_060), data)
        })
    }),
    scene("a game server: 300 players", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 300, t);
            let len = 30 + d.below(120) as usize;
            let data = noise(d, len);
            udp(src, t, (ephemeral(src, 1), 27_015), data)
        })
    }),
    scene("a game server: queries of lists among its players", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 2_000, t);
            if d.below(4) == 0 {
                return udp(src, t, (ephemeral(src, 1), 27_015), b"\xff\xff\xff\xffTSource Engine Query\0".to_vec());
            }
            let len = 30 + d.below(120) as usize;
            let data = noise(d, len);
            udp(src, t, (27_005, 27_015), data)
        })
    }),
    scene("a game's clients: updates of one length", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 900, t);
            let len = if d.below(10) == 0 { 90 } else { 48 };
            let data = noise(d, len);
            udp(src, t, (ephemeral(src, 1), 7_777), data)
        })
    }),
    scene("WireGuard: one peer, one flow", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d) + 32;
            let data = [&[4, 0, 0, 0, 9, 8, 7, 6][..], &noise(d, len - 8)].concat();
            udp(host(SERVERS, 2, t), t, (51_820, 51_820), data)
        })
    }),
    scene("WireGuard: one peer, full packets alone", &[], |d, t| {
        each(d, move |d| {
            let data = [&[4, 0, 0, 0, 9, 8, 7, 6][..], &noise(d, 1_444)].concat();
            udp(host(SERVERS, 2, t), t, (51_820, 51_820), data)
        })
    }),
    scene("OpenVPN: 200 clients", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 200, t);
            let len = inner_len(d) + 40;
            let data = [&[0x48, 0, 0, 1][..], &noise(d, len)].concat();
            udp(src, t, (ephemeral(src, 1), 1_194), data)
        })
    }),
    scene("OpenVPN: a server's packets", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d) + 40;
            let data = [&[0x48, 0, 0, 1][..], &noise(d, len)].concat();
            udp(host(SERVERS, 3, t), t, (1_194, 1_194), data)
        })
    }),
    scene("IPsec over UDP: 9 gateways", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d) + 30;
            let data = [&[0xc1, 0x22, 3, 4][..], &noise(d, len)].concat();
            udp(one_of(d, SERVERS, 9, t), t, (4_500, 4_500), data)
        })
    }),
    scene("VXLAN between two hosts", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d);
            let data = [&[8, 0, 0, 0, 0, 0, 42, 0][..], &noise(d, len)].concat();
            // The source port is a hash of the flow inside (RFC 7348).
            udp(one_of(d, SERVERS, 2, t), t, (49_152 + d.below(3_000) as u16, 4_789), data)
        })
    }),
    scene("a channel of television", &[], |d, t| {
        each(d, move |d| {
            let data = [&[0x47, 0x1f, 0xff, 0x10][..], &noise(d, 1_312)].concat();
            udp(host(SERVERS, 4, t), t, (5_000, 5_004), data)
        })
    }),
    scene("a swarm of BitTorrent", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, USERS, 600, t);
            let data = if d.below(3) == 0 {
                [&[0x21, 0][..], &noise(d, 18)].concat()
            } else {
                let len = 20 + d.below(1_380) as usize;
                [&[1, 0][..], &noise(d, len)].concat()
            };
            udp(src, t, (ephemeral(src, 1), 51_413), data)
        })
    }),
    scene("a line under measurement: iperf -u", &[], |d, t| {
        each(d, move |d| {
            let len = 1_448 - d.below(2) as usize * 40;
            let data = noise(d, len);
            udp(host(SERVERS, 5, t), t, (ephemeral(t, 3), 5_201), data)
        })
    }),
    scene("logs of 80 hosts", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, SERVERS, 80, t);
            let mut data = format!("<{}>1 2024-01-01T00:00:00Z host app ", d.below(190)).into_bytes();
            data.resize(90 + d.below(400) as usize, b'm');
            udp(src, t, (ephemeral(src, 1), 514), data)
        })
    }),
    scene("storage in large datagrams", &[], |d, t| {
        bursts(d, move |d| {
            let data = noise(d, 8_300);
            fragmented(udp(one_of(d, SERVERS, 3, t), t, (2_049, 800), data))
        })
    }),
];

pub(super) const OF_OTHERS: &[Scene] = &[
    scene("GRE between two routers", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d);
            let ports = (443, 40_000 + d.below(900) as u16);
            let data = noise(d, len);
            let inner = tcp(host(USERS, d.below(300), t), host(SERVERS, d.below(9), t), ports, ACK, STAMPS, data);
            let mut s = Spec::new(host(SERVERS, 6, t), t, 47);
            (s.ttl, s.payload) = (250, [&[0, 0, 8 * u8::from(t.is_ipv4()), 0][..], &inner.frame()[14..]].concat());
            if t.is_ipv6() {
                s.payload[2..4].copy_from_slice(&[0x86, 0xdd]);
            }
            s
        })
    }),
    scene("ESP of 12 gateways", &[], |d, t| {
        each(d, move |d| {
            let len = inner_len(d) + 30;
            let mut s = Spec::new(one_of(d, SERVERS, 12, t), t, 50);
            (s.ttl, s.payload) = (ordinary_ttl(s.src), noise(d, len));
            s
        })
    }),
    scene("everything of a small provider", &[], |d, t| {
        let parts = vec![
            (45, middle(Dice(d.0 ^ 1), t, 3_000, 2, 443, 4)),
            (25, bulk(Dice(d.0 ^ 2), t, 40, 3, 443, false)),
            (
                20,
                each(Dice(d.0 ^ 3), move |d| {
                    let src = one_of(d, SERVERS, 60, t);
                    let data = quic(d, 1_252);
                    udp(src, t, (443, ephemeral(src, d.below(9))), data)
                }),
            ),
            (10, crowd(Dice(d.0 ^ 4), t, 800, 443)),
        ];
        super::scene::blend(d, parts)
    }),
];
