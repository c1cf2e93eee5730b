//! Where messages may go: URLs that operators give, and addresses that their names turn out to have.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Longest URL, bytes.
const MAX_URL: usize = 2_048;

/// Why nothing is sent to `address`, fit to follow its text and "which"; `allow_private` says whether networks that are
/// not the Internet may be sent to.
///
/// Asked of every address that is connected to, after names were resolved: a name that answers differently the second
/// time leads nowhere else.
pub fn no_destination(address: IpAddr, allow_private: bool) -> Option<&'static str> {
    let plain = address.to_canonical();
    if plain.is_unspecified() || plain.is_multicast() || plain == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is no address of a host");
    }
    let allowed = allow_private || is_public(address);
    (!allowed).then_some("is no public address: allow_private_destinations in this server's configuration allows it")
}

/// Whether `address` can be one of the public Internet: not loopback, private, link-local, shared, multicast, reserved,
/// nor any of these in the clothes of IPv6.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18..=19, _)
            | (198, 51, 100)
            | (203, 0, 113)
            | (224.., ..)
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let s = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // NAT64 and 6to4 lead to the IPv4 address that they hold.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Teredo, benchmarking, ORCHID and documentation.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

/// Reads the URL of a destination.
///
/// # Errors
/// It is too long, no `http` or `https`, names no host or a user, has a fragment, or is an address that is not public
/// where `allow_private` is false; the message says which.
pub fn parse_url(text: &str, allow_private: bool) -> Result<Url, String> {
    if text.len() > MAX_URL {
        return Err(format!("must be at most {MAX_URL} bytes"));
    }
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err("must not contain spaces or control characters".to_owned());
    }
    let url = Url::parse(text).map_err(|e| format!("is no URL: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("must begin with http:// or https://".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not hold a user or password: send a header instead".to_owned());
    }
    if url.fragment().is_some() {
        return Err("must not have a fragment".to_owned());
    }
    let literal = match url.host() {
        None => return Err("names no host".to_owned()),
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(v4)) => Some(IpAddr::V4(v4)),
        Some(Host::Ipv6(v6)) => Some(IpAddr::V6(v6)),
    };
    if url.port() == Some(0) {
        return Err("port 0 is none".to_owned());
    }
    if let Some(address) = literal
        && let Some(why) = no_destination(address, allow_private)
    {
        return Err(format!("leads to {address}, which {why}"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in ["8.8.8.8", "100.128.0.1", "172.32.0.1", "2606:4700::1", "64:ff9b::808:808", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "127.0.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
            "fec0::1",
        ] {
            assert!(!is_public(special.parse().expect("an address")), "{special}");
        }
    }

    #[test]
    fn private_addresses_need_leave_and_some_have_none() {
        let table = [
            ("8.8.8.8", false, false),
            ("127.0.0.1", true, false),
            ("10.0.0.1", true, false),
            ("::1", true, false),
            ("fe80::1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("::ffff:8.8.8.8", false, false),
            ("0.0.0.0", true, true),
            ("::", true, true),
            ("224.0.0.1", true, true),
            ("255.255.255.255", true, true),
            ("::ffff:0.0.0.0", true, true),
            ("ff02::1", true, true),
        ];
        for (text, refused, always) in table {
            let address = text.parse().expect("an address");
            assert_eq!(no_destination(address, false).is_some(), refused, "{text}");
            assert_eq!(no_destination(address, true).is_some(), always, "{text}");
        }
    }

    #[test]
    fn a_url_is_http_to_a_host_without_secrets() {
        let long = format!("https://example.net/{}", "a".repeat(MAX_URL));
        let table = [
            ("https://example.net/hook?x=1", true),
            ("http://example.net:8080", true),
            ("https://[2606:4700::1]/", true),
            ("ftp://example.net/", false),
            ("file:///etc/passwd", false),
            ("example.net", false),
            ("https://", false),
            ("https://user:secret@example.net/", false),
            ("https://user@example.net/", false),
            ("https://example.net/#x", false),
            ("https://example.net:0/", false),
            ("https://exa mple.net/", false),
            ("https://example.net/\r\nx", false),
            ("http://127.0.0.1/", false),
            ("http://2130706433/", false),
            ("http://0x7f.1/", false),
            ("http://[::ffff:169.254.169.254]/", false),
            (&long, false),
        ];
        for (text, expected) in table {
            assert_eq!(parse_url(text, false).is_ok(), expected, "{text}");
        }
        assert!(parse_url("http://127.0.0.1:9000/", true).is_ok());
    }
}
