//! What ordinary programs send much of over UDP: protocols that fill a line by themselves, and what small servers
//! receive from very many.

use super::payload::printable;

/// Where SIP is spoken, from server to server from port to port (RFC 3261 section 18).
pub(super) const SIP: u16 = 5_060;

/// Where the packets of other networks arrive in UDP. Their source port is a hash of what is inside (RFC 7348 section
/// 5, RFC 8926 section 3.3), so that one sender has thousands.
const VXLAN: [u16; 2] = [4_789, 8_472];
const GENEVE: u16 = 6_081;
const GTP_U: u16 = 2_152;

/// Whether the payload is of such a program; `len` is its whole length, and it is not empty.
pub(super) fn is_any(src_port: u16, dst_port: u16, p: &[u8], len: usize) -> bool {
    let of_web = src_port == 443 || dst_port == 443;
    let of_sip = src_port == SIP || dst_port == SIP;
    quic_long(p, len)
        || of_web && quic_short(p, len)
        || rtp(p, len)
        || stun(p, len)
        || dtls(p)
        || wireguard(p, len)
        || dst_port == 123 && ntp_query(p, len)
        || of_sip && sip(p)
        || VXLAN.contains(&dst_port) && p.len() >= 8 && p[0] & 0xf7 == 0 && p[0] & 8 != 0 && p[7] == 0
        || dst_port == GENEVE && p[0] >> 6 == 0 && matches!(p.get(2..4), Some([0x65, 0x58] | [8, 0] | [0x86, 0xdd]))
        || dst_port == GTP_U && p[0] & 0xf0 == 0x30 && p.get(1) == Some(&0xff)
}

/// Long headers of known versions (RFC 9000 section 17.2).
fn quic_long(p: &[u8], len: usize) -> bool {
    p[0] & 0xc0 == 0xc0
        && len >= 40
        && matches!(p.get(1..5), Some([0, 0, 0, 1] | [0x6b, 0x33, 0x43, 0xcf] | [b'Q', _, _, _] | [0xff, 0, 0, _]))
}

/// A short header shows its fixed bit alone (RFC 9000 section 17.3): what follows must look encrypted at least.
fn quic_short(p: &[u8], len: usize) -> bool {
    p[0] & 0xc0 == 0x40 && len >= 21 && p.len() >= 12 && !printable(p) && p[1..].iter().any(|byte| *byte != p[1])
}

fn rtp(p: &[u8], len: usize) -> bool {
    p[0] & 0xc0 == 0x80
        && len >= 20
        && p.get(1).is_some_and(|kind| !(64..96).contains(&(kind & 0x7f)) && p[0] & 0x0f <= 4)
        && p.get(2..).is_some_and(|rest| rest.iter().any(|byte| *byte != p[0]))
}

fn stun(p: &[u8], len: usize) -> bool {
    len >= 20 && p[0] < 2 && p.get(4..8) == Some(&[0x21, 0x12, 0xa4, 0x42])
}

fn dtls(p: &[u8]) -> bool {
    matches!(p[0], 20..=23) && p.get(1) == Some(&0xfe)
}

fn wireguard(p: &[u8], len: usize) -> bool {
    matches!(p[0], 1..=4) && p.get(1..4) == Some(&[0, 0, 0]) && len >= 32
}

/// A client's question for the time: mode 3, or 1 of a peer (RFC 5905 section 7.3), with or without a digest.
fn ntp_query(p: &[u8], len: usize) -> bool {
    matches!(len, 48 | 68 | 72) && matches!(p[0] & 7, 1 | 3) && matches!(p[0] >> 3 & 7, 1..=4)
}

fn sip(p: &[u8]) -> bool {
    const BEGINS: [&[u8]; 9] =
        [b"REGISTER ", b"INVITE ", b"OPTIONS ", b"ACK ", b"BYE ", b"CANCEL ", b"SUBSCRIBE ", b"NOTIFY ", b"SIP/2.0 "];
    BEGINS.iter().any(|begin| p.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_from_filler_and_text() {
        let noise = b"\x5a\x91\x03\xfe\x77\x80\x12\xc4\x9d\x00\x41\xe8\x33\xba";
        let table: [(&str, u16, u16, &[u8], bool); 14] = [
            ("quic, first packet", 40_000, 443, b"\xc3\0\0\0\x01\x08", true),
            ("quic, later packet", 40_000, 443, noise, true),
            ("the same elsewhere", 40_000, 7_777, noise, false),
            ("letters to 443", 40_000, 443, b"A cat is fine too. Desudesudesu~", false),
            ("one letter to 443", 40_000, 443, &[b'X'; 32], false),
            ("question for the time", 40_000, 123, b"\x23\0\x06\xec", true),
            ("list of monitors", 40_000, 123, b"\x17\0\x03\x2a", false),
            ("vxlan", 50_123, 4_789, b"\x08\0\0\0\0\0\x2a\0", true),
            ("noise to the port of vxlan", 50_123, 4_789, b"\x98\x12\x55\x01\x09\x77\x2a\x41", false),
            ("geneve", 50_123, 6_081, b"\0\0\x65\x58\0\0\x01\0", true),
            ("gtp", 50_123, 2_152, b"\x30\xff\0\x54", true),
            ("sip", 5_060, 5_060, b"REGISTER sip:example.com", true),
            ("rtp", 20_000, 30_000, b"\x80\x08\x01\x02\x03", true),
            ("filler that begins like rtp", 20_000, 30_000, &[0x80; 32], false),
        ];
        for (name, from, to, payload, expected) in table {
            let len = if to == 123 { 48 } else { 200 };
            assert_eq!(is_any(from, to, payload, len), expected, "{name}");
        }
        for len in 1..40 {
            is_any(443, 443, &[0x41; 40][..len], len);
        }
    }
}
