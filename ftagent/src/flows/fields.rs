//! The fields of one NetFlow v9 or IPFIX record that are used, by their numbers (IANA "IPFIX Information Elements";
//! NetFlow v9 has the same ones up to 127), and what they say together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ftagent_common::packet::{proto, tcp_flag};

use super::packet::{ETHERNET, Header, of_record};
use super::record::Flow;
use crate::engine::sample::{MS, SEC};

/// Ages and durations beyond this are not believed: clocks that were set, counters that were reset.
const LONGEST_NS: u64 = 3_600 * SEC;

/// When the message of a record was exported.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Exported {
    /// Seconds since 1970.
    pub(super) unix_secs: u64,
    /// Milliseconds since the exporter's boot; IPFIX does not say.
    pub(super) uptime_ms: Option<u32>,
}

/// What one record says, as far as it is used.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    pub(super) src: Option<IpAddr>,
    pub(super) dst: Option<IpAddr>,
    pub(super) protocol: u8,
    pub(super) src_port: Option<u16>,
    pub(super) dst_port: Option<u16>,
    pub(super) tcp_flags: u8,
    icmp: Option<[u8; 2]>,
    ttl: u8,
    fragment_offset: u16,
    pub(super) input: u32,
    is_egress: bool,
    packets: [Option<u64>; 3],
    bytes: [Option<u64>; 3],
    /// Milliseconds since boot.
    up: [Option<u32>; 2],
    boot_ms: Option<u64>,
    /// Nanoseconds since 1970.
    wall: [Option<u64>; 2],
    /// Microseconds before the export.
    before_us: [Option<u64>; 2],
    duration_ns: Option<u64>,
    pub(super) sampler: Option<u64>,
    interval: Option<u64>,
    selected: [Option<u64>; 2],
}

/// The bytes of a field as a number; of long ones the last eight.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| Ipv6Addr::from(v6).into())
}

/// Nanoseconds since 1970 of an NTP time stamp (RFC 7011 section 6.1.9).
fn ntp(bytes: &[u8]) -> Option<u64> {
    let stamp = number(bytes);
    let secs = (stamp >> 32).checked_sub(2_208_988_800)?;
    secs.checked_mul(SEC)?.checked_add(((stamp & 0xffff_ffff) * SEC) >> 32)
}

impl Fields {
    /// The numbers that [`Self::set`] understands.
    pub(super) const NUMBERS: &[u16] = &[
        1, 2, 4, 6, 7, 8, 10, 11, 12, 21, 22, 23, 24, 27, 28, 32, 34, 48, 50, 52, 61, 85, 86, 88, 139, 150, 151, 152,
        153, 154, 155, 156, 157, 158, 159, 160, 161, 162, 176, 177, 178, 179, 180, 181, 182, 183, 192, 302, 305, 306,
    ];

    /// Takes the field with this number.
    pub(super) fn set(&mut self, field: u16, bytes: &[u8]) {
        let n = number(bytes);
        let short = u16::try_from(n).ok();
        match field {
            1 => self.bytes[0] = Some(n),
            2 => self.packets[0] = Some(n),
            23 => self.bytes[1] = Some(n),
            24 => self.packets[1] = Some(n),
            85 => self.bytes[2] = Some(n),
            86 => self.packets[2] = Some(n),
            4 => self.protocol = (n & 0xff) as u8,
            6 => self.tcp_flags = (n & 0xff) as u8,
            7 | 180 | 182 => self.src_port = short,
            11 | 181 | 183 => self.dst_port = short,
            8 | 27 => self.src = address(bytes).or(self.src),
            12 | 28 => self.dst = address(bytes).or(self.dst),
            10 => self.input = u32::try_from(n).unwrap_or(0),
            21 => self.up[1] = u32::try_from(n).ok(),
            22 => self.up[0] = u32::try_from(n).ok(),
            32 | 139 => self.icmp = short.map(u16::to_be_bytes),
            176 | 178 => self.icmp = Some([(n & 0xff) as u8, self.icmp.map_or(0, |[_, code]| code)]),
            177 | 179 => self.icmp = Some([self.icmp.map_or(0, |[kind, _]| kind), (n & 0xff) as u8]),
            34 | 50 => self.interval = Some(n),
            48 | 302 => self.sampler = Some(n),
            52 | 192 => self.ttl = (n & 0xff) as u8,
            61 => self.is_egress = n == 1,
            88 => self.fragment_offset = short.unwrap_or(0),
            150 | 151 => self.wall[usize::from(field - 150)] = n.checked_mul(SEC),
            152 | 153 => self.wall[usize::from(field - 152)] = n.checked_mul(MS),
            154 | 155 => self.wall[usize::from(field - 154)] = ntp(bytes),
            156 | 157 => self.wall[usize::from(field - 156)] = ntp(bytes),
            158 | 159 => self.before_us[usize::from(field - 158)] = Some(n),
            160 => self.boot_ms = Some(n),
            161 => self.duration_ns = n.checked_mul(MS),
            162 => self.duration_ns = n.checked_mul(1_000),
            305 => self.selected[0] = Some(n),
            306 => self.selected[1] = Some(n),
            _ => {}
        }
    }

    /// One packet in how many was looked at, if the record says so.
    pub(super) fn one_in(&self) -> Option<u32> {
        let rate = match (self.selected, self.interval) {
            // So many packets are taken, then so many are left out (RFC 5477 section 8.2.4).
            ([Some(taken), Some(left)], _) if taken > 0 => taken.saturating_add(left) / taken,
            ([Some(_), None], _) => 1,
            (_, Some(interval)) => interval,
            _ => return None,
        };
        u32::try_from(rate).ok().filter(|rate| (1..=super::config::MAX_SAMPLING_RATE).contains(rate))
    }

    /// From the first packet to the last, and from the last to the export, in nanoseconds.
    fn times(&self, exported: Exported) -> (u64, u64) {
        let believed = |ns: u64| if ns <= LONGEST_NS { ns } else { 0 };
        let export_ns = exported.unix_secs.saturating_mul(SEC);
        let (duration, age) = match (self.wall, self.up, self.before_us) {
            ([Some(start), Some(end)], ..) => (end.saturating_sub(start), export_ns.saturating_sub(end)),
            (_, [Some(start), Some(end)], _) => {
                let age = match (exported.uptime_ms, self.boot_ms) {
                    (Some(now), _) => u64::from(now.wrapping_sub(end)).saturating_mul(MS),
                    (None, Some(boot)) => export_ns.saturating_sub(boot.saturating_add(end.into()).saturating_mul(MS)),
                    (None, None) => 0,
                };
                (u64::from(end.wrapping_sub(start)).saturating_mul(MS), age)
            }
            (.., [Some(start), Some(end)]) => {
                (start.saturating_sub(end).saturating_mul(1_000), end.saturating_mul(1_000))
            }
            _ => (self.duration_ns.unwrap_or(0), 0),
        };
        (believed(duration), believed(age))
    }

    /// The packets that the record counts, multiplied by the sampling rate: one flow, or two where its flags are those
    /// of several packets. None where it lacks an address or counts nothing.
    pub(super) fn flows(&self, exported: Exported, one_in: u32) -> Vec<Flow> {
        let (Some(src), Some(dst)) = (self.src, self.dst) else { return Vec::new() };
        let first = |counts: &[Option<u64>; 3]| counts.iter().flatten().next().copied().unwrap_or(0);
        let (packets, bytes) = (first(&self.packets), first(&self.bytes));
        if packets == 0 && bytes == 0 {
            return Vec::new();
        }
        let packets = packets.max(1);
        let (over_ns, age_ns) = self.times(exported);
        let ports = (self.src_port.unwrap_or(0), self.dst_port.unwrap_or(0));
        // Exporters write later fragments as flows of port 0; a template without ports says nothing.
        let no_ports = (self.src_port, self.dst_port) == (Some(0), Some(0));
        let has_ports = matches!(self.protocol, proto::TCP | proto::UDP);
        let is_fragment = self.fragment_offset > 0 || has_ports && no_ports;
        let header = Header {
            src,
            dst,
            protocol: self.protocol,
            src_port: ports.0,
            dst_port: ports.1,
            tcp_flags: self.tcp_flags,
            // Older exporters put type and code where the destination port is.
            icmp: self.icmp.unwrap_or(ports.1.to_be_bytes()),
            ttl: self.ttl,
            is_fragment,
            ip_len: u32::try_from(bytes / packets).unwrap_or(u32::MAX),
        };
        let parts = if self.protocol == proto::TCP && !is_fragment {
            tcp_parts(self.tcp_flags, ports, packets)
        } else {
            vec![(self.tcp_flags, packets)]
        };
        let times = u64::from(one_in);
        let parts = parts.into_iter().filter_map(|(tcp_flags, part)| {
            let bytes = (u128::from(bytes) * u128::from(part) / u128::from(packets)) as u64;
            Some(Flow {
                packet: of_record(&Header { tcp_flags, ..header })?,
                packets: part.saturating_mul(times),
                bytes: bytes.saturating_add(part.saturating_mul(ETHERNET.into())).saturating_mul(times),
                over_ns,
                age_ns,
                one_in,
                input: self.input,
                is_egress: self.is_egress,
            })
        });
        parts.collect()
    }
}

/// Whose flags are together in a flow of several packets: `(flags, packets)`.
///
/// A record has the union of its packets' flags. One packet has its own. SYN alone is a host that repeats it; SYN and ACK
/// without more, away from a lower port, is one that repeats its answer. Else there was one packet to begin the
/// connection, and the others have what is left without SYN.
fn tcp_parts(flags: u8, (src_port, dst_port): (u16, u16), packets: u64) -> Vec<(u8, u64)> {
    const BOTH: u8 = tcp_flag::SYN | tcp_flag::ACK;
    let meaning = flags & tcp_flag::ALL;
    let answers = src_port < dst_port;
    if packets == 1 || meaning & BOTH != BOTH || meaning == BOTH && answers {
        return vec![(flags, packets)];
    }
    let begin = if answers { BOTH } else { tcp_flag::SYN };
    // That one of them ended the connection does not make all of them ends.
    let others = flags & !(tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) | tcp_flag::ACK;
    vec![(begin, 1), (others, packets - 1)]
}

#[cfg(test)]
mod tests {
    use ftagent_common::vocab::TrafficClass as Class;

    use super::*;

    type Pairs<'a> = &'a [(u16, &'a [u8])];

    fn fields(pairs: Pairs<'_>) -> Fields {
        let mut fields = Fields::default();
        for (field, bytes) in pairs {
            assert!(Fields::NUMBERS.contains(field), "{field}");
            fields.set(*field, bytes);
        }
        fields
    }

    fn flow(flags: u8, ports: (u16, u16), packets: u32) -> Vec<(Class, u64)> {
        let fields = fields(&[
            (8, &[198, 51, 100, 1]),
            (12, &[203, 0, 113, 5]),
            (4, &[6]),
            (6, &[flags]),
            (7, &ports.0.to_be_bytes()),
            (11, &ports.1.to_be_bytes()),
            (2, &packets.to_be_bytes()),
            (1, &(packets * 60).to_be_bytes()),
        ]);
        fields.flows(Exported::default(), 1).iter().map(|f| (f.packet.class, f.packets)).collect()
    }

    #[test]
    fn flags_of_many_packets_are_divided_among_them() {
        let client = (50_000, 443);
        let server = (443, 50_000);
        let table = [
            ("one packet", 0x02, client, 1, vec![(Class::TcpSyn, 1)]),
            ("repeated SYN", 0x02, client, 5, vec![(Class::TcpSyn, 5)]),
            ("a whole connection", 0x1b, client, 20, vec![(Class::TcpSyn, 1), (Class::TcpAck, 19)]),
            ("its other half", 0x1b, server, 20, vec![(Class::TcpSynAck, 1), (Class::TcpAck, 19)]),
            ("repeated answer", 0x12, server, 5, vec![(Class::TcpSynAck, 5)]),
            ("a handshake alone", 0x12, client, 2, vec![(Class::TcpSyn, 1), (Class::TcpAck, 1)]),
            ("ACKs", 0x10, client, 9, vec![(Class::TcpAck, 9)]),
            ("RSTs", 0x04, client, 9, vec![(Class::TcpRst, 9)]),
        ];
        for (name, flags, ports, packets, expected) in table {
            assert_eq!(flow(flags, ports, packets), expected, "{name}");
        }
    }

    #[test]
    fn the_sampling_rate_multiplies_packets_and_bytes_with_their_link_header() {
        let fields = fields(&[
            (27, &[0x20; 16]),
            (28, &[0x21; 16]),
            (4, &[17]),
            (2, &10u64.to_be_bytes()),
            (1, &1_000u32.to_be_bytes()),
            (10, &[0, 7]),
            (61, &[1]),
        ]);
        let [flow] = fields.flows(Exported::default(), 512)[..] else { panic!("one flow") };
        assert_eq!((flow.packets, flow.bytes), (5_120, (1_000 + 140) * 512));
        assert_eq!((flow.input, flow.is_egress), (7, true));
    }

    #[test]
    fn the_sampling_rate_is_said_in_several_ways() {
        let (n, twice) = (100u32.to_be_bytes(), 2u32.to_be_bytes());
        let space = 198u32.to_be_bytes();
        // (fields, rate)
        let table: [(Pairs<'_>, Option<u32>); 7] = [
            (&[(34, &n)], Some(100)),
            (&[(50, &n)], Some(100)),
            (&[(305, &twice), (306, &space)], Some(100)),
            (&[(305, &[1])], Some(1)),
            (&[(34, &[0])], None),
            (&[(34, &[0xff; 8])], None),
            (&[(305, &[0]), (306, &space)], None),
        ];
        for (pairs, expected) in table {
            assert_eq!(fields(pairs).one_in(), expected, "{pairs:?}");
        }
    }

    #[test]
    fn times_are_read_in_every_way_they_are_written() {
        let exported = Exported { unix_secs: 1_000_000, uptime_ms: Some(500_000) };
        let ipfix = Exported { uptime_ms: None, ..exported };
        let ms = |ms: u64| ms.to_be_bytes();
        let (start, end) = (ms(999_960_000), ms(999_990_000));
        let ntp = |secs: u64| ((secs + 2_208_988_800) << 32).to_be_bytes();
        let up = |ms: u32| ms.to_be_bytes();
        let boot = ms(999_500_000);
        let expected = (30 * SEC, 10 * SEC);
        type Row<'a> = (&'a str, Exported, Pairs<'a>, (u64, u64));
        let table: [Row<'_>; 8] = [
            ("ms", ipfix, &[(152, &start), (153, &end)], expected),
            ("s", ipfix, &[(150, &ms(999_960)), (151, &ms(999_990))], expected),
            ("NTP", ipfix, &[(154, &ntp(999_960)), (155, &ntp(999_990))], expected),
            ("up", exported, &[(22, &up(460_000)), (21, &up(490_000))], expected),
            ("boot", ipfix, &[(22, &up(460_000)), (21, &up(490_000)), (160, &boot)], expected),
            ("before", ipfix, &[(158, &ms(40_000_000)), (159, &ms(10_000_000))], expected),
            ("wrapped", exported, &[(22, &up(u32::MAX)), (21, &up(490_000))], (490_001 * MS, 10 * SEC)),
            ("nonsense", exported, &[(22, &up(490_000)), (21, &up(460_000))], (0, 40 * SEC)),
        ];
        for (name, exported, pairs, expected) in table {
            assert_eq!(fields(pairs).times(exported), expected, "{name}");
        }
    }

    #[test]
    fn records_without_addresses_or_counts_say_nothing() {
        assert!(fields(&[(8, &[1, 2, 3, 4]), (2, &[9])]).flows(Exported::default(), 1).is_empty());
        let both: &[(u16, &[u8])] = &[(8, &[198, 51, 100, 1]), (12, &[203, 0, 113, 5])];
        assert!(fields(both).flows(Exported::default(), 1).is_empty());
        assert!(fields(&[(8, &[1, 2]), (12, &[3]), (2, &[9])]).flows(Exported::default(), 1).is_empty(), "no address");
    }

    #[test]
    fn flows_of_port_zero_are_later_fragments() {
        let pairs: &[(u16, &[u8])] =
            &[(8, &[198, 51, 100, 1]), (12, &[203, 0, 113, 5]), (4, &[17]), (2, &[9]), (1, &[4, 0])];
        let class = |pairs: &[(u16, &[u8])]| fields(pairs).flows(Exported::default(), 1)[0].packet.class;
        assert_eq!(class(pairs), Class::Udp, "the template has no ports");
        assert_eq!(class(&[pairs, &[(7, &[0, 0]), (11, &[0, 0])]].concat()), Class::Fragment);
    }
}
