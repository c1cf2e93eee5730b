//! Prefixes as spans of addresses: whether one touches any of many, without asking each.

use std::net::IpAddr;

use ipnet::IpNet;

/// The addresses of some prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// First and last address of each, apart from each other and in order.
    v4: Vec<(u128, u128)>,
    v6: Vec<(u128, u128)>,
}

impl Spans {
    /// Those of `all`.
    pub fn of<'a>(all: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut spans = Self::default();
        for net in all {
            let family = if net.addr().is_ipv4() { &mut spans.v4 } else { &mut spans.v6 };
            family.push(span(net));
        }
        for family in [&mut spans.v4, &mut spans.v6] {
            family.sort_unstable();
            family.dedup_by(|next, before| {
                let is_within = next.0 <= before.1;
                if is_within {
                    before.1 = before.1.max(next.1);
                }
                is_within
            });
        }
        spans
    }

    /// Whether `net` has an address in common with one of them.
    pub fn touch(&self, net: &IpNet) -> bool {
        let (first, last) = span(net);
        let spans = if net.addr().is_ipv4() { &self.v4 } else { &self.v6 };
        let at = spans.partition_point(|(_, end)| *end < first);
        spans.get(at).is_some_and(|(start, _)| *start <= last)
    }
}

fn span(net: &IpNet) -> (u128, u128) {
    let number = |ip| match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    };
    (number(net.network()), number(net.broadcast()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes of a small space, so that they meet often.
    fn net() -> impl Strategy<Value = IpNet> {
        prop_oneof![
            (any::<[u8; 2]>(), 14_u8..=32)
                .prop_map(|([c, d], len)| ([10, 0, c, d], len))
                .prop_map(|(ip, len)| { IpNet::new(ip.into(), len).expect("a length") }),
            (any::<u16>(), 0_u8..=128).prop_map(|(low, len)| {
                IpNet::new([0x2001, 0xdb8, 0, 0, 0, 0, 0, low].into(), len).expect("a length")
            }),
        ]
    }

    proptest! {
        #[test]
        fn one_touches_them_as_it_touches_one_of_them(all in prop::collection::vec(net(), 0..12), asked in net()) {
            let overlap = |a: &IpNet, b: &IpNet| a.contains(b) || b.contains(a);
            let expected = all.iter().any(|one| overlap(&one.trunc(), &asked.trunc()));
            prop_assert_eq!(Spans::of(&all).touch(&asked), expected);
        }
    }
}
