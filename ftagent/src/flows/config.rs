//! `[[flow_exporter]]` of the configuration: where routers send what they saw, and whom we believe.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Sockets that a node can listen on.
const MAX_LISTENERS: usize = 8;
/// Entries of each list.
const MAX_ENTRIES: usize = 256;
/// The coarsest sampling anybody uses; more is a mistake, and would make one packet an attack.
pub(super) const MAX_SAMPLING_RATE: u32 = 1_000_000;

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Each datagram says itself what it is.
    #[default]
    Auto,
    Sflow,
    /// Versions 5 and 9.
    Netflow,
    Ipfix,
}

impl Protocol {
    /// As it is written in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Sflow => "sflow",
            Self::Netflow => "netflow",
            Self::Ipfix => "ipfix",
        }
    }
}

/// One `[[flow_exporter]]` as people write it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawFlowExporter {
    listen: SocketAddr,
    #[serde(default)]
    protocol: Protocol,
    #[serde(default)]
    exporters: Vec<String>,
    #[serde(default = "one")]
    sampling_rate: u32,
    #[serde(default)]
    prefixes: Vec<IpNet>,
    #[serde(default)]
    input_interfaces: Vec<u32>,
    #[serde(default)]
    egress: bool,
    #[serde(default = "half_an_hour")]
    active_timeout_secs: u32,
    #[serde(default = "two_minutes")]
    silent_secs: u32,
}

const fn one() -> u32 {
    1
}

const fn half_an_hour() -> u32 {
    1_800
}

const fn two_minutes() -> u32 {
    120
}

/// One socket and what is made of what comes there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    pub listen: SocketAddr,
    pub protocol: Protocol,
    /// Whose datagrams are read. Never empty.
    pub exporters: Vec<IpNet>,
    /// One packet in so many, where the export does not say.
    pub sampling_rate: u32,
    /// Targets that are watched; empty: those of the node.
    pub prefixes: Vec<IpNet>,
    /// Only what came in by one of these interfaces (ifIndex) counts; empty: by any.
    pub input_interfaces: Vec<u32>,
    /// Records that were taken where packets leave count too.
    pub egress: bool,
    /// The longest time that one flow record can speak of.
    pub active_timeout_secs: u32,
    /// An exporter that says nothing for so long is silent.
    pub silent_secs: u32,
}

impl ListenerConfig {
    /// Whether datagrams from `address` are read.
    pub fn is_allowed(&self, address: IpAddr) -> bool {
        self.exporters.iter().any(|allowed| allowed.contains(&address))
    }

    /// Exporters that are known by address, so that they are missed even if they never said a word.
    pub fn expected(&self) -> impl Iterator<Item = IpAddr> {
        self.exporters.iter().filter(|net| net.prefix_len() == net.max_prefix_len()).map(IpNet::addr)
    }
}

/// Checks every `[[flow_exporter]]`. `protect` are the node's own protected prefixes, which hold where a listener names
/// none.
///
/// # Errors
/// The first key that is wrong, and what is wrong with it.
pub fn check_flow_exporters(
    raw: &[RawFlowExporter],
    protect: &[IpNet],
) -> Result<Vec<ListenerConfig>, (String, String)> {
    if raw.len() > MAX_LISTENERS {
        return Err(("flow_exporter".to_owned(), format!("must be at most {MAX_LISTENERS}, got {}", raw.len())));
    }
    let mut listeners: Vec<ListenerConfig> = Vec::with_capacity(raw.len());
    for (index, one) in raw.iter().enumerate() {
        let named = |(key, message): (&str, String)| (format!("flow_exporter[{index}].{key}"), message);
        let listener = check(one, protect).map_err(named)?;
        if listeners.iter().any(|other| other.listen == listener.listen) {
            return Err(named(("listen", format!("{} is named twice", listener.listen))));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

fn check(raw: &RawFlowExporter, protect: &[IpNet]) -> Result<ListenerConfig, (&'static str, String)> {
    if raw.exporters.is_empty() {
        let why = "name the addresses of the routers that export here: anybody can send a UDP datagram that says there \
                   is an attack, so nobody else is believed";
        return Err(("exporters", why.to_owned()));
    }
    for (key, len) in [
        ("exporters", raw.exporters.len()),
        ("prefixes", raw.prefixes.len()),
        ("input_interfaces", raw.input_interfaces.len()),
    ] {
        if len > MAX_ENTRIES {
            return Err((key, format!("must be at most {MAX_ENTRIES}, got {len}")));
        }
    }
    let mut exporters = Vec::with_capacity(raw.exporters.len());
    for text in &raw.exporters {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(|_| ("exporters", format!("{text:?} is neither an address nor a prefix")))?;
        if net.prefix_len() == 0 {
            return Err(("exporters", format!("{net} would believe everybody")));
        }
        exporters.push(net.trunc());
    }
    if raw.prefixes.is_empty() && protect.is_empty() {
        let why = "name the addresses that are yours, here or as protect.prefixes: the exporter tells of traffic to \
                   everybody";
        return Err(("prefixes", why.to_owned()));
    }
    within("sampling_rate", raw.sampling_rate, 1, MAX_SAMPLING_RATE)?;
    within("active_timeout_secs", raw.active_timeout_secs, 1, 3_600)?;
    within("silent_secs", raw.silent_secs, 5, 86_400)?;
    if raw.listen.port() == 0 {
        return Err(("listen", "give the port that the routers send to".to_owned()));
    }
    let prefixes = if raw.prefixes.is_empty() { protect } else { &raw.prefixes };
    Ok(ListenerConfig {
        listen: raw.listen,
        protocol: raw.protocol,
        exporters,
        sampling_rate: raw.sampling_rate,
        prefixes: prefixes.iter().map(IpNet::trunc).collect(),
        input_interfaces: raw.input_interfaces.clone(),
        egress: raw.egress,
        active_timeout_secs: raw.active_timeout_secs,
        silent_secs: raw.silent_secs,
    })
}

fn within(key: &'static str, value: u32, low: u32, high: u32) -> Result<(), (&'static str, String)> {
    if (low..=high).contains(&value) { Ok(()) } else { Err((key, format!("must be {low} to {high}, got {value}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, protect: &[&str]) -> Result<Vec<ListenerConfig>, String> {
        #[derive(Deserialize)]
        struct File {
            flow_exporter: Vec<RawFlowExporter>,
        }
        let file: File = toml::from_str(text).map_err(|e| e.to_string())?;
        let protect: Vec<IpNet> = protect.iter().map(|p| p.parse().expect("a prefix")).collect();
        check_flow_exporters(&file.flow_exporter, &protect).map_err(|(key, message)| format!("{key}: {message}"))
    }

    #[test]
    fn what_is_wrong_is_named_and_nobody_is_believed_by_default() {
        let table: [(&str, &str, &[&str], Option<&str>); 11] = [
            ("whole", "exporters = [\"192.0.2.1\"]", &["203.0.113.0/24"], None),
            ("no exporters", "", &["203.0.113.0/24"], Some("exporters: name the addresses of the routers")),
            ("everybody", "exporters = [\"0.0.0.0/0\"]", &["203.0.113.0/24"], Some("believe everybody")),
            ("no address", "exporters = [\"router\"]", &["203.0.113.0/24"], Some("neither an address")),
            ("no targets", "exporters = [\"192.0.2.1\"]", &[], Some("prefixes: name the addresses that are yours")),
            ("own targets", "exporters = [\"192.0.2.1\"]\nprefixes = [\"203.0.113.0/24\"]", &[], None),
            ("no sampling", "exporters = [\"192.0.2.1\"]\nsampling_rate = 0", &["::/0"], Some("1 to 1000000, got 0")),
            ("endless", "exporters = [\"192.0.2.1\"]\nactive_timeout_secs = 9999", &["::/0"], Some("active_timeout")),
            ("protocol", "exporters = [\"192.0.2.1\"]\nprotocol = \"snmp\"", &["::/0"], Some("snmp")),
            ("unknown key", "exporters = [\"192.0.2.1\"]\ncolour = 1", &["::/0"], Some("colour")),
            ("silence", "exporters = [\"192.0.2.1\"]\nsilent_secs = 1", &["::/0"], Some("silent_secs")),
        ];
        for (name, extra, protect, expected) in table {
            let got = parse(&format!("[[flow_exporter]]\nlisten = \"127.0.0.1:6343\"\n{extra}\n"), protect);
            match (got, expected) {
                (Ok(_), None) => {}
                (Err(got), Some(part)) => assert!(got.contains(part), "{name}: {got}"),
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
    }

    #[test]
    fn a_socket_is_named_once_and_knows_whom_it_expects() {
        let one = "[[flow_exporter]]\nlisten = \"127.0.0.1:6343\"\nexporters = [\"192.0.2.1\", \"198.51.100.7/24\"]\n";
        assert!(parse(&format!("{one}{one}"), &["::/0"]).is_err_and(|e| e.contains("twice")));
        let listener = parse(one, &["203.0.113.9/24"]).expect("valid").remove(0);
        assert_eq!(listener.expected().collect::<Vec<_>>(), [IpAddr::from([192, 0, 2, 1])]);
        assert!(listener.is_allowed(IpAddr::from([198, 51, 100, 200])));
        assert!(!listener.is_allowed(IpAddr::from([192, 0, 2, 2])));
        assert_eq!(listener.prefixes[0].to_string(), "203.0.113.0/24");
    }
}
