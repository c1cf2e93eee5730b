//! What the first bytes of a datagram say: one recogniser per service whose answers are used for reflection, and the
//! few shapes that tell requests and ordinary applications apart.
//!
//! Shapes are of *answers*: a query to the same service is never taken for one.

use ftagent_common::packet::proto;
use ftagent_common::vocab::AttackFamily;

use super::application;

/// What the beginning of a payload looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shape {
    /// No payload at all.
    Empty,
    /// An answer of a service that reflectors run.
    Answer(AttackFamily),
    /// A time server's ordinary answer: of the reflected service, but it amplifies nothing.
    NtpTime,
    /// A DNS query.
    DnsQuery,
    /// An HTTP/1 request line, or the connection preface of HTTP/2.
    HttpRequest,
    /// A header line without a request before it: what slow attacks drip.
    HttpHeaderLine,
    /// The first line of an HTTP/1 answer.
    HttpAnswer,
    /// A TLS record with a client hello.
    TlsHello,
    /// QUIC, RTP, WireGuard, tunnels: applications that fill lines by themselves.
    Application,
    /// One byte over and over: length without content.
    Filler,
    Other,
}

/// Recognises the payload of a datagram; `len` is the payload's whole length in bytes.
pub fn shape(protocol: u8, src_port: u16, dst_port: u16, payload: &[u8], len: usize) -> Shape {
    if len == 0 {
        return Shape::Empty;
    }
    match protocol {
        proto::UDP => udp(src_port, dst_port, payload, len),
        proto::TCP => tcp(payload),
        _ => Shape::Other,
    }
}

fn tcp(p: &[u8]) -> Shape {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI * "];
    if METHODS.iter().any(|m| p.starts_with(m)) {
        return Shape::HttpRequest;
    }
    if p.starts_with(b"HTTP/1.") {
        return Shape::HttpAnswer;
    }
    if p.len() >= 6 && p[0] == 0x16 && p[1] == 3 && p[5] == 1 {
        return Shape::TlsHello;
    }
    // "X-a: b": a token, a colon, a space; tokens have no spaces (RFC 9110 section 5.6.2).
    let name = p.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'-').count();
    if (1..=24).contains(&name) && p[0].is_ascii_alphabetic() && p.get(name..).is_some_and(|r| r.starts_with(b": ")) {
        return Shape::HttpHeaderLine;
    }
    Shape::Other
}

/// One service's answer: its family, the ports it answers from (empty: any), and its shape.
type Answer = (AttackFamily, &'static [u16], fn(&[u8], usize) -> bool);

/// Asked in order; the first that fits names the service. Shapes that no other protocol has come without ports:
/// devices behind address translation answer from any.
const ANSWERS: &[Answer] = &[
    (AttackFamily::DnsAmplification, &[53], dns_answer),
    (AttackFamily::NtpAmplification, &[123], ntp_control),
    (AttackFamily::MemcachedAmplification, &[11211], memcached),
    (AttackFamily::SsdpAmplification, &[], |p, _| p.starts_with(b"HTTP/1.1 200")),
    (AttackFamily::SsdpAmplification, &[1900], |p, _| p.starts_with(b"NOTIFY * HTTP/1.1")),
    (AttackFamily::CldapAmplification, &[389], cldap),
    (AttackFamily::ChargenAmplification, &[19], chargen),
    (AttackFamily::SnmpAmplification, &[161], snmp),
    (AttackFamily::RpcbindAmplification, &[111], rpc_reply),
    (AttackFamily::WsdAmplification, &[3702], xml),
    (AttackFamily::WsdAmplification, &[], soap),
    (AttackFamily::MdnsAmplification, &[5353], dns_answer),
    (AttackFamily::TftpAmplification, &[69], tftp),
    (AttackFamily::NetbiosAmplification, &[137, 138], dns_answer),
    (AttackFamily::QotdAmplification, &[17], text),
    (AttackFamily::Ripv1Amplification, &[520], rip_response),
    (AttackFamily::OpenvpnAmplification, &[1194], openvpn_reset),
    (AttackFamily::ArdAmplification, &[3283], ard),
    (AttackFamily::IsakmpAmplification, &[500, 4500], isakmp),
    (AttackFamily::UbntAmplification, &[10001], ubnt),
    (AttackFamily::DvrAmplification, &[], dhip),
    (AttackFamily::DvrAmplification, &[37810], any_answer),
    (AttackFamily::CoapAmplification, &[5683], coap),
    (AttackFamily::UdpAmplification, &[], game_query),
    (AttackFamily::UdpAmplification, &[], dtls_verify),
    (AttackFamily::TftpAmplification, &[], tftp_begin),
    (AttackFamily::UdpAmplification, &[5060], |p, _| p.starts_with(b"SIP/2.0")),
    (AttackFamily::UdpAmplification, &[1434], |p, _| p[0] == 5),
    (AttackFamily::UdpAmplification, &[623], |p, _| p.starts_with(&[6, 0, 0xff, 7])),
    (AttackFamily::UdpAmplification, &[523], |p, _| p.starts_with(b"DB2RETADDR")),
    (AttackFamily::UdpAmplification, &[33848], |p, _| p.starts_with(b"<hudson>")),
    (AttackFamily::UdpAmplification, &[32414, 32410], |p, _| p.starts_with(b"HTTP/1.")),
    (AttackFamily::UdpAmplification, &[47808], |p, _| p[0] == 0x81),
    (AttackFamily::UdpAmplification, &[427], |p, _| p[0] == 2 && matches!(p.get(1), Some(2 | 7 | 8 | 10 | 11))),
    (AttackFamily::UdpAmplification, &[3478], |p, _| p.starts_with(&[1, 1]) || p.starts_with(&[1, 0x11])),
    (AttackFamily::UdpAmplification, &[6881], |p, _| p.starts_with(b"d1:") || p.starts_with(b"d2:")),
    (AttackFamily::UdpAmplification, &[177], |p, _| p.starts_with(&[0, 1, 0]) && matches!(p.get(3), Some(5 | 6))),
];

fn udp(src_port: u16, dst_port: u16, p: &[u8], len: usize) -> Shape {
    // What goes from port to the same port is said among peers: announcements, time servers, routers.
    let peers = src_port == dst_port;
    if p.is_empty() {
        return Shape::Other;
    }
    if let Some((family, ..)) = ANSWERS.iter().find(|(family, ports, is)| {
        (ports.is_empty() || ports.contains(&src_port))
            && is(p, len)
            && !(peers && (is_chatter(*family) || src_port == application::SIP))
    }) {
        return Shape::Answer(*family);
    }
    if src_port == 123 && len >= 48 && matches!(p[0] & 7, 4 | 5) {
        return Shape::NtpTime;
    }
    if dst_port == 53 && dns_query(p, len) {
        return Shape::DnsQuery;
    }
    if application::is_any(src_port, dst_port, p, len) {
        return Shape::Application;
    }
    let is_filler = p.len() >= 12 && p.iter().all(|byte| *byte == p[0]);
    if is_filler { Shape::Filler } else { Shape::Other }
}

/// Services whose members announce themselves to each other all day.
const fn is_chatter(family: AttackFamily) -> bool {
    matches!(
        family,
        AttackFamily::SsdpAmplification | AttackFamily::MdnsAmplification | AttackFamily::NetbiosAmplification
    )
}

/// Bytes before the names of a DNS message (RFC 1035 section 4.1.1).
pub const DNS_HEADER: usize = 12;

fn be16(p: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*p.get(at)?, *p.get(at + 1)?]))
}

/// RFC 1035 section 4.1.1 with QR=1; NetBIOS name service and multicast DNS share the header.
fn dns_answer(p: &[u8], len: usize) -> bool {
    let (Some(flags), Some(questions), Some(answers)) = (be16(p, 2), be16(p, 4), be16(p, 6)) else { return false };
    len >= 12 && flags & 0x8000 != 0 && questions <= 8 && answers <= 2_000
}

fn dns_query(p: &[u8], len: usize) -> bool {
    let (Some(flags), Some(questions), Some(answers)) = (be16(p, 2), be16(p, 4), be16(p, 6)) else { return false };
    len >= 17 && flags & 0xf80f == 0 && (1..=4).contains(&questions) && answers == 0
}

/// Mode 7 (private, `monlist`) and mode 6 (control) with the response bit (RFC 9327 section 2).
fn ntp_control(p: &[u8], len: usize) -> bool {
    match p[0] & 7 {
        7 => p[0] & 0x80 != 0 && len >= 8,
        6 => p.get(1).is_some_and(|b| b & 0x80 != 0) && len >= 12,
        _ => false,
    }
}

/// The frame header of memcached's UDP protocol: id, sequence, total, zero; then an answer of the text protocol.
fn memcached(p: &[u8], len: usize) -> bool {
    let (Some(sequence), Some(total), Some(reserved)) = (be16(p, 2), be16(p, 4), be16(p, 6)) else { return false };
    len > 8 && reserved == 0 && total >= 1 && sequence < total
}

/// LDAPMessage with a searchResEntry or searchResDone (RFC 4511 section 4.5.2).
fn cldap(p: &[u8], _: usize) -> bool {
    if p[0] != 0x30 {
        return false;
    }
    let body = match p.get(1) {
        Some(n) if *n < 0x80 => 2,
        Some(n) => 2 + usize::from(n & 0x7f),
        None => return false,
    };
    // messageID INTEGER, then the operation's application tag.
    p.get(body) == Some(&2)
        && p.get(body + 1).is_some_and(|n| matches!(p.get(body + 2 + usize::from(*n)), Some(0x64 | 0x65)))
}

/// A run of the printable characters in their order (RFC 864).
fn chargen(p: &[u8], _: usize) -> bool {
    let steps = p.windows(2).filter(|w| w[1] == w[0].wrapping_add(1) || (w[0] == 0x7e && w[1] == 0x20)).count();
    p.len() >= 8 && steps * 10 >= (p.len() - 1) * 7
}

/// A BER sequence with a version and a response or report (RFC 3416); what is cut off cannot contradict.
fn snmp(p: &[u8], _: usize) -> bool {
    if p[0] != 0x30 {
        return false;
    }
    let body = match p.get(1) {
        Some(n) if *n < 0x80 => 2,
        Some(n) => 2 + usize::from(n & 0x7f),
        None => return false,
    };
    if p.get(body) != Some(&2) {
        return false;
    }
    let Some(version_len) = p.get(body + 1) else { return false };
    let community = body + 2 + usize::from(*version_len);
    match (p.get(community), p.get(community + 1)) {
        (Some(4), Some(n)) => matches!(p.get(community + 2 + usize::from(*n)), Some(0xa2 | 0xa8) | None),
        // Version 3 goes on with a sequence.
        (Some(0x30), _) => true,
        _ => false,
    }
}

/// An RPC message of type REPLY (RFC 5531 section 9).
fn rpc_reply(p: &[u8], len: usize) -> bool {
    len >= 12 && p.get(4..8) == Some(&[0, 0, 0, 1])
}

fn xml(p: &[u8], _: usize) -> bool {
    p.strip_prefix(b"\xef\xbb\xbf").unwrap_or(p).first() == Some(&b'<')
}

/// An XML document or a SOAP envelope, with or without a byte order mark.
fn soap(p: &[u8], len: usize) -> bool {
    let text = p.strip_prefix(b"\xef\xbb\xbf").unwrap_or(p);
    let envelopes: [&[u8]; 5] = [b"<?xml version", b"<SOAP-ENV:", b"<soap:Env", b"<s:Env", b"<env:Env"];
    len >= 200 && envelopes.iter().any(|begin| text.starts_with(begin))
}

/// DATA, ERROR or OACK (RFC 1350 section 5, RFC 2347).
fn tftp(p: &[u8], _: usize) -> bool {
    p[0] == 0 && matches!(p.get(1), Some(3 | 5 | 6))
}

/// The first block or an error with its text: servers send them from a port of their choice (RFC 1350 section 4).
fn tftp_begin(p: &[u8], len: usize) -> bool {
    let is_error = p.starts_with(&[0, 5, 0]) && p.get(3).is_some_and(|code| *code <= 8);
    p.starts_with(&[0, 3, 0, 1]) && len > 8 || is_error && p.len() > 5 && text(&p[4..p.len() - 1], len)
}

/// HelloVerifyRequest: what a DTLS server answers to a hello that may be forged (RFC 6347 section 4.2.1).
fn dtls_verify(p: &[u8], _: usize) -> bool {
    p.starts_with(&[22, 0xfe]) && p.get(13) == Some(&3)
}

fn text(p: &[u8], _: usize) -> bool {
    printable(p)
}

/// Whether nearly all bytes are those of text.
pub(super) fn printable(p: &[u8]) -> bool {
    let text = p.iter().filter(|c| c.is_ascii_graphic() || c.is_ascii_whitespace()).count();
    text * 10 >= p.len() * 8
}

/// Command 2 (RFC 1058 section 3.1).
fn rip_response(p: &[u8], len: usize) -> bool {
    len >= 24 && p[0] == 2 && matches!(p.get(1), Some(1 | 2)) && p.get(2..4) == Some(&[0, 0])
}

/// P_CONTROL_HARD_RESET_SERVER_V1 or V2 in the upper five bits.
fn openvpn_reset(p: &[u8], len: usize) -> bool {
    matches!(p[0] >> 3, 2 | 8) && len >= 14
}

fn ard(p: &[u8], len: usize) -> bool {
    len >= 100 && p[0] == 0
}

/// An IKE header after an optional non-ESP marker (RFC 7296 section 3.1, RFC 3948 section 2.2).
fn isakmp(p: &[u8], len: usize) -> bool {
    let at = if p.starts_with(&[0; 4]) { 4 } else { 0 };
    let version = p.get(at + 17).copied().unwrap_or(0);
    let exchange = p.get(at + 18).copied().unwrap_or(0);
    len >= at + 28 && matches!(version >> 4, 1 | 2) && matches!(exchange, 0..=6 | 32..=43)
}

fn ubnt(p: &[u8], len: usize) -> bool {
    len > 4 && matches!(p[0], 1 | 2) && matches!(p.get(1), Some(0 | 6 | 9 | 10 | 11))
}

/// The discovery protocol of video recorders (DHIP).
fn dhip(p: &[u8], _: usize) -> bool {
    p.get(4..8) == Some(b"DHIP")
}

fn any_answer(p: &[u8], len: usize) -> bool {
    len >= 100 || p[0] == b'{'
}

/// An acknowledgement or confirmable message whose code is a 2.xx answer (RFC 7252 section 3).
fn coap(p: &[u8], _: usize) -> bool {
    p[0] >> 6 == 1 && p.get(1).is_some_and(|code| (2..=5).contains(&(code >> 5)))
}

/// Answers of the query protocols of game engines: `ff ff ff ff` and a word or letter that only servers send.
fn game_query(p: &[u8], _: usize) -> bool {
    p.starts_with(&[0xff; 4])
        && (matches!(p.get(4), Some(b'I' | b'A' | b'D' | b'E' | b'm'))
            || p[4..].starts_with(b"statusResponse")
            || p[4..].starts_with(b"infoResponse"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use AttackFamily as F;

    #[test]
    fn answers_are_recognised_and_queries_are_not() {
        let long = 200;
        let chargen: Vec<u8> = (0x21..0x41).collect();
        let table: Vec<(&str, u16, &[u8], Shape)> = vec![
            ("dns answer", 53, b"\x12\x34\x81\x80\0\x01\0\x20\0\0\0\x01", Shape::Answer(F::DnsAmplification)),
            ("monlist", 123, b"\xd7\x00\x03\x2a\0\x06\0\x48", Shape::Answer(F::NtpAmplification)),
            ("readvar", 123, b"\x16\x82\0\x01\0\0\0\0\0\0\0\0", Shape::Answer(F::NtpAmplification)),
            ("time answer", 123, b"\x24\x01\0\xe9", Shape::NtpTime),
            ("time query", 123, b"\x23\0\x06\xec", Shape::Other),
            ("memcached", 11211, b"\0\0\0\x01\0\x05\0\0VALUE a", Shape::Answer(F::MemcachedAmplification)),
            ("ssdp from any port", 2051, b"HTTP/1.1 200 OK\r\n", Shape::Answer(F::SsdpAmplification)),
            ("ssdp search", 1900, b"M-SEARCH * HTTP/1.1", Shape::Other),
            ("cldap", 389, b"\x30\x84\0\0\x0b\x7b\x02\x01\x07\x64\x84", Shape::Answer(F::CldapAmplification)),
            ("cldap search", 389, b"\x30\x25\x02\x01\x01\x63\x20", Shape::Other),
            ("chargen", 19, &chargen, Shape::Answer(F::ChargenAmplification)),
            ("snmp", 161, b"\x30\x82\x05\x10\x02\x01\x01\x04\x06public\xa2\x82", Shape::Answer(F::SnmpAmplification)),
            ("snmp get", 161, b"\x30\x26\x02\x01\x01\x04\x06public\xa5\x19", Shape::Other),
            ("portmap", 111, b"abcd\0\0\0\x01\0\0\0\0", Shape::Answer(F::RpcbindAmplification)),
            ("portmap call", 111, b"abcd\0\0\0\0\0\0\0\x02", Shape::Other),
            ("wsd", 3702, b"<?xml version", Shape::Answer(F::WsdAmplification)),
            ("mdns", 5353, b"\0\0\x84\0\0\0\0\x01\0\0\0\0", Shape::Answer(F::MdnsAmplification)),
            ("tftp", 69, b"\0\x03\0\x01data", Shape::Answer(F::TftpAmplification)),
            ("netbios", 137, b"ab\x84\0\0\0\0\x01\0\0\0\0", Shape::Answer(F::NetbiosAmplification)),
            ("qotd", 17, b"\"To be or not to be\"", Shape::Answer(F::QotdAmplification)),
            ("rip", 520, b"\x02\x01\0\0\0\x02\0\0", Shape::Answer(F::Ripv1Amplification)),
            ("openvpn", 1194, b"\x40abcdefgh\0\0\0\0\0", Shape::Answer(F::OpenvpnAmplification)),
            ("ard", 3283, b"\0\x01\x03\xea\0\x31", Shape::Answer(F::ArdAmplification)),
            ("ike", 500, b"abcdefgh\0\0\0\0\0\0\0\0\x01\x10\x02\0", Shape::Answer(F::IsakmpAmplification)),
            ("ike over 4500", 4500, b"\0\0\0\0abcdefghijklmnop\x21\x20\x22\x20", Shape::Answer(F::IsakmpAmplification)),
            ("ubnt", 10001, b"\x01\0\0\x9a\x02", Shape::Answer(F::UbntAmplification)),
            ("dhip", 37810, b"\x20\0\0\0DHIP", Shape::Answer(F::DvrAmplification)),
            ("coap", 5683, b"\x60\x45\x12\x34\xff", Shape::Answer(F::CoapAmplification)),
            ("coap get", 5683, b"\x40\x01\x12\x34\xbb", Shape::Other),
            ("game answer", 27015, b"\xff\xff\xff\xffI\x11name", Shape::Answer(F::UdpAmplification)),
            (
                "game answer from any port",
                27_042,
                b"\xff\xff\xff\xffstatusResponse\n",
                Shape::Answer(F::UdpAmplification),
            ),
            ("tftp from any port", 51_000, b"\0\x05\0\x01File not found\0", Shape::Answer(F::TftpAmplification)),
            ("zeros", 51_000, b"\0\0\0\0\0\0\0\0", Shape::Other),
            ("game query", 27015, b"\xff\xff\xff\xffTSource", Shape::Other),
            ("quic", 443, b"\xc3\0\0\0\x01\x08", Shape::Application),
        ];
        for (name, port, payload, expected) in table {
            assert_eq!(shape(proto::UDP, port, 40_000, payload, long), expected, "{name}");
        }
    }

    #[test]
    fn requests_of_the_web_are_recognised() {
        let table: [(&str, &[u8], Shape); 5] = [
            ("get", b"GET / HTTP/1.1\r\n", Shape::HttpRequest),
            ("http2", b"PRI * HTTP/2.0", Shape::HttpRequest),
            ("slow header", b"X-a: b\r\n", Shape::HttpHeaderLine),
            ("hello", b"\x16\x03\x01\x02\0\x01\0", Shape::TlsHello),
            ("data", b"\x17\x03\x03\x02\0\x01\0", Shape::Other),
        ];
        for (name, payload, expected) in table {
            assert_eq!(shape(proto::TCP, 40_000, 80, payload, payload.len()), expected, "{name}");
        }
    }

    #[test]
    fn a_query_to_port_53_is_a_query_and_filler_is_not() {
        let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03www";
        assert_eq!(shape(proto::UDP, 40_000, 53, query, 40), Shape::DnsQuery);
        assert_eq!(shape(proto::UDP, 40_000, 53, b"XXXXXXXXXXXXXXXX", 1_200), Shape::Filler);
    }

    #[test]
    fn short_payloads_of_any_service_are_no_panic() {
        for port in 0..=u16::MAX {
            for payload in [&b"\x30"[..], b"\xff\xff\xff\xff", b"\0", b"\x30\xff"] {
                shape(proto::UDP, port, 53, payload, payload.len());
            }
        }
    }
}
