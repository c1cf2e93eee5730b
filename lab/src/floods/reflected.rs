//! Answers of reflectors as published measurements describe them: several packets an answer, lengths as different as
//! the reflectors, and fragments where an answer does not fit into a packet.

use std::net::IpAddr;

use ftagent_common::vocab::AttackFamily as F;

use super::scene::{bursts, fragmented, host, letters, noise, ordinary_ttl, scene, tcp, udp};
use super::{Dice, Scene, Spec, Stream, scene::blend};

/// How many reflectors are used at once.
const REFLECTORS: u64 = 1_500;

/// What one reflector sends for one request.
type Answer = fn(&mut Dice, u64) -> Vec<Vec<u8>>;

/// Answers from `port` to the victim's port, in fragments where they must.
fn reflection(d: Dice, t: IpAddr, group: u64, port: Option<u16>, answer: Answer) -> Stream {
    let victim = 80 + (group as u16 % 3) * 3_000;
    bursts(d, move |d| {
        let n = d.below(REFLECTORS);
        let src = host(100 + group, n, t);
        // Behind address translation an answer leaves by any port.
        let from = port.unwrap_or(1_024 + (n * 7_919 % 60_000) as u16);
        let to = if d.below(4) == 0 { victim } else { 1_024 + d.below(60_000) as u16 };
        answer(d, n).into_iter().flat_map(|payload| fragmented(udp(src, t, (from, to), payload))).collect()
    })
}

fn filled(mut head: Vec<u8>, len: usize, d: &mut Dice) -> Vec<u8> {
    let more = len.saturating_sub(head.len());
    head.extend(noise(d, more));
    head
}

fn dns(d: &mut Dice, _: u64, len: usize) -> Vec<u8> {
    let mut p = noise(d, 2);
    p.extend([0x81, 0x80, 0, 1, 0, 24, 0, 0, 0, 1, 6]);
    p.extend(b"access\x06report\x03gov\0\0\xff\0\x01\xc0\x0c");
    filled(p, len, d)
}

fn dns_large(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![dns(d, n, 3_000 + (n % 5) as usize * 256)]
}

fn dns_small(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![dns(d, n, 400 + (n % 9) as usize * 100)]
}

fn monlist(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    (0..1 + n % 20).map(|i| filled(vec![0xd7, i as u8, 3, 42, 0, 6, 0, 72], 440, d)).collect()
}

fn readvar(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = vec![0x16, 0x82, 0, 1, 6, 0x15, 0, 0, 0, 0, 1, 0xc0];
    p.extend(b"version=\"ntpd 4.2.8p10@1.3728\", processor=");
    vec![filled(p, 300 + (n % 180) as usize, d)]
}

fn memcached(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    (0..20 + n % 20)
        .map(|i| {
            let mut p = vec![0, 1, 0, i as u8, 2, 0xe4, 0, 0];
            if i == 0 {
                p.extend(b"VALUE a 0 1048576\r\n");
            }
            filled(p, 1_408, d)
        })
        .collect()
}

fn memcached_stats(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = vec![0, 0, 0, 0, 0, 1, 0, 0];
    p.extend(b"STAT pid 21357\r\nSTAT uptime 41557034\r\n");
    vec![filled(p, 1_100 + (n % 90) as usize, d)]
}

fn ssdp(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    (0..4 + n % 8)
        .map(|_| {
            let heads: [&[u8]; 3] = [
                b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: upnp:rootdevice",
                b"HTTP/1.1 200 OK\r\nST:urn:schemas-upnp-org:service:",
                b"HTTP/1.1 200 OK\r\nServer: Custom/1.0 UPnP/1.0 Proc/Ver",
            ];
            filled(heads[(n % 3) as usize].to_vec(), 260 + d.below(120) as usize, d)
        })
        .collect()
}

fn cldap(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let head = b"\x30\x84\x00\x00\x0b\xb8\x02\x01\x07\x64\x84\x00\x00\x0b\xa9\x04\x00\x30\x84\x00\x00\x0b\xa1".to_vec();
    vec![filled(head, 2_700 + (n % 400) as usize, d)]
}

fn cldap_netlogon(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let head = b"\x30\x81\xb0\x02\x01\x01\x64\x81\xaa\x04\x00\x30\x81\xa5\x30\x81\xa2\x04\x08netlogon".to_vec();
    vec![filled(head, 170 + (n % 20) as usize, d)]
}

fn chargen(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let start = d.below(95) as u8;
    let len = if n.is_multiple_of(3) { 74 } else { 500 + (n % 900) as usize };
    let line = |i: usize| {
        if i % 74 == 72 {
            b'\r'
        } else if i % 74 == 73 {
            b'\n'
        } else {
            0x20 + ((start as usize + i % 74 + i / 74) % 95) as u8
        }
    };
    vec![(0..len).map(line).collect()]
}

fn snmp(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let version = u8::from(!n.is_multiple_of(4));
    let mut head = vec![0x30, 0x82, 0x05, 0xb0, 2, 1, version, 4, 6];
    head.extend(b"public\xa2\x82\x05\xa1\x02\x04");
    vec![filled(head, if n.is_multiple_of(2) { 1_420 } else { 2_900 }, d)]
}

fn portmap(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = noise(d, 4);
    p.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    vec![filled(p, 68 + 20 * (n % 20) as usize, d)]
}

fn wsd(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let heads: [&[u8]; 3] = [
        b"<?xml version=\"1.0\" encoding=\"utf-8\"?><soap:Envelope",
        b"\xef\xbb\xbf<?xml version=\"1.0\"?><SOAP-ENV:Envelope",
        b"<SOAP-ENV:Envelope xmlns:SOAP-ENV=\"http://www",
    ];
    vec![filled(heads[(n % 3) as usize].to_vec(), 900 + (n % 7) as usize * 350, d)]
}

fn arms(d: &mut Dice, _: u64) -> Vec<Vec<u8>> {
    vec![filled(vec![0, 1, 3, 0xe8, 0, 2, 0, 0, 0, 0, 0, 0], 1_006, d), filled(vec![0, 1, 0, 0x1c, 0, 2, 0, 0], 32, d)]
}

fn mdns(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let head = b"\0\0\x84\0\0\0\0\x04\0\0\0\x03\x09_services\x07_dns-sd".to_vec();
    vec![filled(head, 90 + (n % 300) as usize, d)]
}

fn tftp(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let data = filled(vec![0, 3, 0, 1], 516, d);
    if n.is_multiple_of(3) { vec![b"\0\x05\0\x01File not found\0".to_vec()] } else { vec![data; 5] }
}

fn netbios(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = noise(d, 2);
    p.extend(b"\x84\0\0\0\0\x01\0\0\0\0\x20CKAAAAAAAAAAAAAAAAAAAA");
    vec![filled(p, 157 + 18 * (n % 6) as usize, d)]
}

fn qotd(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let len = 60 + (n % 200) as usize;
    let mut words = letters(d, len);
    words.iter_mut().step_by(6).for_each(|b| *b = b' ');
    words[0] = b'"';
    vec![words]
}

fn rip(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let entries = 1 + (n % 25) as usize;
    let mut p = vec![2, 1, 0, 0];
    for _ in 0..entries {
        p.extend([0, 2, 0, 0]);
        p.extend(noise(d, 4));
        p.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }
    vec![p]
}

fn openvpn(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let long = !n.is_multiple_of(4);
    let p = filled(vec![0x40], if long { 26 } else { 54 }, d);
    vec![p; 6]
}

fn isakmp(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = noise(d, 16);
    p.extend(if n.is_multiple_of(2) { [1, 0x10, 2, 0] } else { [0x21, 0x20, 0x22, 0x20] });
    vec![filled(p, 120 + (n % 260) as usize, d)]
}

fn ubnt(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(vec![1, 0, 0, 0x96, 2, 0, 0x0a], 130 + (n % 60) as usize, d)]
}

fn dvr(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = vec![0x20, 0, 0, 0];
    p.extend(b"DHIP\0\0\0\0\0\0\0\0\xa6\x02\0\0\0\0\0\0\xa6\x02\0\0\0\0\0\0{");
    vec![filled(p, 600 + (n % 200) as usize, d)]
}

fn coap(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = vec![0x60, 0x45];
    p.extend(noise(d, 2));
    p.extend(b"\xc1\x28\xb1\x06\xff</>;title=");
    vec![filled(p, 200 + (n % 500) as usize, d)]
}

fn stun(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    let mut p = vec![1, 1, 0, 0x2c, 0x21, 0x12, 0xa4, 0x42];
    p.extend(noise(d, 12));
    vec![filled(p, if n.is_multiple_of(2) { 64 } else { 108 }, d)]
}

fn jenkins(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"<hudson><version>2.204</version><url>http://".to_vec(), 150 + (n % 200) as usize, d)]
}

fn plex(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"HTTP/1.0 200 OK\r\nContent-Type: plex/media-server".to_vec(), 280 + (n % 60) as usize, d)]
}

fn slp(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(vec![2, 2, 0, 3, 0x54, 0, 0, 0, 0, 0], 350 + 3 * (n % 500) as usize, d)]
}

fn mssql(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"\x05\x7d\x01ServerName;SQL01;InstanceName;".to_vec(), 200 + (n % 500) as usize, d)]
}

fn quake(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"\xff\xff\xff\xffstatusResponse\n\\sv_max".to_vec(), 500 + (n % 800) as usize, d)]
}

fn dtls(d: &mut Dice, _: u64) -> Vec<Vec<u8>> {
    vec![filled(vec![22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x23, 3, 0, 0, 0x17], 48, d)]
}

fn sip(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"SIP/2.0 404 Not Found\r\nVia: SIP/2.0/UDP ".to_vec(), 350 + (n % 250) as usize, d)]
}

fn bittorrent(d: &mut Dice, n: u64) -> Vec<Vec<u8>> {
    vec![filled(b"d1:rd2:id20:".to_vec(), 280 + (n % 40) as usize, d)]
}

fn ipmi(d: &mut Dice, _: u64) -> Vec<Vec<u8>> {
    vec![filled(vec![6, 0, 0xff, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0x81, 0x1c], 30, d)]
}

macro_rules! reflected {
    ($($name:literal, $family:ident, $group:literal, $port:expr, $answer:ident;)*) => {
        &[$(Scene {
            name: $name,
            right: &[F::$family],
            over_ipv6: !matches!(F::$family, F::Ripv1Amplification),
            begin: |d, t| reflection(d, t, $group, $port, $answer),
        }),*]
    };
}

/// One service each.
pub(super) const OF_ONE_SERVICE: &[Scene] = reflected![
    "DNS ANY of 3 to 4 KiB", DnsAmplification, 1, Some(53), dns_large;
    "DNS of some hundred bytes", DnsAmplification, 2, Some(53), dns_small;
    "NTP monlist", NtpAmplification, 3, Some(123), monlist;
    "NTP readvar", NtpAmplification, 4, Some(123), readvar;
    "memcached values", MemcachedAmplification, 5, Some(11_211), memcached;
    "memcached stats", MemcachedAmplification, 6, Some(11_211), memcached_stats;
    "SSDP", SsdpAmplification, 7, Some(1_900), ssdp;
    "SSDP from any port", SsdpAmplification, 8, None, ssdp;
    "CLDAP of 3 KiB", CldapAmplification, 9, Some(389), cldap;
    "CLDAP netlogon", CldapAmplification, 10, Some(389), cldap_netlogon;
    "chargen", ChargenAmplification, 11, Some(19), chargen;
    "SNMP bulk", SnmpAmplification, 12, Some(161), snmp;
    "portmap dump", RpcbindAmplification, 13, Some(111), portmap;
    "WS-Discovery", WsdAmplification, 14, Some(3_702), wsd;
    "WS-Discovery from any port", WsdAmplification, 15, None, wsd;
    "Apple Remote Desktop", ArdAmplification, 16, Some(3_283), arms;
    "mDNS", MdnsAmplification, 17, Some(5_353), mdns;
    "TFTP", TftpAmplification, 18, Some(69), tftp;
    "TFTP from any port", TftpAmplification, 19, None, tftp;
    "NetBIOS", NetbiosAmplification, 20, Some(137), netbios;
    "QOTD", QotdAmplification, 21, Some(17), qotd;
    "RIP version 1", Ripv1Amplification, 22, Some(520), rip;
    "OpenVPN", OpenvpnAmplification, 23, Some(1_194), openvpn;
    "IKE", IsakmpAmplification, 24, Some(500), isakmp;
    "Ubiquiti", UbntAmplification, 25, Some(10_001), ubnt;
    "DVR", DvrAmplification, 26, Some(37_810), dvr;
    "CoAP", CoapAmplification, 27, Some(5_683), coap;
    "STUN", UdpAmplification, 28, Some(3_478), stun;
    "Jenkins", UdpAmplification, 29, Some(33_848), jenkins;
    "Plex", UdpAmplification, 30, Some(32_414), plex;
    "SLP", UdpAmplification, 31, Some(427), slp;
    "SQL Server browser", UdpAmplification, 32, Some(1_434), mssql;
    "Quake status", UdpAmplification, 33, Some(27_960), quake;
    "DTLS hello verify", UdpAmplification, 34, Some(443), dtls;
    "SIP", UdpAmplification, 35, Some(5_060), sip;
    "BitTorrent", UdpAmplification, 36, Some(6_881), bittorrent;
    "IPMI", UdpAmplification, 37, Some(623), ipmi;
];

/// A SYN-ACK of a real server, sent again as nobody answers.
fn syn_ack(d: &mut Dice, t: IpAddr) -> Vec<Spec> {
    let n = d.below(4_000);
    let src = host(150, n, t);
    let ports = ([80, 443, 22, 25, 21, 8_080][(n % 6) as usize], 1_024 + d.below(60_000) as u16);
    let options = [4, 20, 8, 12][(n % 4) as usize];
    let again = tcp(src, t, ports, 18, options, vec![]);
    if n.is_multiple_of(16) { vec![tcp(src, t, ports, 20, 0, vec![])] } else { vec![again; 3] }
}

/// What a censor answers for a forbidden site: a page, and resets behind it.
fn blocked(d: &mut Dice, t: IpAddr) -> Vec<Spec> {
    let n = d.below(600);
    let src = host(151, n, t);
    let ports = (80, 1_024 + d.below(60_000) as u16);
    let mut page = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n<html><iframe src=".to_vec();
    page.resize(150 + (n % 9) as usize * 130, b' ');
    let reset = tcp(src, t, ports, 20, 0, vec![]);
    match n % 3 {
        0 => vec![tcp(src, t, ports, 24, 0, page), reset],
        1 => vec![tcp(src, t, ports, 25, 0, page)],
        _ => vec![tcp(src, t, ports, 24, 0, page.clone()), tcp(src, t, ports, 24, 0, page), reset],
    }
}

/// Of TCP, and of several services at once.
pub(super) const OF_SEVERAL: &[Scene] = &[
    scene("SYN-ACK of real servers", &[F::SynAckFlood], |d, t| bursts(d, move |d| syn_ack(d, t))),
    scene("pages of middleboxes", &[F::TcpFlood, F::AckFlood, F::SynAckFlood, F::MultiVector], |d, t| {
        bursts(d, move |d| blocked(d, t))
    }),
    scene("unreachables of real servers", &[F::IcmpFlood], |d, t| {
        bursts(d, move |d| {
            let src = host(152, d.below(3_000), t);
            let mut s = Spec::new(src, t, if t.is_ipv4() { 1 } else { 58 });
            s.icmp = if t.is_ipv4() { [3, 3] } else { [1, 4] };
            (s.ttl, s.payload) = (ordinary_ttl(src), vec![0x45; 32]);
            vec![s]
        })
    }),
    scene("DNS, NTP and SSDP of a booter", &[F::MultiVector], |d, t| {
        let part = |seed, group, port, answer| reflection(Dice(d.0 ^ seed), t, group, Some(port), answer);
        let parts =
            vec![(40, part(1, 1, 53, dns_large)), (30, part(2, 3, 123, monlist)), (30, part(3, 7, 1_900, ssdp))];
        blend(d, parts)
    }),
    scene("CLDAP and SYN, half each", &[F::MultiVector], |d, t| {
        let syn = bursts(Dice(d.0 ^ 7), move |d| {
            let mut s = tcp(super::forged(d, t), t, (1_024 + d.below(60_000) as u16, 80), 2, 0, vec![]);
            s.ttl = 60;
            vec![s]
        });
        let parts = vec![(50, reflection(Dice(d.0 ^ 8), t, 9, Some(389), cldap)), (50, syn)];
        blend(d, parts)
    }),
    scene("NTP and plain UDP, 70 to 30", &[F::MultiVector], |d, t| {
        let plain = bursts(Dice(d.0 ^ 7), move |d| {
            let src = host(1, d.below(400), t);
            let data = noise(d, 700);
            vec![udp(src, t, (1_024 + d.below(60_000) as u16, 80), data)]
        });
        let parts = vec![(70, reflection(Dice(d.0 ^ 8), t, 3, Some(123), monlist)), (30, plain)];
        blend(d, parts)
    }),
];
