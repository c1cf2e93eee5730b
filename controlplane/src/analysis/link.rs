//! Link layers: where the network header begins. Numbers are those of tcpdump.org's registry (`LINKTYPE_…`).

use std::borrow::Cow;

/// The link type of a packet whose interface is not described.
pub(super) const NONE: u32 = u32::MAX;

const NULL: u32 = 0;
const ETHERNET: u32 = 1;
const PPP: u32 = 9;
const PPP_HDLC: u32 = 50;
const LOOP: u32 = 108;
const SLL: u32 = 113;
const SLL2: u32 = 276;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Where the parser is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// An Ethernet header, as the parser expects it.
    Ethernet,
    /// What follows the header of the link layer, and its EtherType.
    At { ether_type: u16, at: usize },
    /// A link layer that is read, and a header that is cut or says nothing about a protocol.
    Unreadable,
    /// A link layer that is not read.
    Undecoded,
}

/// Finds the network header of a packet.
pub(super) fn place(link: u32, head: &[u8]) -> Place {
    let be16 = |at: usize| Some(u16::from_be_bytes([*head.get(at)?, *head.get(at + 1)?]));
    let found = match link {
        ETHERNET => return Place::Ethernet,
        // Raw IP has had a number of its own on several systems.
        12 | 14 | 101 | 228 | 229 => by_version(head).map(|ether_type| (ether_type, 0)),
        NULL | LOOP => family(head).map(|ether_type| (ether_type, 4)),
        SLL => be16(14).map(|ether_type| (ether_type, 16)),
        SLL2 => be16(0).filter(|_| head.len() >= 20).map(|ether_type| (ether_type, 20)),
        PPP | PPP_HDLC => {
            // Address and control, unless they were compressed away (RFC 1662).
            let at = if head.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
            match be16(at) {
                Some(0x0021) => Some((IPV4, at + 2)),
                Some(0x0057) => Some((IPV6, at + 2)),
                _ => None,
            }
        }
        _ => return Place::Undecoded,
    };
    found.map_or(Place::Unreadable, |(ether_type, at)| Place::At { ether_type, at })
}

fn by_version(head: &[u8]) -> Option<u16> {
    match head.first()? >> 4 {
        4 => Some(IPV4),
        6 => Some(IPV6),
        _ => None,
    }
}

/// The address family, in the byte order of whichever machine captured: its number fits one byte everywhere.
fn family(head: &[u8]) -> Option<u16> {
    let family = match head.get(..4)? {
        [low, 0, 0, 0] | [0, 0, 0, low] => *low,
        _ => return None,
    };
    match family {
        2 => Some(IPV4),
        // Linux, NetBSD, FreeBSD and Darwin each have their own.
        10 | 24 | 28 | 30 => Some(IPV6),
        _ => None,
    }
}

/// What people call a link layer.
pub(super) fn name(link: u32) -> Cow<'static, str> {
    Cow::Borrowed(match link {
        NULL => "null",
        ETHERNET => "ethernet",
        6 => "ieee802_5",
        PPP => "ppp",
        12 | 14 | 101 => "raw",
        PPP_HDLC => "ppp_hdlc",
        51 => "ppp_ether",
        104 => "c_hdlc",
        105 => "ieee802_11",
        107 => "frame_relay",
        LOOP => "loop",
        SLL => "linux_sll",
        117 => "pflog",
        127 => "ieee802_11_radiotap",
        189 | 220 => "usb_linux",
        192 => "ppi",
        195 => "ieee802_15_4",
        228 => "ipv4",
        229 => "ipv6",
        239 => "nflog",
        253 => "netlink",
        SLL2 => "linux_sll2",
        NONE => "unknown",
        other => return Cow::Owned(format!("linktype_{other}")),
    })
}

/// Whether packets of the link layer are looked into.
pub(super) fn is_decoded(link: u32) -> bool {
    place(link, &[]) != Place::Undecoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_header_is_found_behind_every_link_layer() {
        let with = |header: &[u8], ip: u8| [header, &[ip, 1, 2, 3]].concat();
        let mut sll = [0; 16];
        sll[14] = 8;
        let mut sll2 = [0; 20];
        sll2[..2].copy_from_slice(&[0x86, 0xdd]);
        for (name, link, head, expected) in [
            ("ethernet", 1, vec![], Place::Ethernet),
            ("raw", 101, with(&[], 0x45), Place::At { ether_type: IPV4, at: 0 }),
            ("raw, of BSD", 12, with(&[], 0x60), Place::At { ether_type: IPV6, at: 0 }),
            ("raw, of OpenBSD", 14, with(&[], 0x45), Place::At { ether_type: IPV4, at: 0 }),
            ("ipv4", 228, with(&[], 0x45), Place::At { ether_type: IPV4, at: 0 }),
            ("ipv6", 229, with(&[], 0x60), Place::At { ether_type: IPV6, at: 0 }),
            ("raw, of no version", 101, with(&[], 0x15), Place::Unreadable),
            ("null, little endian", 0, with(&[2, 0, 0, 0], 0x45), Place::At { ether_type: IPV4, at: 4 }),
            ("null, big endian", 0, with(&[0, 0, 0, 30], 0x60), Place::At { ether_type: IPV6, at: 4 }),
            ("loop", 108, with(&[0, 0, 0, 24], 0x60), Place::At { ether_type: IPV6, at: 4 }),
            ("null, of another family", 0, with(&[7, 0, 0, 0], 0x60), Place::Unreadable),
            ("ppp", 9, with(&[0x00, 0x21], 0x45), Place::At { ether_type: IPV4, at: 2 }),
            ("ppp in hdlc framing", 9, with(&[0xff, 0x03, 0x00, 0x57], 0x60), Place::At { ether_type: IPV6, at: 4 }),
            ("lcp", 9, with(&[0xc0, 0x21], 0x45), Place::Unreadable),
            ("sll", 113, with(&sll, 0x45), Place::At { ether_type: IPV4, at: 16 }),
            ("sll2", 276, with(&sll2, 0x60), Place::At { ether_type: IPV6, at: 20 }),
            ("sll, cut", 113, vec![0; 15], Place::Unreadable),
            ("sll2, cut", 276, vec![8; 19], Place::Unreadable),
            ("802.11", 105, vec![0; 64], Place::Undecoded),
            ("none", NONE, vec![0; 64], Place::Undecoded),
        ] {
            assert_eq!(place(link, &head), expected, "{name}");
        }
        assert_eq!((name(105), name(4_711)), ("ieee802_11".into(), "linktype_4711".into()));
        assert!(is_decoded(0) && !is_decoded(127));
    }
}
