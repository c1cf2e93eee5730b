//! Ways to dress a packet so that a filter overlooks it, as they are known from other projects.

use std::net::IpAddr;

use bpf_tests::packet::{FragmentPosition, PacketBuilder, extension};
use ftagent_common::packet::{proto, tcp_flag};

/// EtherTypes of tags: 802.1Q, 802.1ad, and what switches used before 802.1ad.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Port 80: the blocked one of the target.
pub(crate) const PORT: u16 = 80;

/// A frame and what was done to it.
pub(crate) type Disguised = (String, Vec<u8>);

/// TCP to the target's port.
pub(crate) fn plain(src: IpAddr, dst: IpAddr) -> PacketBuilder {
    PacketBuilder::new(src, dst).tcp(40_000, PORT, tcp_flag::ACK).payload(b"GET / HTTP/1.1")
}

/// Where the network header begins in frames without tags.
const L3: usize = 14;

/// Tags of every kind, one and two, with ids and priorities.
pub(crate) fn tagged(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let mut frames = Vec::new();
    for outer in TAGS {
        // Id 0 is a priority tag: the frame belongs to no VLAN.
        for tci in [0x0000, 0x0007, 0x0fff, 0xe000, 0xf007] {
            frames.push((format!("tag {outer:04x} {tci:04x}"), plain(src, dst).vlan(outer, tci).build()));
        }
        for inner in TAGS {
            let frame = plain(src, dst).vlan(outer, 7).vlan(inner, 0xe008).build();
            frames.push((format!("tags {outer:04x} {inner:04x}"), frame));
        }
    }
    frames
}

/// More tags than are looked through.
pub(crate) fn tagged_too_deep(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let mut frames = Vec::new();
    for innermost in TAGS {
        for count in 3..=6 {
            let mut packet = plain(src, dst).vlan(0x88a8, 1);
            for id in 2..count {
                packet = packet.vlan(0x8100, id);
            }
            frames.push((format!("{count} tags, {innermost:04x} inside"), packet.vlan(innermost, 9).build()));
        }
    }
    frames
}

/// IPv4 options of every length, and of the kinds that firewalls stumble over.
pub(crate) fn with_options(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let mut frames: Vec<Disguised> = (1..=10)
        .map(|words| (format!("{} bytes of options", words * 4), plain(src, dst).options(&vec![1; words * 4]).build()))
        .collect();
    let kinds: [(&str, &[u8]); 6] = [
        ("loose source route", &[131, 7, 4, 192, 0, 2, 9]),
        ("strict source route", &[137, 7, 4, 192, 0, 2, 9]),
        ("record route", &[7, 7, 4, 0, 0, 0, 0]),
        ("time stamps", &[68, 8, 5, 0, 0, 0, 0, 0]),
        ("router alert", &[148, 4, 0, 0]),
        ("an option that is longer than the header", &[7, 255, 4, 0]),
    ];
    frames.extend(kinds.iter().map(|(name, option)| ((*name).to_owned(), plain(src, dst).options(option).build())));
    frames
}

/// Fragments: every position, tiny first ones, and those laid over the first one's header.
pub(crate) fn fragments(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let at = |offset, more| FragmentPosition { offset, more, id: 7 };
    let mut frames = Vec::new();
    for (offset, more) in
        [(0, true), (1, true), (1, false), (2, true), (3, false), (185, true), (185, false), (0x1fff, false)]
    {
        let frame = plain(src, dst).fragment(at(offset, more)).payload(&[0; 64]).build();
        frames.push((format!("TCP fragment at {offset}, more {more}"), frame));
        let udp = PacketBuilder::new(src, dst).udp(53, PORT).payload(&[0; 64]).fragment(at(offset, more)).build();
        frames.push((format!("UDP fragment at {offset}, more {more}"), udp));
    }
    for len in 0..20 {
        let header = &[0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0][..len];
        let tiny = PacketBuilder::new(src, dst).protocol(proto::TCP).payload(header).fragment(at(0, true)).build();
        frames.push((format!("first fragment with {len} bytes of TCP"), tiny));
    }
    frames
}

/// IPv6 extension headers: each kind, chains, an atomic fragment.
pub(crate) fn chained(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let kinds = [
        extension::HOP_BY_HOP,
        extension::ROUTING,
        extension::DESTINATION,
        extension::AUTHENTICATION,
        135, // Mobility
        139, // HIP
        140, // Shim6
    ];
    let mut frames = Vec::new();
    for kind in kinds {
        for body in [6, 14, 62, 254] {
            let frame = plain(src, dst).extension(kind, &vec![0; body]).build();
            frames.push((format!("extension header {kind} of {body} bytes"), frame));
        }
    }
    for count in 1..=8 {
        let mut packet = plain(src, dst);
        for place in 0..count {
            packet = packet.extension(kinds[place % kinds.len()], &[0; 14]);
        }
        frames.push((format!("{count} extension headers"), packet.build()));
    }
    let atomic = FragmentPosition { offset: 0, more: false, id: 7 };
    frames.push(("an atomic fragment".to_owned(), plain(src, dst).fragment(atomic).build()));
    let twice = plain(src, dst).extension(extension::FRAGMENT, &[0; 6]).fragment(atomic).build();
    frames.push(("two fragment headers".to_owned(), twice));
    frames
}

/// Chains that nobody looks through to the end: too many headers, or too long ones.
pub(crate) fn chained_too_far(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let mut frames = Vec::new();
    for count in [9, 10, 16, 40] {
        let packet = (0..count).fold(plain(src, dst), |packet, _| packet.extension(extension::DESTINATION, &[0; 6]));
        frames.push((format!("{count} extension headers"), packet.build()));
    }
    let longest = plain(src, dst).extension(extension::DESTINATION, &[0; 2_046]).build();
    frames.push(("an extension header of 2,048 bytes".to_owned(), longest));
    let mut past = plain(src, dst).extension(extension::ROUTING, &[0; 6]).build();
    past[L3 + 41] = 255;
    frames.push(("an extension header that ends behind the packet".to_owned(), past));
    frames
}

/// ICMP or ICMPv6 of kinds that firewalls let through unseen.
pub(crate) fn icmp(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let kinds: &[u8] = if src.is_ipv4() { &[0, 3, 5, 8, 11, 13, 17] } else { &[1, 2, 3, 4, 128, 129, 130, 143, 160] };
    let frame = |kind, ttl| PacketBuilder::new(src, dst).icmp(kind, 0).ttl(ttl).payload(&[0; 24]).build();
    let mut frames: Vec<Disguised> = kinds.iter().map(|k| (format!("ICMP {k}"), frame(*k, 64))).collect();
    frames.extend(kinds.iter().map(|k| (format!("ICMP {k} of this link"), frame(*k, 255))));
    if src.is_ipv6() {
        // Forwarded: not from this link, whatever it says it is.
        frames.extend((133..=137).map(|k| (format!("neighbour discovery {k} of another link"), frame(k, 254))));
    }
    frames
}

/// Lengths that contradict the frame's: each must be refused or read as the shorter one.
pub(crate) fn odd_lengths(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let right = plain(src, dst).build();
    let at = if src.is_ipv4() { L3 + 2 } else { L3 + 4 };
    let own = right.len() - L3 - if src.is_ipv4() { 0 } else { 40 };
    let mut frames = Vec::new();
    for stated in (0..=own + 8).chain([1_500, 0x7fff, 0xffff]) {
        let mut frame = right.clone();
        frame[at..at + 2].copy_from_slice(&(stated as u16).to_be_bytes());
        frames.push((format!("{stated} bytes stated of {own}"), frame));
    }
    for padding in [1, 6, 18, 46, 400] {
        let mut frame = right.clone();
        frame.resize(frame.len() + padding, 0);
        frames.push((format!("{padding} bytes of padding"), frame));
    }
    if src.is_ipv4() {
        for words in 0..=15 {
            let mut frame = right.clone();
            frame[L3] = 0x40 | words;
            frames.push((format!("a header of {words} words"), frame));
        }
    } else {
        // A jumbogram (RFC 2675): length 0 and the option with the real one.
        let jumbo = [0xc2, 4, 0, 1, 0, 0];
        let mut frame = plain(src, dst).extension(extension::HOP_BY_HOP, &jumbo).build();
        frame[at..at + 2].fill(0);
        frames.push(("a jumbogram".to_owned(), frame));
    }
    frames
}

/// The plain frame, with tags and without, cut at every byte that a run may have.
pub(crate) fn cut(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let mut frames = Vec::new();
    for (name, frame) in [("plain", plain(src, dst).build()), ("tagged", plain(src, dst).vlan(0x8100, 7).build())] {
        frames.extend((L3..frame.len()).map(|len| (format!("{name}, cut at {len}"), frame[..len].to_vec())));
    }
    frames
}

/// Frames that carry IP where no host of Linux looks for it. They are not IP, and are counted so.
pub(crate) fn not_ip(src: IpAddr, dst: IpAddr) -> Vec<Disguised> {
    let right = plain(src, dst).build();
    let dressed = |between: &[u8]| [&right[..12], between, &right[L3..]].concat();
    let ip = if src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    let len = ((right.len() - L3 + 8) as u16).to_be_bytes();
    vec![
        ("802.3 with LLC".to_owned(), dressed(&[len[0], len[1], 0x06, 0x06, 0x03])),
        ("802.3 with LLC and SNAP".to_owned(), dressed(&[len[0], len[1], 0xaa, 0xaa, 0x03, 0, 0, 0, ip[0], ip[1]])),
        ("SNAP in a tag".to_owned(), dressed(&[0x81, 0, 0, 7, len[0], len[1], 0xaa, 0xaa, 3, 0, 0, 0, ip[0], ip[1]])),
        ("MPLS".to_owned(), dressed(&[0x88, 0x47, 0, 0, 0x11, 64])),
        ("PPPoE".to_owned(), dressed(&[0x88, 0x64, 0x11, 0, 0, 1, len[0], len[1], 0, 0x21])),
        ("the other family's EtherType's neighbour".to_owned(), dressed(&[ip[0], ip[1] ^ 1])),
    ]
}

/// An EtherType of one family before a header of the other.
pub(crate) fn wrong_family(src: IpAddr, dst: IpAddr) -> Disguised {
    let mut frame = plain(src, dst).build();
    let other = if src.is_ipv4() { [0x86, 0xdd] } else { [0x08, 0x00] };
    frame[12..14].copy_from_slice(&other);
    ("the other family's EtherType".to_owned(), frame)
}

/// In what a packet is carried: GRE with its flags, or the other family's or the same one's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// The first two bytes of the header; checksum, key and sequence number follow where they say so.
    Gre([u8; 2]),
    /// IPIP or 6in4, by what is inside.
    Plain,
}

/// GRE with every set of fields that RFC 2784 and RFC 2890 know.
pub(crate) const CARRIERS: [Carrier; 9] = [
    Carrier::Plain,
    Carrier::Gre([0x00, 0]),
    Carrier::Gre([0x80, 0]),
    Carrier::Gre([0x20, 0]),
    Carrier::Gre([0x10, 0]),
    Carrier::Gre([0xa0, 0]),
    Carrier::Gre([0x90, 0]),
    Carrier::Gre([0x30, 0]),
    Carrier::Gre([0xb0, 0]),
];

/// `inner`, a frame without tags, in a packet of `outer`.
pub(crate) fn carried(outer: PacketBuilder, carrier: Carrier, inner: &[u8]) -> PacketBuilder {
    let (ether_type, packet) = ([inner[12], inner[13]], &inner[L3..]);
    match carrier {
        Carrier::Plain if ether_type == [0x08, 0x00] => outer.protocol(proto::IPIP).payload(packet),
        Carrier::Plain => outer.protocol(proto::SIX_IN_FOUR).payload(packet),
        Carrier::Gre(flags) => {
            let fields = [0x5a; 12];
            let len = (flags[0] & 0b1011_0000).count_ones() as usize * 4;
            outer.protocol(proto::GRE).payload(&[&flags[..], &ether_type, &fields[..len], packet].concat())
        }
    }
}
