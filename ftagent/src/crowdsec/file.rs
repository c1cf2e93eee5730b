//! Bans as bytes, so that a restart of the agent is no hole while LAPI is away. Pure.
//!
//! ```text
//! "ftcsd001" | for each: id (8) | address, IPv4 as ::ffff:0:0/96 (16) | length of the prefix (1) | unix ms of its end (8)
//! ```
//! Big endian throughout. Ends are of the wall clock, the only one that outlives the machine.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::keeper::Ban;
use crate::engine::Now;

const MAGIC: &[u8; 8] = b"ftcsd001";
const RECORD: usize = 33;

/// `bans`, whose ends are of the monotonic clock.
pub(super) fn encode(bans: impl Iterator<Item = Ban>, now: Now) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for ban in bans {
        let address = match ban.prefix.addr() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let len = ban.prefix.prefix_len() + if ban.prefix.addr().is_ipv4() { 96 } else { 0 };
        let left_ms = i64::try_from(ban.ends_at_ns.saturating_sub(now.mono_ns) / 1_000_000).unwrap_or(i64::MAX);
        bytes.extend(ban.id.to_be_bytes());
        bytes.extend(address.octets());
        bytes.push(len);
        bytes.extend(unix_ms(now).saturating_add(left_ms).to_be_bytes());
    }
    bytes
}

/// The bans that are not over.
///
/// # Errors
/// What makes no sense in the bytes.
pub(super) fn decode(bytes: &[u8], now: Now) -> Result<Vec<Ban>, String> {
    let records = bytes.strip_prefix(MAGIC).ok_or("it does not begin as such a file does")?;
    let (records, rest) = records.as_chunks::<RECORD>();
    if !rest.is_empty() {
        return Err(format!("{} bytes are left over at its end", rest.len()));
    }
    let mut bans = Vec::with_capacity(records.len());
    for (place, record) in records.iter().enumerate() {
        let (id, address, len, end) = fields(record);
        let left_ms = u64::try_from(end.saturating_sub(unix_ms(now))).unwrap_or(0);
        let prefix = prefix(address, len).ok_or_else(|| format!("record {place}: a prefix of {len} bits"))?;
        if left_ms > 0 {
            bans.push(Ban { id, prefix, ends_at_ns: now.mono_ns.saturating_add(left_ms.saturating_mul(1_000_000)) });
        }
    }
    Ok(bans)
}

fn fields(record: &[u8; RECORD]) -> (i64, Ipv6Addr, u8, i64) {
    let (mut id, mut address, mut end) = ([0; 8], [0; 16], [0; 8]);
    id.copy_from_slice(&record[..8]);
    address.copy_from_slice(&record[8..24]);
    end.copy_from_slice(&record[25..]);
    (i64::from_be_bytes(id), address.into(), record[24], i64::from_be_bytes(end))
}

fn prefix(address: Ipv6Addr, len: u8) -> Option<IpNet> {
    let net = match address.to_ipv4_mapped() {
        Some(v4) => IpNet::new(v4.into(), len.checked_sub(96)?),
        None => IpNet::new(address.into(), len),
    };
    net.ok().map(|net| net.trunc())
}

fn unix_ms(now: Now) -> i64 {
    i64::try_from(now.wall.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;

    use super::*;

    fn at(mono_secs: u64, unix_secs: i64) -> Now {
        let wall = OffsetDateTime::from_unix_timestamp(unix_secs).expect("a time");
        Now { mono_ns: mono_secs * 1_000_000_000, wall }
    }

    #[test]
    fn bans_come_back_with_what_is_left_of_their_time_on_another_clock() {
        let ban = |id, prefix: &str, end: u64| Ban {
            id,
            prefix: prefix.parse().expect(prefix),
            ends_at_ns: end * 1_000_000_000,
        };
        let bans = [ban(7, "192.0.2.1/32", 160), ban(-1, "198.51.0.0/16", 130), ban(9, "2001:db8::/48", 400)];
        let bytes = encode(bans.into_iter(), at(100, 1_000));
        assert_eq!(bytes.len(), 8 + 3 * 33);
        // 40 s later, on a machine that was started 5 s ago.
        let back = decode(&bytes, at(5, 1_040)).expect("bans");
        assert_eq!(back, [ban(7, "192.0.2.1/32", 25), ban(9, "2001:db8::/48", 265)]);
        assert_eq!(decode(&encode([].into_iter(), at(1, 1)), at(1, 1)), Ok(Vec::new()));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused() {
        let ban = Ban { id: 1, prefix: "192.0.2.1/32".parse().expect("a prefix"), ends_at_ns: u64::MAX };
        let good = encode([ban].into_iter(), at(1, 1));
        let mut short = good.clone();
        short.pop();
        let mut long_prefix = good.clone();
        long_prefix[8 + 24] = 200;
        let mut other = good.clone();
        other[7] = b'2';
        for bytes in [&b""[..], b"ftcsd00", &short, &long_prefix, &other] {
            assert!(decode(bytes, at(1, 1)).is_err(), "{bytes:?}");
        }
        assert_eq!(decode(&good, at(1, 1)).map(|bans| bans.len()), Ok(1));
    }
}
