//! sFlow version 5 (sflow.org, `sflow_version_5.txt`): sampled headers and sampled addresses.
//!
//! The parser crate reads whole datagrams, believes the lengths in them up to 100 MB, and gives a datagram up as soon
//! as one record is not as it expects. So [`sifted`] goes first: it walks the lengths within the datagram's own and
//! keeps of it only the records that are used, which also lets through what vendors put beside them.

use std::net::IpAddr;

use ftagent_common::packet::Packet;
use sflow_parser::models::record_flows::{HeaderProtocol, SampledIpv4, SampledIpv6};
use sflow_parser::models::{FlowData, SampleData};

use super::packet::{self, Header};
use crate::engine::Payload;

/// Samples of one datagram that are read. An Ethernet frame holds about ten, the longest datagram some hundreds.
const MAX_SAMPLES: usize = 512;
/// Records of one sample that are looked at.
const MAX_RECORDS: usize = 32;

/// Formats of samples and of flow records, all of enterprise 0.
const FLOW_SAMPLE: u32 = 1;
const EXPANDED_FLOW_SAMPLE: u32 = 3;
const RAW_HEADER: u32 = 1;
const SAMPLED_IPV4: u32 = 3;
const SAMPLED_IPV6: u32 = 4;

/// An interface of which the agent knows nothing, or several.
const NO_INTERFACE: u32 = 0x3fff_ffff;

/// What one datagram says.
#[derive(Debug, Default)]
pub(super) struct Datagram {
    pub(super) sub_agent: u32,
    pub(super) sequence: u32,
    pub(super) samples: Vec<Sample>,
    /// Flow samples that there was no room for, or that speak of something else than IP.
    pub(super) skipped: u64,
}

/// One sampled packet.
#[derive(Debug)]
pub(super) struct Sample {
    pub(super) packet: Packet,
    pub(super) payload: Payload,
    /// Length of the frame without its checksum.
    pub(super) wire_len: u32,
    /// As the agent says; 0: it does not.
    pub(super) one_in: u32,
    pub(super) input: u32,
    /// It was taken where it left.
    pub(super) is_egress: bool,
}

/// Why a datagram cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("sFlow: {0}")]
pub(super) struct NotSflow(String);

/// Reads a datagram.
///
/// # Errors
/// When its structure contradicts itself. A sample whose packet cannot be parsed is skipped.
pub(super) fn parse(bytes: &[u8]) -> Result<Datagram, NotSflow> {
    let (bytes, cut) = sifted(bytes).ok_or_else(|| NotSflow("lengths reach beyond the datagram".to_owned()))?;
    let parsed = sflow_parser::parse_datagram(&bytes).map_err(|e| NotSflow(e.to_string()))?;
    let mut datagram = Datagram {
        sub_agent: parsed.sub_agent_id,
        sequence: parsed.sequence_number,
        samples: Vec::with_capacity(parsed.samples.len()),
        skipped: cut,
    };
    for record in &parsed.samples {
        let (rate, source, input, output, records) = match &record.sample_data {
            SampleData::FlowSample(s) => {
                (s.sampling_rate, s.source_id.0 & 0x00ff_ffff, single(s.input.0), single(s.output.0), &s.flow_records)
            }
            SampleData::FlowSampleExpanded(s) => (
                s.sampling_rate,
                s.source_id.source_id_index,
                if s.input.format == 0 { s.input.value } else { 0 },
                if s.output.format == 0 { s.output.value } else { 0 },
                &s.flow_records,
            ),
            _ => continue,
        };
        // The header says most; addresses alone are the second choice.
        let found = records.iter().find_map(|r| match &r.flow_data {
            FlowData::SampledHeader(h) => header(h.protocol, &h.header, h.frame_length, h.stripped),
            _ => None,
        });
        let found = found.or_else(|| {
            records.iter().find_map(|r| match &r.flow_data {
                FlowData::SampledIpv4(ip) => ipv4(ip),
                FlowData::SampledIpv6(ip) => ipv6(ip),
                _ => None,
            })
        });
        match found {
            Some((packet, payload, wire_len)) => datagram.samples.push(Sample {
                packet,
                payload,
                wire_len,
                one_in: rate,
                input,
                is_egress: source == output && source != input,
            }),
            None => datagram.skipped += 1,
        }
    }
    Ok(datagram)
}

/// The index of an interface in its compact form; 0 where it is none or not one.
fn single(interface: u32) -> u32 {
    if interface >> 30 == 0 && interface != NO_INTERFACE { interface } else { 0 }
}

fn header(protocol: HeaderProtocol, bytes: &[u8], len: u32, stripped: u32) -> Option<(Packet, Payload, u32)> {
    // What was cut off the end is the frame's checksum, which the datapath does not count either.
    let len = len.saturating_sub(stripped);
    let (packet, payload) = match protocol {
        HeaderProtocol::EthernetIso88023 => packet::parse_frame(bytes, len)?,
        HeaderProtocol::Ipv4 | HeaderProtocol::Ipv6 => packet::parse_ip(bytes, len)?,
        _ => return None,
    };
    let link = if matches!(protocol, HeaderProtocol::EthernetIso88023) { 0 } else { packet::ETHERNET };
    Some((packet, payload, len.saturating_add(link)))
}

fn ipv4(ip: &SampledIpv4) -> Option<(Packet, Payload, u32)> {
    let addresses = (IpAddr::V4(ip.src_ip), IpAddr::V4(ip.dst_ip));
    sampled(addresses, ip.protocol, (ip.src_port, ip.dst_port), ip.tcp_flags, ip.length)
}

fn ipv6(ip: &SampledIpv6) -> Option<(Packet, Payload, u32)> {
    let addresses = (IpAddr::V6(ip.src_ip), IpAddr::V6(ip.dst_ip));
    sampled(addresses, ip.protocol, (ip.src_port, ip.dst_port), ip.tcp_flags, ip.length)
}

fn sampled(
    (src, dst): (IpAddr, IpAddr),
    protocol: u32,
    ports: (u32, u32),
    flags: u32,
    ip_len: u32,
) -> Option<(Packet, Payload, u32)> {
    let ip_len = ip_len.min(u32::from(u16::MAX));
    let port = |port: u32| u16::try_from(port).unwrap_or(0);
    let header = Header {
        src,
        dst,
        protocol: u8::try_from(protocol).ok()?,
        src_port: port(ports.0),
        dst_port: port(ports.1),
        tcp_flags: (flags & 0xff) as u8,
        icmp: (port(ports.1)).to_be_bytes(),
        ttl: 0,
        is_fragment: false,
        ip_len,
    };
    Some((packet::of_record(&header)?, Payload::default(), ip_len + packet::ETHERNET))
}

/// The datagram with nothing but flow samples, and in these nothing but the records that are read; with how many flow
/// samples were beyond the bound. `None` if a length reaches beyond what holds it.
fn sifted(bytes: &[u8]) -> Option<(Vec<u8>, u64)> {
    let word = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let address = match word(4)? {
        0 => 0,
        1 => 4,
        2 => 16,
        _ => return None,
    };
    // Version, kind of address, address, sub-agent, sequence number, uptime; then how many samples follow.
    let head = 8 + address + 12;
    let samples = word(head)?;
    let mut kept = bytes.get(..head)?.to_vec();
    kept.extend(0u32.to_be_bytes());
    let (mut count, mut cut) = (0u32, 0);
    let mut at = head + 4;
    for _ in 0..samples {
        let (format, len) = (word(at)?, word(at + 4)? as usize);
        let body = bytes.get(at + 8..(at + 8).checked_add(len)?)?;
        at = at + 8 + len.next_multiple_of(4);
        let fixed = match format {
            FLOW_SAMPLE => 28,
            EXPANDED_FLOW_SAMPLE => 40,
            _ => continue,
        };
        if count as usize >= MAX_SAMPLES {
            cut += 1;
            continue;
        }
        let body = sifted_sample(body, fixed)?;
        kept.extend(format.to_be_bytes());
        kept.extend(u32::try_from(body.len()).ok()?.to_be_bytes());
        kept.extend(body);
        count += 1;
    }
    kept.get_mut(head..head + 4)?.copy_from_slice(&count.to_be_bytes());
    Some((kept, cut))
}

fn sifted_sample(body: &[u8], fixed: usize) -> Option<Vec<u8>> {
    let word = |at: usize| Some(u32::from_be_bytes(body.get(at..at.checked_add(4)?)?.try_into().ok()?));
    let records = word(fixed)?;
    let mut kept = body.get(..fixed)?.to_vec();
    kept.extend(0u32.to_be_bytes());
    let mut count = 0u32;
    let mut at = fixed + 4;
    for _ in 0..records.min(MAX_RECORDS as u32) {
        let (format, len) = (word(at)?, word(at + 4)? as usize);
        let record = body.get(at + 8..(at + 8).checked_add(len)?)?;
        at = at + 8 + len.next_multiple_of(4);
        let is_whole = match format {
            // The header's own length, behind protocol, frame length and stripped bytes.
            RAW_HEADER => record
                .get(12..16)
                .and_then(|len| Some(u32::from_be_bytes(len.try_into().ok()?) as usize))
                .is_some_and(|len| record.len() >= 16 + len.next_multiple_of(4)),
            SAMPLED_IPV4 => record.len() >= 32,
            SAMPLED_IPV6 => record.len() >= 56,
            _ => continue,
        };
        if !is_whole {
            return None;
        }
        kept.extend(format.to_be_bytes());
        kept.extend(u32::try_from(record.len()).ok()?.to_be_bytes());
        kept.extend(record);
        kept.resize(kept.len().next_multiple_of(4), 0);
        count += 1;
    }
    kept.get_mut(fixed..fixed + 4)?.copy_from_slice(&count.to_be_bytes());
    Some(kept)
}

#[cfg(test)]
mod tests {
    use ftagent_common::vocab::TrafficClass;

    use super::super::testing::{Dice, ethernet_udp, sflow, sflow_sample};
    use super::*;

    #[test]
    fn a_sampled_header_is_read_as_the_datapath_reads_it() {
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 1_200);
        let datagram = parse(&sflow(7, &[sflow_sample(512, 3, 4, &frame, 1_246)])).expect("valid");
        let [sample] = datagram.samples.as_slice() else { panic!("{datagram:?}") };
        assert_eq!((sample.one_in, sample.input, sample.is_egress), (512, 3, false));
        assert_eq!(sample.packet.class, TrafficClass::Reflector);
        assert_eq!(sample.wire_len, 1_242, "without the checksum");
        assert_eq!((datagram.sequence, datagram.skipped), (7, 0));
        assert!(!sample.payload.as_slice().is_empty());
    }

    #[test]
    fn what_vendors_add_does_not_hide_the_samples_beside_it() {
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 1_200);
        let odd_counters = [2u32, 12, 1, 2, 99].iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
        let vendor = [(9u32 << 12) | 1, 4, 1].iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
        let datagram = parse(&sflow(7, &[odd_counters, sflow_sample(8, 3, 4, &frame, 1_246), vendor])).expect("valid");
        assert_eq!(datagram.samples.len(), 1);
    }

    #[test]
    fn lengths_that_reach_beyond_are_refused_and_nothing_is_allocated_for_them() {
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 1_200);
        let whole = sflow(7, &[sflow_sample(8, 3, 4, &frame, 1_246)]);
        for len in 0..whole.len() {
            assert!(parse(&whole[..len]).is_err(), "cut at {len}");
        }
        for at in (24..whole.len() - 4).step_by(4) {
            let mut lied = whole.clone();
            lied[at..at + 4].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
            drop(parse(&lied));
        }
    }

    #[test]
    fn noise_never_panics() {
        let mut dice = Dice(5);
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 1_200);
        let whole = sflow(7, &[sflow_sample(8, 3, 4, &frame, 1_246), sflow_sample(8, 3, 4, &frame, 1_246)]);
        for _ in 0..8_000 {
            let mut noisy = whole.clone();
            for _ in 0..=dice.below(6) {
                let at = dice.below(noisy.len() as u64) as usize;
                noisy[at] = dice.roll() as u8;
            }
            noisy.truncate(dice.below(noisy.len() as u64 + 1) as usize);
            drop(parse(&noisy));
            let noise: Vec<u8> = (0..dice.below(200)).map(|_| dice.roll() as u8).collect();
            drop(parse(&noise));
        }
    }

    #[test]
    fn one_datagram_brings_no_more_than_its_bound() {
        let frame = ethernet_udp([198, 51, 100, 9], [203, 0, 113, 5], 53, 40_000, 10);
        let many = vec![sflow_sample(8, 3, 4, &frame[..42], 60); MAX_SAMPLES + 30];
        let datagram = parse(&sflow(7, &many)).expect("valid");
        assert_eq!((datagram.samples.len(), datagram.skipped), (MAX_SAMPLES, 30));
    }
}
