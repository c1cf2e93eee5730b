//! Keeps IPv6 prefixes off IPv4 addresses. The tries hold both families, IPv4 mapped into `::ffff:0:0/96` (RFC 4291
//! section 2.5.5.2), so that `::/0` would be found for an IPv4 address that has no entry of its own. Pure.

use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv6Net};

/// All of IPv4 as the tries have it.
const MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
const MAPPED_LEN: u8 = 96;

/// Whether an IPv6 prefix has all IPv4 addresses in it.
pub(super) fn has_mapped(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(_) => false,
        IpNet::V6(v6) => v6.prefix_len() < MAPPED_LEN && v6.contains(&MAPPED),
    }
}

/// The prefix, or what is left of it without IPv4: at most 96 prefixes.
pub(super) fn without_mapped(prefix: IpNet) -> Vec<IpNet> {
    if !has_mapped(prefix) {
        return vec![prefix];
    }
    // At each length there is the half with IPv4 in it, which the next length divides, and the other one.
    let lengths = prefix.prefix_len() + 1..=MAPPED_LEN;
    let other_half = |len: u8| {
        let bit = 1u128 << (128 - u32::from(len));
        Ipv6Net::new(Ipv6Addr::from(u128::from(MAPPED) ^ bit), len).ok()
    };
    lengths.filter_map(other_half).map(|half| IpNet::V6(half.trunc())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    #[test]
    fn what_is_left_of_everything_is_everything_but_ipv4() {
        for all in ["::/0", "::/1", "::/64", "::/80", "::fffe:0:0/95"].map(net) {
            let parts = without_mapped(all);
            assert_eq!(parts.len(), usize::from(MAPPED_LEN - all.prefix_len()));
            assert!(parts.iter().all(|part| all.contains(part) && !part.contains(&IpNet::V6(MAPPED.into()))), "{all}");
            // They do not overlap, and with IPv4 they are as large as the whole.
            let size = |len: u8| if len == 0 { None } else { Some(1u128 << (128 - u32::from(len))) };
            let sum = parts.iter().filter_map(|p| size(p.prefix_len())).fold(1u128 << 32, u128::wrapping_add);
            assert_eq!(sum, size(all.prefix_len()).unwrap_or(0), "{all}");
        }
        assert!(without_mapped(net("::/0")).iter().any(|part| part.contains(&net("2001:db8::/32"))));
    }

    #[test]
    fn other_prefixes_stay_as_they_are() {
        for text in ["0.0.0.0/0", "192.0.2.0/24", "2000::/3", "::1/128", "::/96", "fd99::/64"] {
            assert_eq!(without_mapped(net(text)), [net(text)]);
        }
    }
}
