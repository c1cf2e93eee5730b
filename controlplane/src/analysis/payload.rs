//! What the first bytes after the headers say: answers of services that are used for reflection, requests of the web.

use ftagent_common::packet::{Fragment, Packet, proto};
use ftagent_common::services::amplification_of_port;
use ftagent_common::vocab::AttackFamily;

/// What a payload looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// An answer of a reflected service.
    Answer(AttackFamily),
    /// From the port of such a service, of another form, or the capture has too little of it to tell.
    FromPort(AttackFamily),
    HttpRequest,
    /// A header line without a request before it: what slow attacks drip.
    HttpHeaderLine,
    TlsHello,
    Other,
}

/// Recognises the payload of `packet`; `len` is its whole length.
pub(super) fn shape(packet: &Packet, payload: &[u8], len: u32) -> Shape {
    if matches!(packet.fragment, Fragment::Middle | Fragment::Last) || len == 0 {
        return Shape::Other;
    }
    match packet.protocol {
        proto::UDP => udp(packet.src_port, packet.dst_port, payload, len),
        proto::TCP => tcp(payload),
        _ => Shape::Other,
    }
}

fn tcp(p: &[u8]) -> Shape {
    const METHODS: [&[u8]; 9] =
        [b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"PRI * "];
    if METHODS.iter().any(|method| p.starts_with(method)) {
        return Shape::HttpRequest;
    }
    if p.len() >= 6 && p[0] == 0x16 && p[1] == 3 && p[5] == 1 {
        return Shape::TlsHello;
    }
    // A token, a colon, a space (RFC 9110 section 5.6.2).
    let name = p.iter().take_while(|c| c.is_ascii_alphanumeric() || **c == b'-').count();
    let is_line = (1..=24).contains(&name) && p[0].is_ascii_alphabetic() && p[name..].starts_with(b": ");
    if is_line { Shape::HttpHeaderLine } else { Shape::Other }
}

fn udp(src_port: u16, dst_port: u16, p: &[u8], len: u32) -> Shape {
    // Devices behind address translation answer from any port; these beginnings no other protocol has.
    if p.starts_with(b"HTTP/1.1 200") {
        return Shape::Answer(AttackFamily::SsdpAmplification);
    }
    if p.get(4..8) == Some(b"DHIP") {
        return Shape::Answer(AttackFamily::DvrAmplification);
    }
    // Key exchange behind address translation, after its marker (RFC 3948 section 2.2).
    if src_port == 4_500 && p.starts_with(&[0; 4]) && is_answer(AttackFamily::IsakmpAmplification, &p[4..], len) {
        return Shape::Answer(AttackFamily::IsakmpAmplification);
    }
    let Some(family) = amplification_of_port(src_port) else { return Shape::Other };
    if is_answer(family, p, len) && (src_port != dst_port || family == AttackFamily::NtpAmplification) {
        return Shape::Answer(family);
    }
    // Peers speak from port to port; a time server's ordinary answer amplifies nothing.
    if src_port == dst_port || family == AttackFamily::NtpAmplification && !p.is_empty() {
        return Shape::Other;
    }
    Shape::FromPort(family)
}

/// Whether a payload has the form of the service's answers.
fn is_answer(family: AttackFamily, p: &[u8], len: u32) -> bool {
    use AttackFamily as F;
    let Some(&first) = p.first() else { return false };
    let second = p.get(1).copied().unwrap_or(0);
    let is_text = || p.iter().filter(|c| c.is_ascii_graphic() || c.is_ascii_whitespace()).count() * 10 >= p.len() * 8;
    match family {
        // RFC 1035 section 4.1.1: the response bit; NetBIOS and multicast DNS share the header.
        F::DnsAmplification | F::MdnsAmplification | F::NetbiosAmplification => {
            len >= 12 && p.get(2).is_some_and(|flags| flags & 0x80 != 0)
        }
        // Modes 6 and 7 with their response bits (RFC 9327 section 2).
        F::NtpAmplification => match first & 7 {
            7 => first & 0x80 != 0 && len >= 8,
            6 => second & 0x80 != 0 && len >= 12,
            _ => false,
        },
        F::MemcachedAmplification => len > 8 && p.get(6..8) == Some(&[0, 0]),
        F::SsdpAmplification => p.starts_with(b"NOTIFY * HTTP/1.1"),
        F::CldapAmplification | F::SnmpAmplification => first == 0x30 && is_ber_answer(family, p),
        F::ChargenAmplification | F::QotdAmplification => is_text(),
        F::RpcbindAmplification => p.get(4..8) == Some(&[0, 0, 0, 1]),
        F::WsdAmplification => p.strip_prefix(b"\xef\xbb\xbf").unwrap_or(p).first() == Some(&b'<'),
        F::TftpAmplification => first == 0 && matches!(second, 3 | 5 | 6),
        F::Ripv1Amplification => len >= 24 && first == 2 && matches!(second, 1 | 2),
        F::OpenvpnAmplification => matches!(first >> 3, 2 | 8) && len >= 14,
        F::ArdAmplification => len >= 100 && first == 0,
        // RFC 7296 section 3.1: the version.
        F::IsakmpAmplification => len >= 28 && p.get(17).is_some_and(|v| matches!(v >> 4, 1 | 2)),
        F::UbntAmplification => len > 4 && matches!(first, 1 | 2) && matches!(second, 0 | 6 | 9..=11),
        F::DvrAmplification => len >= 100 || first == b'{',
        // RFC 7252 section 3: a code of an answer.
        F::CoapAmplification => first >> 6 == 1 && (2..=5).contains(&(second >> 5)),
        _ => false,
    }
}

/// The operation behind the first fields of a BER message: a search's entry or end (RFC 4511), a response (RFC 3416).
fn is_ber_answer(family: AttackFamily, p: &[u8]) -> bool {
    let next = |at: usize| Some(at + 2 + usize::from(*p.get(at + 1)?));
    let body = match p.get(1) {
        Some(n) if *n < 0x80 => 2,
        Some(n) => 2 + usize::from(n & 0x7f),
        None => return false,
    };
    // A message's number, or the version and the community.
    let operation = match family {
        AttackFamily::CldapAmplification => next(body),
        _ => next(body).and_then(next),
    };
    let is_answer = |tag: &u8| match family {
        AttackFamily::CldapAmplification => matches!(tag, 0x64 | 0x65),
        _ => matches!(tag, 0xa2 | 0xa8),
    };
    p.get(body) == Some(&2) && operation.is_some_and(|at| p.get(at).is_some_and(is_answer))
}

#[cfg(test)]
mod tests {
    use super::*;
    use AttackFamily as F;

    fn packet(protocol: u8, src_port: u16, dst_port: u16) -> Packet {
        Packet { protocol, src_port, dst_port, ..Packet::EMPTY }
    }

    #[test]
    fn answers_are_told_from_questions_and_from_others_on_the_same_port() {
        let table: [(&str, u16, &[u8], Shape); 14] = [
            ("dns answer", 53, b"\x12\x34\x81\x80\0\x01\0\x20\0\0\0\x01", Shape::Answer(F::DnsAmplification)),
            ("dns question", 53, b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0", Shape::FromPort(F::DnsAmplification)),
            ("monlist", 123, b"\xd7\x00\x03\x2a\0\x06\0\x48", Shape::Answer(F::NtpAmplification)),
            ("time", 123, b"\x24\x01\0\xe9", Shape::Other),
            ("time, cut off", 123, b"", Shape::FromPort(F::NtpAmplification)),
            ("memcached", 11211, b"\0\0\0\x01\0\x05\0\0VALUE a", Shape::Answer(F::MemcachedAmplification)),
            ("ssdp from any port", 2051, b"HTTP/1.1 200 OK\r\n", Shape::Answer(F::SsdpAmplification)),
            ("cldap", 389, b"\x30\x84\0\0\x0b\x7b\x02\x01\x07\x64\x84", Shape::Answer(F::CldapAmplification)),
            ("cldap search", 389, b"\x30\x25\x02\x01\x01\x63\x20", Shape::FromPort(F::CldapAmplification)),
            ("snmp", 161, b"\x30\x82\x05\x10\x02\x01\x01\x04\x06public\xa2\x82", Shape::Answer(F::SnmpAmplification)),
            ("a game's server", 27_015, b"\xff\xff\xff\xffI\x11name", Shape::Other),
            ("quic", 443, b"\xc3\0\0\0\x01\x08", Shape::Other),
            ("dhip", 50_000, b"\x20\0\0\0DHIP", Shape::Answer(F::DvrAmplification)),
            ("ike", 500, b"abcdefgh\0\0\0\0\0\0\0\0\x01\x10\x02\0", Shape::Answer(F::IsakmpAmplification)),
        ];
        for (name, port, payload, expected) in table {
            assert_eq!(shape(&packet(proto::UDP, port, 40_000), payload, 200), expected, "{name}");
        }
        assert_eq!(shape(&packet(proto::UDP, 5_353, 5_353), b"\0\0\x84\0\0\0\0\x01\0\0\0\0", 50), Shape::Other);
    }

    #[test]
    fn requests_of_the_web_are_recognised() {
        for (payload, expected) in [
            (&b"GET / HTTP/1.1\r\n"[..], Shape::HttpRequest),
            (b"X-a: b\r\n", Shape::HttpHeaderLine),
            (b"\x16\x03\x01\x02\0\x01\0", Shape::TlsHello),
            (b"\x17\x03\x03\x02\0\x01\0", Shape::Other),
            (b"", Shape::Other),
        ] {
            assert_eq!(shape(&packet(proto::TCP, 40_000, 80), payload, 16), expected, "{payload:?}");
        }
    }

    #[test]
    fn short_payloads_of_any_service_are_no_panic() {
        for port in 0..=u16::MAX {
            for payload in [&b"\x30"[..], b"\x30\xff", b"\x30\x01\x02", b"\x30\x01\x02\xff", b"\0", b"\xff", b""] {
                shape(&packet(proto::UDP, port, 9), payload, 1);
            }
        }
    }
}
