//! What is left of addresses without some: how firewalls that only accept are made to block.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::is_v6;

/// The fewest prefixes that cover every address of the family of `v6` but those of `sources`, in order.
pub(super) fn without(sources: &[IpNet], v6: bool) -> Vec<IpNet> {
    minus(if v6 { IpNet::V6(Ipv6Net::default()) } else { IpNet::V4(Ipv4Net::default()) }, sources)
}

/// The fewest prefixes that cover every address of `prefix` but those of `sources`, in order.
pub fn minus(prefix: IpNet, sources: &[IpNet]) -> Vec<IpNet> {
    let sources: Vec<_> = sources.iter().filter(|s| is_v6(s) == is_v6(&prefix)).copied().collect();
    let mut kept = Vec::new();
    split(prefix.trunc(), &sources, &mut kept);
    kept
}

fn split(prefix: IpNet, sources: &[IpNet], kept: &mut Vec<IpNet>) {
    let touching: Vec<_> = sources.iter().filter(|s| prefix.contains(*s) || s.contains(&prefix)).copied().collect();
    if touching.is_empty() {
        kept.push(prefix);
    } else if !touching.iter().any(|s| s.contains(&prefix)) {
        // A source lies within, so the prefix is longer than none and can be halved.
        for half in prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten() {
            split(half, &touching, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_all_but_the_sources() {
        let source: IpNet = "198.51.100.7/32".parse().expect("a prefix");
        let wide: IpNet = "198.51.96.0/20".parse().expect("a prefix");
        let six: IpNet = "2001:db8::/32".parse().expect("a prefix");
        assert_eq!(without(&[source], false).len(), 32);
        assert_eq!(without(&[source, wide], false).len(), 20, "one lies within the other");
        assert_eq!(without(&[six], true).len(), 32);
        assert_eq!(without(&[source], true), ["::/0".parse::<IpNet>().expect("a prefix")]);
        let left = without(&[source, six], false);
        let addresses: u64 = left.iter().map(|p| 1 << (32 - u32::from(p.prefix_len()))).sum();
        assert_eq!(addresses, (1 << 32) - 1);
        assert!(!left.iter().any(|p| p.contains(&source)));
    }
}
