//! NetFlow v5, v9 (RFC 3954) and IPFIX (RFC 7011) of one exporter: its templates, its sampling rates, its records.
//!
//! The parser crate is used within bounds of ours: templates and their fields, observation domains, records of a message
//! and decoded values. Templates expire, and what comes before its template is counted and lost.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use netflow_parser::static_versions::v5::V5;
use netflow_parser::variable_versions::field_value::FieldValue;
use netflow_parser::variable_versions::ipfix::lookup::{IANAIPFixField, IPFixField};
use netflow_parser::variable_versions::ipfix::{FlowSetBody as IpfixBody, IPFix, IPFixFlowRecord};
use netflow_parser::variable_versions::v9::{FlowSetBody as V9Body, V9, V9FieldPair};
use netflow_parser::{AutoScopedParser, ConfigError, NetflowPacket, NetflowParser, TtlConfig};

use super::config::{MAX_SAMPLING_RATE, Protocol};
use super::fields::{Exported, Fields};
use super::record::{Counts, Message};

/// Observation domains of one exporter.
const MAX_DOMAINS: usize = 16;
/// Templates of one domain and version, and fields of one template.
const MAX_TEMPLATES: usize = 128;
const MAX_FIELDS: usize = 128;
/// Records of one datagram.
const MAX_RECORDS: usize = 2_048;
/// A template that was not sent again for so long is forgotten; routers repeat theirs every few minutes.
const TEMPLATE_LIFE: Duration = Duration::from_secs(3_600);
/// Samplers of one exporter that are known by their rate.
const MAX_SAMPLERS: usize = 256;

/// The fields of IPFIX that are used, with their numbers.
static NUMBERS: LazyLock<HashMap<IANAIPFixField, u16>> =
    LazyLock::new(|| Fields::NUMBERS.iter().map(|number| (IANAIPFixField::from(*number), *number)).collect());

/// What is known of one exporter.
#[derive(Debug)]
pub(super) struct Netflow {
    parser: AutoScopedParser,
    /// Sampling rates by domain, and by the sampler if they belong to one.
    rates: BTreeMap<(u32, Option<u64>), u32>,
    default_rate: u32,
}

/// What one datagram says.
#[derive(Debug, Default)]
pub(super) struct Datagram {
    pub(super) messages: Vec<Message>,
    /// Why the rest of it could not be read.
    pub(super) error: Option<String>,
}

impl Netflow {
    /// `default_rate` holds for records whose sampling is not told.
    ///
    /// # Errors
    /// When the parser refuses its bounds.
    pub(super) fn new(protocol: Protocol, default_rate: u32) -> Result<Self, ConfigError> {
        let versions: &[u16] = match protocol {
            Protocol::Auto => &[5, 9, 10],
            Protocol::Netflow => &[5, 9],
            Protocol::Ipfix => &[10],
            // Nothing of it is asked for then; the parser wants at least one.
            Protocol::Sflow => &[9],
        };
        let builder = NetflowParser::builder()
            .with_cache_size(MAX_TEMPLATES)
            .with_max_field_count(MAX_FIELDS)
            .with_max_records_per_flowset(MAX_RECORDS)
            .with_max_decoded_field_values_per_message(MAX_RECORDS * 64)
            .with_max_decoded_field_payload_bytes_per_message(256 << 10)
            .with_max_error_sample_size(1)
            .with_ttl(TtlConfig::new(TEMPLATE_LIFE))
            .with_allowed_versions(versions);
        let parser = AutoScopedParser::try_with_builder(builder)?.with_max_sources(MAX_DOMAINS)?;
        Ok(Self { parser, rates: BTreeMap::new(), default_rate })
    }

    /// Reads a datagram.
    pub(super) fn parse(&mut self, bytes: &[u8]) -> Datagram {
        // Templates belong to the exporter and its domain, by whatever port it sends.
        let source = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
        let parsed = self.parser.parse_from_source(source, bytes);
        let mut datagram = Datagram { error: parsed.error.map(|e| e.to_string()), ..Datagram::default() };
        for packet in parsed.packets {
            match packet {
                NetflowPacket::V5(v5) => datagram.messages.push(self.v5(&v5)),
                NetflowPacket::V9(v9) => datagram.messages.push(self.v9(&v9)),
                NetflowPacket::IPFix(ipfix) => datagram.messages.push(self.ipfix(&ipfix)),
                _ => datagram.error = Some("a version that is not read".to_owned()),
            }
        }
        if datagram.messages.is_empty() && datagram.error.is_none() {
            datagram.error = Some("neither NetFlow v5 or v9 nor IPFIX".to_owned());
        }
        datagram
    }

    /// The sampling rates that the exporter told, coarsest first.
    pub(super) fn told_rates(&self) -> Vec<u32> {
        let mut rates: Vec<u32> = self.rates.values().copied().collect();
        rates.sort_unstable_by(|a, b| b.cmp(a));
        rates.dedup();
        rates
    }

    /// Templates that are known now.
    pub(super) fn templates(&self) -> usize {
        let v9 = self.parser.v9_info();
        let ipfix = self.parser.ipfix_info();
        v9.iter().map(|(_, info)| info.v9.current_size).sum::<usize>()
            + ipfix.iter().map(|(_, info)| info.ipfix.current_size).sum::<usize>()
    }

    fn v5(&mut self, v5: &V5) -> Message {
        let head = &v5.header;
        // Two bits say how packets are chosen, the others one in how many.
        let told = u32::from(head.sampling_interval & 0x3fff);
        let domain = u32::from(head.engine_type) << 8 | u32::from(head.engine_id);
        if told > 0 {
            self.learn((domain, None), told);
        }
        let one_in = if told > 0 { told } else { self.default_rate };
        let exported = Exported { unix_secs: head.unix_secs.into(), uptime_ms: Some(head.sys_up_time) };
        let mut message = Message {
            version: 5,
            domain,
            sequence: head.flow_sequence,
            counts: Counts::Records,
            grows_by: Some(head.count.into()),
            unix_secs: head.unix_secs.into(),
            flows: Vec::with_capacity(v5.flowsets.len()),
            records: v5.flowsets.len() as u64,
            unknown_templates: 0,
            cut: 0,
        };
        for set in &v5.flowsets {
            let mut fields = Fields::default();
            fields.src = Some(set.src_addr.into());
            fields.dst = Some(set.dst_addr.into());
            fields.protocol = set.protocol_number;
            fields.src_port = Some(set.src_port);
            fields.dst_port = Some(set.dst_port);
            fields.tcp_flags = set.tcp_flags;
            fields.input = set.input.into();
            fields.set(2, &set.d_pkts.to_be_bytes());
            fields.set(1, &set.d_octets.to_be_bytes());
            fields.set(22, &set.first.to_be_bytes());
            fields.set(21, &set.last.to_be_bytes());
            message.flows.extend(fields.flows(exported, one_in));
        }
        message
    }

    fn v9(&mut self, v9: &V9) -> Message {
        let head = &v9.header;
        let exported = Exported { unix_secs: head.unix_secs.into(), uptime_ms: Some(head.sys_up_time) };
        let mut message = Message {
            version: 9,
            domain: head.source_id,
            sequence: head.sequence_number,
            counts: Counts::Datagrams,
            grows_by: Some(1),
            unix_secs: head.unix_secs.into(),
            flows: Vec::new(),
            records: 0,
            unknown_templates: 0,
            cut: 0,
        };
        for set in &v9.flowsets {
            match &set.body {
                V9Body::OptionsData(data) => {
                    data.fields
                        .iter()
                        .for_each(|record| self.options(message.domain, &v9_fields(&record.options_fields)));
                }
                V9Body::Data(data) => {
                    data.fields.iter().for_each(|record| self.record(&mut message, &v9_fields(record), exported));
                }
                V9Body::NoTemplate(_) => message.unknown_templates += 1,
                _ => {}
            }
        }
        message
    }

    fn ipfix(&mut self, ipfix: &IPFix) -> Message {
        let head = &ipfix.header;
        let exported = Exported { unix_secs: head.export_time.into(), uptime_ms: None };
        let mut message = Message {
            version: 10,
            domain: head.observation_domain_id,
            sequence: head.sequence_number,
            counts: Counts::Records,
            grows_by: None,
            unix_secs: head.export_time.into(),
            flows: Vec::new(),
            records: 0,
            unknown_templates: 0,
            cut: 0,
        };
        let mut data_records = 0u32;
        for set in &ipfix.flowsets {
            match &set.body {
                IpfixBody::OptionsData(data) => {
                    data_records = data_records.saturating_add(count(data.fields.len()));
                    data.fields.iter().for_each(|record| self.options(message.domain, &ipfix_fields(record)));
                }
                IpfixBody::Data(data) => {
                    data_records = data_records.saturating_add(count(data.fields.len()));
                    data.fields.iter().for_each(|record| self.record(&mut message, &ipfix_fields(record), exported));
                }
                IpfixBody::NoTemplate(_) => message.unknown_templates += 1,
                _ => {}
            }
        }
        // RFC 7011 section 3.1: data records before this message; how many are in a set of an unknown template nobody
        // knows.
        message.grows_by = (message.unknown_templates == 0).then_some(data_records);
        message
    }

    /// A record about the exporter itself: what samplers there are.
    fn options(&mut self, domain: u32, fields: &Fields) {
        if let Some(rate) = fields.one_in() {
            self.learn((domain, fields.sampler), rate);
        }
    }

    fn learn(&mut self, key: (u32, Option<u64>), rate: u32) {
        if self.rates.len() < MAX_SAMPLERS || self.rates.contains_key(&key) {
            self.rates.insert(key, rate.min(MAX_SAMPLING_RATE));
        }
    }

    fn record(&mut self, message: &mut Message, fields: &Fields, exported: Exported) {
        if message.records >= MAX_RECORDS as u64 {
            message.cut += 1;
            return;
        }
        message.records += 1;
        let rate = self.rate_of(message.domain, fields);
        message.flows.extend(fields.flows(exported, rate));
    }

    /// The record's own word, then its sampler's, then its domain's, then the configuration's.
    fn rate_of(&self, domain: u32, fields: &Fields) -> u32 {
        let of_sampler = || fields.sampler.and_then(|id| self.rates.get(&(domain, Some(id))));
        let only_sampler = || {
            // Records that name no sampler are of the only one there is.
            let mut samplers = self.rates.range((domain, None)..=(domain, Some(u64::MAX))).map(|(_, rate)| rate);
            let one = samplers.next()?;
            samplers.all(|other| other == one).then_some(one)
        };
        fields
            .one_in()
            .or_else(|| of_sampler().or_else(|| self.rates.get(&(domain, None))).or_else(only_sampler).copied())
            .unwrap_or(self.default_rate)
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn set(fields: &mut Fields, number: u16, value: &FieldValue, buffer: &mut Vec<u8>) {
    buffer.clear();
    if value.write_be_bytes(buffer).is_ok() {
        fields.set(number, buffer);
    }
}

fn v9_fields(record: &[V9FieldPair]) -> Fields {
    let (mut fields, mut buffer) = (Fields::default(), Vec::with_capacity(16));
    for (field, value) in record {
        set(&mut fields, u16::from(*field), value, &mut buffer);
    }
    fields
}

fn ipfix_fields(record: &IPFixFlowRecord) -> Fields {
    let (mut fields, mut buffer) = (Fields::default(), Vec::with_capacity(16));
    for (field, value) in record {
        // Vendors' own elements have numbers of their own.
        let IPFixField::IANA(field) = field else { continue };
        if let Some(number) = NUMBERS.get(field) {
            set(&mut fields, *number, value, &mut buffer);
        }
    }
    fields
}

#[cfg(test)]
mod tests;
