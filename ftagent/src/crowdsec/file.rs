//! Bans as bytes, so that a restart of the agent is no hole while LAPI is away. Pure.
//!
//! ```text
//! "ftcsd002" | unix ms of the saving (8) | n (1) | n times an address of LAPI's (16)
//!            | for each: id (8) | address, IPv4 as ::ffff:0:0/96 (16) | length of the prefix (1) | unix ms of its end (8)
//! ```
//! Big endian throughout. Ends are of the wall clock, the only one that outlives the machine. LAPI's addresses are kept
//! because a ban may meet one of them, and whoever starts with it in force would never hear better.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::keeper::Ban;
use crate::engine::Now;

const MAGIC: &[u8; 8] = b"ftcsd002";
/// Of LAPI.
pub(super) const MAX_PEERS: usize = 16;
const RECORD: usize = 33;

/// What a file says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Known {
    pub(super) bans: Vec<Ban>,
    /// Where LAPI was.
    pub(super) peers: Vec<IpAddr>,
}

/// `bans`, whose ends are of the monotonic clock, and where LAPI is.
pub(super) fn encode(bans: impl Iterator<Item = Ban>, peers: &[IpAddr], now: Now) -> Vec<u8> {
    let peers = &peers[..peers.len().min(MAX_PEERS)];
    let mut bytes = MAGIC.to_vec();
    bytes.extend(unix_ms(now).to_be_bytes());
    bytes.push(peers.len() as u8);
    peers.iter().for_each(|peer| bytes.extend(octets(*peer)));
    for ban in bans {
        let len = ban.prefix.prefix_len() + if ban.prefix.addr().is_ipv4() { 96 } else { 0 };
        let left_ms = i64::try_from(ban.ends_at_ns.saturating_sub(now.mono_ns) / 1_000_000).unwrap_or(i64::MAX);
        bytes.extend(ban.id.to_be_bytes());
        bytes.extend(octets(ban.prefix.addr()));
        bytes.push(len);
        bytes.extend(unix_ms(now).saturating_add(left_ms).to_be_bytes());
    }
    bytes
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The bans that are not over, and where LAPI was.
///
/// # Errors
/// What makes no sense in the bytes.
pub(super) fn decode(bytes: &[u8], now: Now) -> Result<Known, String> {
    let rest = bytes.strip_prefix(MAGIC).ok_or("it does not begin as such a file does")?;
    let (saved, rest) = rest.split_first_chunk::<8>().ok_or("it ends before the time of its saving")?;
    let (count, rest) = rest.split_first().ok_or("it ends before LAPI's addresses")?;
    let saved = i64::from_be_bytes(*saved);
    let (peers, records) = rest.split_at_checked(usize::from(*count) * 16).ok_or("it ends within LAPI's addresses")?;
    let peers = peers.as_chunks::<16>().0.iter().map(|octets| Ipv6Addr::from(*octets).to_canonical());
    let peers = peers.take(MAX_PEERS).collect();
    let (records, rest) = records.as_chunks::<RECORD>();
    if !rest.is_empty() {
        return Err(format!("{} bytes are left over at its end", rest.len()));
    }
    let mut bans = Vec::with_capacity(records.len());
    for (place, record) in records.iter().enumerate() {
        let (id, address, len, end) = fields(record);
        // A clock that was put back makes no ban longer than it was.
        let left_ms = u64::try_from(end.saturating_sub(unix_ms(now).max(saved))).unwrap_or(0);
        let prefix = prefix(address, len).ok_or_else(|| format!("record {place}: a prefix of {len} bits"))?;
        if left_ms > 0 {
            bans.push(Ban { id, prefix, ends_at_ns: now.mono_ns.saturating_add(left_ms.saturating_mul(1_000_000)) });
        }
    }
    Ok(Known { bans, peers })
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
        let peers: Vec<IpAddr> = ["192.0.2.80", "2001:db8::80"].map(|ip| ip.parse().expect(ip)).to_vec();
        let bytes = encode(bans.into_iter(), &peers, at(100, 1_000));
        assert_eq!(bytes.len(), 8 + 8 + 1 + 2 * 16 + 3 * 33);
        // 40 s later, on a machine that was started 5 s ago.
        let back = decode(&bytes, at(5, 1_040)).expect("bans");
        let bans = vec![ban(7, "192.0.2.1/32", 25), ban(9, "2001:db8::/48", 265)];
        assert_eq!(back, Known { bans, peers });
        // The clock was put back by a quarter of an hour.
        let back = decode(&bytes, at(5, 100)).expect("bans").bans;
        let left: Vec<u64> = back.iter().map(|ban| ban.ends_at_ns / 1_000_000_000 - 5).collect();
        assert_eq!(left, [60, 30, 300]);
        assert_eq!(decode(&encode([].into_iter(), &[], at(1, 1)), at(1, 1)), Ok(Known::default()));
    }

    #[test]
    fn a_file_that_makes_no_sense_is_refused() {
        let ban = Ban { id: 1, prefix: "192.0.2.1/32".parse().expect("a prefix"), ends_at_ns: u64::MAX };
        let good = encode([ban].into_iter(), &[], at(1, 1));
        let mut short = good.clone();
        short.pop();
        let mut long_prefix = good.clone();
        long_prefix[17 + 24] = 200;
        let mut other = good.clone();
        other[7] = b'1';
        let mut many_peers = good.clone();
        many_peers[16] = 200;
        for bytes in [&b""[..], b"ftcsd00", b"ftcsd002", &good[..16], &short, &long_prefix, &other, &many_peers] {
            assert!(decode(bytes, at(1, 1)).is_err(), "{bytes:?}");
        }
        assert_eq!(decode(&good, at(1, 1)).map(|known| known.bans.len()), Ok(1));
    }
}
