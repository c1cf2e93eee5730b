//! More of the same kinds, drawn up after the classifier was: what it was not made with.

use std::net::IpAddr;

use ftagent_common::vocab::AttackFamily as F;

use super::scene::{blend, bursts, each, ephemeral, far, fragmented, host, letters, noise, one_of, scene, tcp, udp};
use super::{Dice, Scene, Spec, Stream, forged};

const SYN: u8 = 2;
const ACK: u8 = 16;
const PSH_ACK: u8 = 24;
const STAMPS: usize = 12;

fn port(d: &mut Dice) -> u16 {
    1_024 + d.below(64_000) as u16
}

fn forge(mut s: Spec, t: IpAddr, d: &mut Dice, ttl: u8) -> Spec {
    (s.src, s.ttl) = (forged(d, t), ttl);
    s
}

/// Requests and acknowledgements of browsers, as the share of the target's customers.
fn customers(d: Dice, t: IpAddr) -> Stream {
    each(d, move |d| {
        let src = one_of(d, 70, 2_000, t);
        let ports = (ephemeral(src, d.below(3)), 443);
        if d.below(3) > 0 {
            return tcp(src, t, ports, ACK, STAMPS, vec![]);
        }
        let len = 60 + d.below(1_300) as usize;
        let data = noise(d, len);
        tcp(src, t, ports, PSH_ACK, STAMPS, data)
    })
}

fn dns_answer(d: &mut Dice, name: &[u8], len: usize) -> Vec<u8> {
    let mut p = noise(d, 2);
    p.extend([0x84, 0, 0, 1, 0, 9, 0, 0, 0, 1, name.len() as u8]);
    p.extend(name);
    p.extend(b"\x02de\0\0\x10\0\x01");
    let rest = len.saturating_sub(p.len());
    p.extend(noise(d, rest));
    p
}

fn reflected(d: Dice, t: IpAddr, from: u16, answer: fn(&mut Dice, u64) -> Vec<u8>) -> Stream {
    bursts(d, move |d| {
        let n = d.below(700);
        let to = port(d);
        let payload = answer(d, n);
        fragmented(udp(host(u64::from(from) + 500, n, t), t, (from, to), payload))
    })
}

pub(super) const ATTACKS: &[Scene] = &[
    scene("SYN with an option of its size, two senders", &[F::SynFlood], |d, t| {
        each(d, move |d| {
            let ttl = 50 + 7 * d.below(2) as u8;
            let s = tcp(t, t, (port(d), 6_667), SYN, 4, vec![]);
            forge(s, t, d, ttl)
        })
    }),
    scene("ACK with time stamps, forged", &[F::AckFlood], |d, t| {
        each(d, move |d| {
            let s = tcp(t, t, (port(d), 443), ACK, STAMPS, vec![]);
            forge(s, t, d, 57)
        })
    }),
    scene("PSH-ACK, lengths at random, forged", &[F::TcpFlood, F::AckFlood], |d, t| {
        each(d, move |d| {
            let len = 1 + d.below(1_400) as usize;
            let data = noise(d, len);
            let s = tcp(t, t, (port(d), 443), PSH_ACK, 0, data);
            forge(s, t, d, 57)
        })
    }),
    scene("ACK from 200 bots, new ports each", &[F::AckFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 71, 200, t);
            tcp(src, t, (port(d), 80), ACK, 0, vec![])
        })
    }),
    scene("PSH-ACK of 1024 bytes from 60 bots", &[F::TcpFlood, F::AckFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 72, 60, t);
            let data = noise(d, 1_024);
            tcp(src, t, (port(d), 22), PSH_ACK, 0, data)
        })
    }),
    scene("HEAD from 5 hosts", &[F::HttpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 73, 5, t);
            if d.below(2) == 0 {
                return tcp(src, t, (ephemeral(src, d.below(60)), 8_443), ACK, 0, vec![]);
            }
            let text = format!("HEAD /{} HTTP/1.1\r\nHost: example.com\r\n\r\n", d.below(50)).into_bytes();
            tcp(src, t, (ephemeral(src, d.below(60)), 8_443), PSH_ACK, 0, text)
        })
    }),
    scene("status queries of a game from bots", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 74, 900, t);
            udp(src, t, (port(d), 27_960), b"\xff\xff\xff\xffgetstatus\n".to_vec())
        })
    }),
    scene("single bytes to any port from 3 hosts", &[F::UdpFlood], |d, t| {
        each(d, move |d| udp(one_of(d, 75, 3, t), t, (port(d), port(d)), vec![0]))
    }),
    scene("first packets of QUIC, forged", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let mut data = noise(d, 1_200);
            data[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
            let s = udp(t, t, (port(d), 443), data);
            forge(s, t, d, 55)
        })
    }),
    scene("voice that is none, forged", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let data = [&[0x80, 0][..], &noise(d, 170)].concat();
            let s = udp(t, t, (port(d), 10_000 + d.below(9_000) as u16), data);
            forge(s, t, d, 61)
        })
    }),
    scene("50 bytes from 2000 bots, a socket each", &[F::UdpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 76, 2_000, t);
            udp(
                src,
                t,
                (ephemeral(src, 1), 9_987),
                b"\x05\xca\x7f\x16\x9c\x11\xf9\x89\0\0\0\0\x02\x9d\x74\x8b".repeat(3),
            )
        })
    }),
    scene("DNS of several names, no fragments", &[F::DnsAmplification], |d, t| {
        reflected(d, t, 53, |d, n| {
            let names: [&[u8]; 4] = [b"peacecorps", b"cpsc", b"isc", b"sl"];
            let which = d.below(4) as usize;
            dns_answer(d, names[which], 900 + (n % 50) as usize * 10)
        })
    }),
    scene("memcached of 60 KiB in fragments", &[F::MemcachedAmplification], |d, t| {
        reflected(d, t, 11_211, |_, _| {
            [&[0, 1, 0, 0, 0, 20, 0, 0][..], b"VALUE abc 0 60000\r\n", &[b'a'; 60_000]].concat()
        })
    }),
    scene("SNMP version 3 reports", &[F::SnmpAmplification], |d, t| {
        reflected(d, t, 161, |d, n| {
            let head = [0x30, 0x82, 0x01, 0x20, 2, 1, 3, 0x30, 0x0e, 2, 4];
            [&head[..], &noise(d, 110 + (n % 40) as usize)].concat()
        })
    }),
    scene("a service that no list has", &[F::UdpAmplification], |d, t| {
        reflected(d, t, 20_811, |d, n| [&b"\x22\x01OK"[..], &noise(d, 300 + (n % 90) as usize * 4)].concat())
    }),
    scene("Steam among customers of the web", &[F::UdpAmplification, F::MultiVector], |d, t| {
        let steam = reflected(Dice(d.0 ^ 3), t, 27_015, |d, n| {
            [&b"\xff\xff\xff\xffI\x11"[..], &noise(d, 90 + (n % 120) as usize)].concat()
        });
        blend(Dice(d.0 ^ 5), vec![(80, steam), (20, customers(Dice(d.0 ^ 4), t))])
    }),
    scene("DNS of 3 KiB among customers of the web", &[F::DnsAmplification], |d, t| {
        let dns = reflected(Dice(d.0 ^ 3), t, 53, |d, _| dns_answer(d, b"doleta", 3_100));
        blend(Dice(d.0 ^ 5), vec![(75, dns), (25, customers(Dice(d.0 ^ 4), t))])
    }),
    scene("SYN among customers of the web", &[F::SynFlood], |d, t| {
        let syn = each(Dice(d.0 ^ 3), move |d| {
            let s = tcp(t, t, (port(d), 443), SYN, 0, vec![]);
            forge(s, t, d, 53)
        });
        blend(Dice(d.0 ^ 5), vec![(70, syn), (30, customers(Dice(d.0 ^ 4), t))])
    }),
    scene("SNMP and chargen, half each", &[F::MultiVector], |d, t| {
        let snmp = reflected(Dice(d.0 ^ 3), t, 161, |d, _| {
            [&b"\x30\x82\x05\x10\x02\x01\x01\x04\x06public\xa2\x82\x05"[..], &noise(d, 1_300)].concat()
        });
        let chargen = reflected(Dice(d.0 ^ 4), t, 19, |_, _| (0x20..0x7f).chain(0x20..0x7f).collect());
        blend(Dice(d.0 ^ 5), vec![(50, snmp), (50, chargen)])
    }),
    scene("random labels of many lengths through resolvers", &[F::DnsFlood], |d, t| {
        each(d, move |d| {
            let len = 7 + d.below(25) as usize;
            let label = letters(d, len);
            let data = [
                &noise(d, 2)[..],
                &[0, 16, 0, 1, 0, 0, 0, 0, 0, 1, len as u8],
                &label,
                b"\x04bank\x02co\0\0\x01\0\x01\0",
            ];
            udp(one_of(d, 77, 4_000, t), t, (port(d), 53), data.concat())
        })
    }),
    scene("echo requests of 1400 bytes from bots", &[F::IcmpFlood], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 78, 500, t);
            let mut s = Spec::new(src, t, if t.is_ipv4() { 1 } else { 58 });
            (s.icmp, s.ttl) = ([if t.is_ipv4() { 8 } else { 128 }, 0], far(src, 64));
            s.payload = noise(d, 1_400);
            s
        })
    }),
];

pub(super) const ORDINARY: &[Scene] = &[
    scene("edges of a network of caches, one distance", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 80, 600, t);
            let ports = (ephemeral(src, d.below(40)), 443);
            let len = [0, 0, 1_448, 40 + d.below(1_300) as usize][d.below(4) as usize];
            let data = noise(d, len);
            let mut s = tcp(src, t, ports, if len == 0 { ACK } else { PSH_ACK }, STAMPS, data);
            s.ttl = 57 + d.below(2) as u8;
            s
        })
    }),
    scene("a proxy that keeps its clients' addresses", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 81, 9_000, t);
            let len = [0, 0, 0, 1_460, 1_460, 300 + d.below(900) as usize][d.below(6) as usize];
            let data = noise(d, len);
            let mut s =
                tcp(src, t, (ephemeral(src, d.below(2)), 8_080), if len == 0 { ACK } else { PSH_ACK }, STAMPS, data);
            s.ttl = 63;
            s
        })
    }),
    scene("translated clients without time stamps, downloads alone", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 82, 5, t);
            tcp(src, t, (ephemeral(src, d.below(300)), 443), ACK, 0, vec![])
        })
    }),
    scene("signed answers to a resolver", &[], |d, t| {
        bursts(d, move |d| {
            let len = 5 + d.below(9) as usize;
            let name = letters(d, len);
            let size = if d.below(60) == 0 { 1_700 } else { 250 + d.below(1_100) as usize };
            let data = dns_answer(d, &name, size);
            fragmented(udp(one_of(d, 83, 400, t), t, (53, port(d)), data))
        })
    }),
    scene("a name's lifetime ends: every resolver asks once", &[], |d, t| {
        let mut n = 0;
        each(d, move |d| {
            // One in twenty asks again.
            if d.below(20) > 0 {
                n += 1;
            }
            let p = [
                &noise(d, 2)[..],
                b"\0\x10\0\x01\0\0\0\0\0\x01\x03www\x07example\x03com\0\0\x01\0\x01\0\0\x29\x10\0\0\0",
            ];
            udp(host(84, n, t), t, (port(d), 53), p.concat())
        })
    }),
    scene("a game of 700 players, one length", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 85, 700, t);
            let data = noise(d, 64);
            udp(src, t, (ephemeral(src, 1), 14_242), data)
        })
    }),
    scene("pictures of a conference", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 86, 400, t);
            let len = if d.below(3) == 0 { 90 + d.below(80) as usize } else { 950 + d.below(250) as usize };
            let data = noise(d, len);
            udp(src, t, (ephemeral(src, 1), 10_000), data)
        })
    }),
    scene("clients of Windows send full segments", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 87, 6, t);
            let data = noise(d, 1_460);
            tcp(src, t, (ephemeral(src, d.below(3)), 445), ACK, 0, data)
        })
    }),
    scene("a mail relay's talk", &[], |d, t| {
        each(d, move |d| {
            let src = one_of(d, 88, 300, t);
            let words: [&[u8]; 4] =
                [b"EHLO mail.example.com\r\n", b"MAIL FROM:<a@example>\r\n", b"RCPT TO:<b@e>\r\n", b"DATA\r\n"];
            let mut text = words[d.below(4) as usize].to_vec();
            if d.below(2) == 0 {
                text = noise(d, 1_448);
            }
            tcp(src, t, (ephemeral(src, d.below(3)), 25), PSH_ACK, STAMPS, text)
        })
    }),
    scene("pings of a monitoring", &[], |d, t| {
        let icmp = each(Dice(d.0 ^ 2), move |d| {
            let mut s = Spec::new(one_of(d, 89, 30, t), t, if t.is_ipv4() { 1 } else { 58 });
            (s.icmp, s.payload) = ([if t.is_ipv4() { 8 } else { 128 }, 0], vec![0; 56]);
            s
        });
        blend(Dice(d.0 ^ 5), vec![(3, icmp), (97, customers(Dice(d.0 ^ 4), t))])
    }),
];
