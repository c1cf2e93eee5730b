//! Which addresses a URL that an operator gave may lead to.
//!
//! Asked of every address that is connected to, after names were resolved: a name that answers differently the second
//! time leads nowhere else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Why nothing is sent to `address`; `private`: whether networks that are not the Internet are allowed.
pub(super) fn refusal(address: IpAddr, private: bool) -> Option<&'static str> {
    let address = address.to_canonical();
    if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Some("is no address of a host");
    }
    let inside = match address {
        IpAddr::V4(v4) => inside_v4(v4),
        IpAddr::V6(v6) => inside_v6(v6),
    };
    (inside && !private).then_some("is private, link-local or reserved: allow it by mitigation_private_endpoints")
}

fn inside_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        || a >= 240
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (18..20).contains(&b))
}

fn inside_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // Only 2000::/3 is the Internet; NAT64 and 6to4 carry IPv4 addresses that would have to be judged themselves.
    segments[0] & 0xe000 != 0x2000
        || segments[0] == 0x2002
        || (segments[0] == 0x2001 && segments[1] < 0x200)
        || (segments[0] == 0x2001 && segments[1] == 0xdb8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_need_leave_and_some_have_none() {
        let table = [
            ("1.1.1.1", false, false),
            ("2606:4700::1111", false, false),
            ("127.0.0.1", true, false),
            ("10.0.0.1", true, false),
            ("172.16.0.1", true, false),
            ("192.168.1.1", true, false),
            ("100.64.0.1", true, false),
            ("169.254.169.254", true, false),
            ("198.18.0.1", true, false),
            ("240.0.0.1", true, false),
            ("::1", true, false),
            ("fe80::1", true, false),
            ("fd00::1", true, false),
            ("64:ff9b::a00:1", true, false),
            ("2002:a00:1::", true, false),
            ("2001::1", true, false),
            ("::ffff:10.0.0.1", true, false),
            ("::ffff:1.1.1.1", false, false),
            ("0.0.0.0", true, true),
            ("::", true, true),
            ("224.0.0.1", true, true),
            ("255.255.255.255", true, true),
            ("ff02::1", true, true),
        ];
        for (text, refused, always) in table {
            let address = text.parse().expect("an address");
            assert_eq!(refusal(address, false).is_some(), refused, "{text}");
            assert_eq!(refusal(address, true).is_some(), always, "{text}");
        }
    }
}
