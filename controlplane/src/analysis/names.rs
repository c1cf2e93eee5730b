//! What protocols, faults and tunnels are called.

use ftagent_common::packet::{Malformed, Tunnel, proto};

use super::decode::{Decoded, Reading};

/// What people call an IP protocol.
pub(super) fn protocol_name(number: u8) -> Option<&'static str> {
    Some(match number {
        0 => "hopopt",
        proto::ICMP => "icmp",
        2 => "igmp",
        proto::IPIP => "ipip",
        proto::TCP => "tcp",
        proto::UDP => "udp",
        proto::SIX_IN_FOUR => "ipv6",
        proto::GRE => "gre",
        proto::ESP => "esp",
        51 => "ah",
        proto::ICMPV6 => "icmpv6",
        59 => "no_next_header",
        89 => "ospf",
        103 => "pim",
        112 => "vrrp",
        115 => "l2tp",
        132 => "sctp",
        136 => "udplite",
        _ => return None,
    })
}

/// What people call a protocol that is not IP.
pub(super) fn ether_name(ether_type: u16) -> Option<&'static str> {
    Some(match ether_type {
        0..=1_500 => "llc",
        0x0806 => "arp",
        0x8035 => "rarp",
        0x8847 | 0x8848 => "mpls",
        0x8863 | 0x8864 => "pppoe",
        0x888e => "eapol",
        0x88cc => "lldp",
        0x88e5 => "macsec",
        0x8902 => "cfm",
        _ => return None,
    })
}

/// What a packet's protocol is called.
pub(super) fn name_of(decoded: &Decoded<'_>) -> Option<String> {
    match decoded.reading {
        Reading::Ip | Reading::Malformed(_) => {
            let number = decoded.packet.protocol;
            Some(protocol_name(number).map_or_else(|| format!("ip_{number}"), str::to_owned))
        }
        Reading::NotIp => {
            let number = decoded.packet.ether_type;
            Some(ether_name(number).map_or_else(|| format!("ethertype_{number:04x}"), str::to_owned))
        }
        Reading::Unreadable | Reading::Undecoded => None,
    }
}

/// Why a packet is none that rules may judge, in one word.
pub(super) const fn fault(why: Malformed) -> &'static str {
    match why {
        Malformed::Truncated => "truncated",
        Malformed::BadHeader => "bad_header",
        Malformed::TooDeep => "too_deep",
        Malformed::TinyFragment => "tiny_fragment",
        Malformed::MartianSource => "martian_source",
        Malformed::Land => "land",
        Malformed::PortZero => "port_zero",
        Malformed::ImpossibleFlags => "impossible_flags",
        Malformed::BadLength => "bad_length",
    }
}

/// The tunnel that was looked into.
pub(super) const fn tunnel(tunnel: Tunnel) -> Option<&'static str> {
    match tunnel {
        Tunnel::Gre => Some("gre"),
        Tunnel::Ipip => Some("ipip"),
        Tunnel::SixIn => Some("ipv6"),
        Tunnel::None | Tunnel::Closed => None,
    }
}
