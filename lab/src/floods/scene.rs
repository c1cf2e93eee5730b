//! Traffic of one kind towards one target as a stream of frames: what scenes are made of, and the hosts in them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::vocab::AttackFamily;

use super::{Dice, Spec};

/// Makes one frame after the other, without end.
pub type Stream = Box<dyn FnMut() -> Spec + Send>;

/// Traffic of one kind, after a tool or a service that is known to send it.
pub struct Scene {
    pub name: &'static str,
    /// Families that are a right answer; none for ordinary traffic.
    pub right: &'static [AttackFamily],
    /// Whether there is such a thing over IPv6.
    pub over_ipv6: bool,
    /// Begins the stream towards a target.
    pub begin: fn(Dice, IpAddr) -> Stream,
}

/// A scene over both versions of IP.
pub(super) const fn scene(
    name: &'static str,
    right: &'static [AttackFamily],
    begin: fn(Dice, IpAddr) -> Stream,
) -> Scene {
    Scene { name, right, over_ipv6: true, begin }
}

/// A stream of frames that `make` draws one by one.
pub(super) fn each(mut dice: Dice, mut make: impl FnMut(&mut Dice) -> Spec + Send + 'static) -> Stream {
    Box::new(move || make(&mut dice))
}

/// A stream of bursts that stay together: the fragments of a datagram, the packets of an answer.
pub(super) fn bursts(mut dice: Dice, mut make: impl FnMut(&mut Dice) -> Vec<Spec> + Send + 'static) -> Stream {
    let mut queue = VecDeque::new();
    Box::new(move || {
        while queue.is_empty() {
            queue.extend(make(&mut dice));
        }
        queue.pop_front().expect("it was filled above")
    })
}

/// Streams that share a line: of a hundred frames so many each.
pub fn blend(mut dice: Dice, mut parts: Vec<(u64, Stream)>) -> Stream {
    let all: u64 = parts.iter().map(|(share, _)| share).sum();
    Box::new(move || {
        let mut at = dice.below(all);
        for (share, stream) in &mut parts {
            if at < *share {
                return stream();
            }
            at -= *share;
        }
        unreachable!("the dice stay below the sum")
    })
}

/// First octets in which most access networks are; hosts crowd in the first of them.
const CROWDED: [u8; 48] = [
    84, 91, 185, 78, 95, 177, 189, 201, 190, 113, 117, 122, 103, 36, 27, 1, 14, 49, 58, 61, 73, 24, 68, 98, 71, 2, 5,
    31, 37, 46, 62, 77, 80, 81, 82, 83, 86, 87, 88, 89, 90, 92, 93, 94, 109, 151, 176, 178,
];

/// splitmix64: unlike numbers from like ones.
fn mixed(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The nth host of a group that is told apart from others by `group`.
pub(super) fn host(group: u64, n: u64, like: IpAddr) -> IpAddr {
    let h = mixed(group << 40 ^ n);
    if like.is_ipv4() {
        let draw = (h & 0xffff) as usize;
        // Skewed: half of all are in a seventh of the networks.
        let first = CROWDED[draw * draw / 0xffff * CROWDED.len() / 0x1_0000];
        let [_, b, c, d] = ((h >> 16) as u32).to_be_bytes();
        Ipv4Addr::new(first, b, c, 1 + d % 254).into()
    } else {
        let block = [0x2a02u128, 0x2600, 0x2001, 0x2409][(h & 3) as usize];
        let network = u128::from(h >> 8 & 0xffff_ffff_ffff);
        Ipv6Addr::from(block << 112 | network << 64 | u128::from(mixed(h) | 1)).into()
    }
}

/// One of `count` hosts of a group.
pub(super) fn one_of(dice: &mut Dice, group: u64, count: u64, like: IpAddr) -> IpAddr {
    host(group, dice.below(count), like)
}

fn number(ip: IpAddr) -> u64 {
    mixed(match ip {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64 ^ u128::from(v6) as u64,
    })
}

/// What arrives of a TTL that began at `initial`: fewer by the routers between, which are the same every time.
pub(super) fn far(ip: IpAddr, initial: u8) -> u8 {
    initial - 6 - (number(ip) % 16) as u8
}

/// The TTL of a host with an ordinary system: most begin at 64, some at 128, few at 255.
pub(super) fn ordinary_ttl(ip: IpAddr) -> u8 {
    let initial = match number(ip) >> 32 & 15 {
        0..=9 => 64,
        10..=14 => 128,
        _ => 255,
    };
    far(ip, initial)
}

/// A port of a client that goes with its address and the number of its conversation.
pub(super) fn ephemeral(ip: IpAddr, conversation: u64) -> u16 {
    32_768 + (mixed(number(ip) ^ conversation) % 28_000) as u16
}

/// So many bytes that nobody could guess.
pub(super) fn noise(dice: &mut Dice, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&dice.roll().to_ne_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// So many letters.
pub(super) fn letters(dice: &mut Dice, len: usize) -> Vec<u8> {
    (0..len).map(|_| b'a' + dice.below(26) as u8).collect()
}

/// A UDP datagram.
pub(super) fn udp(src: IpAddr, dst: IpAddr, ports: (u16, u16), payload: Vec<u8>) -> Spec {
    let mut s = Spec::new(src, dst, 17);
    (s.ttl, s.src_port, s.dst_port, s.payload) = (ordinary_ttl(src), ports.0, ports.1, payload);
    s
}

/// A TCP segment.
pub(super) fn tcp(src: IpAddr, dst: IpAddr, ports: (u16, u16), flags: u8, options: usize, payload: Vec<u8>) -> Spec {
    let mut s = Spec::new(src, dst, 6);
    (s.ttl, s.src_port, s.dst_port, s.tcp_flags) = (ordinary_ttl(src), ports.0, ports.1, flags);
    (s.tcp_options, s.payload) = (options, payload);
    s
}

/// What fits into the first fragment of a UDP datagram, and into each further one, at an MTU of 1500.
const FIRST: usize = 1_472;
const FURTHER: usize = 1_480;

/// The datagram as it goes over a line with an MTU of 1500.
pub(super) fn fragmented(mut whole: Spec) -> Vec<Spec> {
    if whole.payload.len() <= FIRST {
        return vec![whole];
    }
    let rest = whole.payload.split_off(FIRST);
    whole.fragment = Some((0, true));
    let later = Spec { src_port: 0, dst_port: 0, payload: Vec::new(), ..whole.clone() };
    let mut all = vec![whole];
    for (n, chunk) in rest.chunks(FURTHER).enumerate() {
        let at = FURTHER * (n + 1);
        let more = (n + 1) * FURTHER < rest.len();
        all.push(Spec { payload: chunk.to_vec(), fragment: Some(((at / 8) as u16, more)), ..later.clone() });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_comes_in_as_many_fragments_as_it_needs() {
        let to: IpAddr = "203.0.113.5".parse().expect("an address");
        let lens = |n: usize| -> Vec<(usize, Option<(u16, bool)>)> {
            fragmented(udp(to, to, (53, 9), vec![1; n])).iter().map(|s| (s.payload.len(), s.fragment)).collect()
        };
        assert_eq!(lens(1_472), [(1_472, None)]);
        assert_eq!(lens(1_473), [(1_472, Some((0, true))), (1, Some((185, false)))]);
        assert_eq!(lens(3_000)[1..], [(1_480, Some((185, true))), (48, Some((370, false)))]);
    }

    #[test]
    fn hosts_are_many_and_stay_where_they_are() {
        for like in ["203.0.113.5", "2001:db8::5"] {
            let like: IpAddr = like.parse().expect("an address");
            let all: std::collections::BTreeSet<IpAddr> = (0..2_000).map(|n| host(3, n, like)).collect();
            assert!(all.len() > 1_990 && all.contains(&host(3, 77, like)), "{}", all.len());
            assert!(all.iter().all(|ip| (30..250).contains(&ordinary_ttl(*ip))));
        }
    }

    #[test]
    fn a_blend_holds_its_shares() {
        let to: IpAddr = "203.0.113.5".parse().expect("an address");
        let part = |protocol| each(Dice(5), move |_| Spec::new(to, to, protocol));
        let mut both = blend(Dice(9), vec![(70, part(6)), (30, part(17))]);
        let tcp = (0..1_000).filter(|_| both().protocol == 6).count();
        assert!((640..760).contains(&tcp), "{tcp}");
    }
}
