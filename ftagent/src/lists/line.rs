//! One line of a list, in any of the forms that lists are kept in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};

use super::report::Kind;

/// Bytes of a line that is still read; the longest entries of known lists have a tenth of it.
pub(super) const MAX_LINE: usize = 1_024;

/// What a line says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Nothing, or a comment.
    Nothing,
    /// One prefix; `masked`: the line had host bits.
    Net { net: IpNet, masked: bool },
    /// Addresses from one to another.
    Range(Vec<IpNet>),
}

/// Reads a line without its line feed.
///
/// # Errors
/// Why it is skipped.
pub(super) fn parse(line: &[u8]) -> Result<Parsed, Kind> {
    if line.len() > MAX_LINE {
        return Err(Kind::TooLong);
    }
    let text = std::str::from_utf8(line).map_err(|_| Kind::NotText)?;
    let text = without_comment(text).trim();
    if text.is_empty() {
        return Ok(Parsed::Nothing);
    }
    let (column, rest) = text.split_once(',').unwrap_or((text, ""));
    let (token, after) = column.trim().split_once(char::is_whitespace).unwrap_or((column.trim(), ""));
    let (token, after) = (unquoted(token), after.trim_start());
    if let Some((first, last)) = token.split_once('-') {
        return range(address(first)?, address(last)?);
    }
    if let Some(last) = after.strip_prefix('-').and_then(|words| address(word(words)).ok()) {
        return range(address(token)?, last);
    }
    if let Some((ip, length)) = token.split_once('/') {
        return prefix(address(ip)?, length);
    }
    let ip = address(token)?;
    // Tables of "first, last" would lose all but the first address of each line.
    if [after, rest].iter().any(|next| address(unquoted(word(next))).is_ok()) {
        return Err(Kind::TwoAddresses);
    }
    Ok(Parsed::Net { net: canonical(ip).into(), masked: false })
}

/// What comes before a comment: `#`, `;` or `//`.
fn without_comment(text: &str) -> &str {
    let end = text.find(['#', ';']).unwrap_or(text.len());
    let text = &text[..end];
    text.find("//").map_or(text, |end| &text[..end])
}

/// The first word.
fn word(text: &str) -> &str {
    text.split(|c: char| c.is_whitespace() || c == ',').find(|word| !word.is_empty()).unwrap_or("")
}

fn unquoted(text: &str) -> &str {
    text.trim_matches('"')
}

fn address(text: &str) -> Result<IpAddr, Kind> {
    // The IPv4 parser first: it is what nearly every line has, and it gives up at the first colon.
    let text = text.trim();
    let parsed = text.parse().map(IpAddr::V4).or_else(|_| text.parse().map(IpAddr::V6));
    parsed.map_err(|_| Kind::NotPrefix)
}

/// IPv4 as IPv6 writes it (`::ffff:198.51.100.7`) is IPv4: no packet carries such a source.
fn canonical(ip: IpAddr) -> IpAddr {
    ip.to_canonical()
}

fn prefix(ip: IpAddr, length: &str) -> Result<Parsed, Kind> {
    let length = length.trim();
    let net = match (ip, length.parse::<u8>()) {
        (IpAddr::V4(v4), Ok(length)) => Ipv4Net::new(v4, length).ok().map(IpNet::V4),
        (IpAddr::V6(v6), Ok(length)) => Ipv6Net::new(v6, length).ok().map(unmapped),
        (IpAddr::V4(v4), Err(_)) => {
            let mask: Ipv4Addr = length.parse().map_err(|_| Kind::NotPrefix)?;
            Some(Ipv4Net::with_netmask(v4, mask).map_err(|_| Kind::BadMask)?.into())
        }
        (IpAddr::V6(_), Err(_)) => None,
    };
    let net = net.ok_or(Kind::NotPrefix)?;
    let masked = net.trunc() != net;
    Ok(Parsed::Net { net: net.trunc(), masked })
}

fn unmapped(net: Ipv6Net) -> IpNet {
    match (net.addr().to_ipv4_mapped(), net.prefix_len().checked_sub(96)) {
        (Some(v4), Some(length)) => Ipv4Net::new(v4, length).map_or(IpNet::V6(net), IpNet::V4),
        _ => IpNet::V6(net),
    }
}

fn range(first: IpAddr, last: IpAddr) -> Result<Parsed, Kind> {
    let nets: Vec<IpNet> = match (canonical(first), canonical(last)) {
        (IpAddr::V4(first), IpAddr::V4(last)) if first <= last => {
            Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
        }
        (IpAddr::V6(first), IpAddr::V6(last)) if first <= last => split6(first, last),
        _ => return Err(Kind::BadRange),
    };
    Ok(Parsed::Range(nets))
}

fn split6(first: Ipv6Addr, last: Ipv6Addr) -> Vec<IpNet> {
    Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect(text)
    }

    fn check(line: &str, expected: Result<&str, Kind>) {
        let got = parse(line.as_bytes());
        match expected {
            Ok("") => assert_eq!(got, Ok(Parsed::Nothing), "{line:?}"),
            Ok(text) => match got {
                Ok(Parsed::Net { net: found, .. }) => assert_eq!(found, net(text), "{line:?}"),
                other => panic!("{line:?}: {other:?} is not {text}"),
            },
            Err(kind) => assert_eq!(got, Err(kind), "{line:?}"),
        }
    }

    #[test]
    fn lines_as_lists_have_them() {
        for (line, expected) in [
            ("", Ok("")),
            ("   \t ", Ok("")),
            ("\r", Ok("")),
            ("# a comment", Ok("")),
            ("; another", Ok("")),
            ("// a third", Ok("")),
            ("198.51.100.7", Ok("198.51.100.7/32")),
            ("198.51.100.7\r", Ok("198.51.100.7/32")),
            ("  198.51.100.0/24  # trailing", Ok("198.51.100.0/24")),
            ("198.51.100.0/24 // trailing", Ok("198.51.100.0/24")),
            ("198.51.100.0/24//trailing", Ok("198.51.100.0/24")),
            ("198.51.100.0/24 ; SBL123", Ok("198.51.100.0/24")),
            ("198.51.100.0/24;SBL123", Ok("198.51.100.0/24")),
            ("198.51.100.0/255.255.255.0", Ok("198.51.100.0/24")),
            ("198.51.100.7/32,2026-01-02,scanner", Ok("198.51.100.7/32")),
            ("\"198.51.100.0/24\",\"AS64500\",\"x, y\"", Ok("198.51.100.0/24")),
            ("198.51.100.7 scanner seen often", Ok("198.51.100.7/32")),
            ("198.51.100.7 - scanner", Ok("198.51.100.7/32")),
            ("198.51.100.7\t12\t2026", Ok("198.51.100.7/32")),
            ("2001:db8::1", Ok("2001:db8::1/128")),
            ("2001:DB8::/32 ; SBL9", Ok("2001:db8::/32")),
            ("::ffff:198.51.100.7", Ok("198.51.100.7/32")),
            ("::ffff:198.51.100.0/120", Ok("198.51.100.0/24")),
            ("0.0.0.0/0", Ok("0.0.0.0/0")),
            ("198.51.100.7/33", Err(Kind::NotPrefix)),
            ("198.51.100.7/-1", Err(Kind::NotPrefix)),
            ("198.51.100.7/", Err(Kind::NotPrefix)),
            ("198.51.100.7/255.0.255.0", Err(Kind::BadMask)),
            ("198.51.100.7/0.0.0.255", Err(Kind::BadMask)),
            ("2001:db8::/129", Err(Kind::NotPrefix)),
            ("2001:db8::/ffff::", Err(Kind::NotPrefix)),
            ("198.51.100", Err(Kind::NotPrefix)),
            ("198.51.100.256", Err(Kind::NotPrefix)),
            ("010.1.2.3", Err(Kind::NotPrefix)),
            ("198.51.100.7:80", Err(Kind::NotPrefix)),
            ("fe80::1%eth0", Err(Kind::NotPrefix)),
            ("network,country", Err(Kind::NotPrefix)),
            ("<html>", Err(Kind::NotPrefix)),
            ("198.51.100.9-198.51.100.1", Err(Kind::BadRange)),
            ("198.51.100.9-2001:db8::1", Err(Kind::BadRange)),
            ("198.51.100.9-x", Err(Kind::NotPrefix)),
            ("198.51.100.0,198.51.100.255,XX", Err(Kind::TwoAddresses)),
            ("198.51.100.0\t198.51.100.255\t24", Err(Kind::TwoAddresses)),
        ] {
            check(line, expected);
        }
    }

    #[test]
    fn host_bits_are_cut_and_said() {
        let masked = Parsed::Net { net: net("10.0.0.0/8"), masked: true };
        assert_eq!(parse(b"10.1.2.3/8"), Ok(masked));
        assert_eq!(parse(b"2001:db8::1/32"), Ok(Parsed::Net { net: net("2001:db8::/32"), masked: true }));
        assert_eq!(parse(b"10.0.0.0/8"), Ok(Parsed::Net { net: net("10.0.0.0/8"), masked: false }));
    }

    #[test]
    fn ranges_become_prefixes() {
        for line in ["198.51.100.6-198.51.100.9", "198.51.100.6 - 198.51.100.9 # x", "198.51.100.6 -198.51.100.9,XX"] {
            let expected = ["198.51.100.6/31", "198.51.100.8/31"].map(net).to_vec();
            assert_eq!(parse(line.as_bytes()), Ok(Parsed::Range(expected)), "{line}");
        }
        let all = Parsed::Range(vec![net("0.0.0.0/0")]);
        assert_eq!(parse(b"0.0.0.0-255.255.255.255"), Ok(all));
        let six = ["2001:db8::1/128", "2001:db8::2/127"].map(net).to_vec();
        assert_eq!(parse(b"2001:db8::1-2001:db8::3"), Ok(Parsed::Range(six)));
    }

    #[test]
    fn what_is_no_text_or_too_long_is_skipped() {
        assert_eq!(parse(b"198.51.100.7 \xff"), Err(Kind::NotText));
        let long = [b"198.51.100.7 # ".as_slice(), &[b'x'; MAX_LINE]].concat();
        assert_eq!(parse(&long), Err(Kind::TooLong));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_skipped(line in prop::collection::vec(any::<u8>(), 0..60)) {
            // Neither a panic nor anything that was not written.
            if let Ok(Parsed::Net { net, .. }) = parse(&line) {
                prop_assert_eq!(net, net.trunc());
            }
        }

        #[test]
        fn a_range_is_covered_exactly(first: u32, size in 0u32..1 << 20) {
            let last = first.saturating_add(size);
            let line = format!("{}-{}", Ipv4Addr::from(first), Ipv4Addr::from(last));
            let Ok(Parsed::Range(nets)) = parse(line.as_bytes()) else { panic!("{line}") };
            let mut next = u64::from(first);
            for net in nets {
                let IpNet::V4(net) = net else { panic!("{line}: {net}") };
                prop_assert_eq!(u64::from(u32::from(net.network())), next);
                next = u64::from(u32::from(net.broadcast())) + 1;
            }
            prop_assert_eq!(next, u64::from(last) + 1);
        }
    }
}
