//! The actions of firewall rules and their parameters.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::tools::{self, Parameters};

/// Why an action's parameters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ParameterError {
    /// The parameter's path below `action`, such as `pps`.
    pub field: &'static str,
    pub message: String,
}

impl ParameterError {
    pub(super) fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }
}

/// The transport or network protocol that an action names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    Icmpv6,
    Gre,
    Esp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Icmp => 1,
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Gre => 47,
            Self::Esp => 50,
            Self::Icmpv6 => 58,
        }
    }

    /// The spelling on the wire and in nftables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Icmpv6 => "icmpv6",
            Self::Gre => "gre",
            Self::Esp => "esp",
        }
    }
}

/// The protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PortProtocol {
    Tcp,
    Udp,
}

impl PortProtocol {
    /// The same protocol among all.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Tcp => Protocol::Tcp,
            Self::Udp => Protocol::Udp,
        }
    }
}

/// Which of a packet's two ports is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PortSide {
    Source,
    #[default]
    Destination,
}

/// What a firewall rule does while an incident that it matches is open.
///
/// Sources and target come from the incident unless the parameters name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// Drops the sources in XDP.
    XdpDropSource {
        /// Addresses or prefixes; empty: the incident's sources, refused while they are judged spoofed.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        sources: Vec<IpNet>,
        /// Seconds until the kernel drops the entry by itself, 1 to 86,400; 3,600 by default.
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Limits each source to a rate in XDP.
    XdpRateLimitSource {
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        sources: Vec<IpNet>,
        /// Packets per second and source; give `pps` or `bps`.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100_000_000))]
        pps: Option<u64>,
        /// Bits per second and source.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1_000, maximum = 1_000_000_000_000_u64))]
        bps: Option<u64>,
        /// Packets (or bits) that may come at once; a tenth of a second's worth by default.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4_294_967_295_u64))]
        burst: Option<u64>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Drops a whole protocol towards the target in XDP.
    XdpDropProtocol {
        protocol: Protocol,
        /// Address or prefix; the incident's target by default.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        target: Option<IpNet>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Drops a port towards the target in XDP.
    XdpDropPort {
        protocol: PortProtocol,
        /// 1 to 65,535.
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        port: u16,
        #[serde(default)]
        side: PortSide,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        target: Option<IpNet>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Limits what reaches the target in XDP.
    XdpRateLimitTarget {
        /// All protocols by default.
        #[serde(default)]
        protocol: Option<Protocol>,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100_000_000))]
        pps: Option<u64>,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1_000, maximum = 1_000_000_000_000_u64))]
        bps: Option<u64>,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        target: Option<IpNet>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Drops a protocol towards the target in nftables, table `inet ftagent`.
    NftDropProtocol {
        protocol: Protocol,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        target: Option<IpNet>,
    },
    /// Drops a port towards the target in nftables.
    NftDropPort {
        protocol: PortProtocol,
        #[cfg_attr(feature = "openapi", schema(minimum = 1))]
        port: u16,
        #[serde(default)]
        side: PortSide,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
        target: Option<IpNet>,
    },
    /// Drops the sources in nftables, in a set with timeouts.
    NftDropSource {
        /// Addresses or prefixes, at most 100,000; empty: the incident's sources.
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        sources: Vec<IpNet>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Limits each source in nftables.
    NftRateLimitSource {
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
        sources: Vec<IpNet>,
        /// Packets per second and source.
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 100_000_000))]
        pps: u64,
        #[serde(default)]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 4_294_967_295_u64))]
        burst: Option<u64>,
        #[serde(default = "default_ttl")]
        #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
        ttl_secs: u32,
    },
    /// Drops a protocol in iptables, whatever its destination on the node.
    IptablesDropProtocol(tools::IptablesDropProtocol),
    /// Drops the sources in iptables, a rule each.
    IptablesDropSource(tools::IptablesDropSource),
    /// Drops a destination port in iptables.
    IptablesDropPort(tools::IptablesDropPort),
    /// Limits every source to a rate in iptables, by hashlimit.
    IptablesRateLimitSource(tools::IptablesRateLimitSource),
    /// Limits the TCP connections of every source in iptables, by connlimit.
    IptablesLimitConnections(tools::IptablesLimitConnections),
    /// Limits new TCP connections to each address of the node in iptables.
    IptablesLimitSyn(tools::IptablesLimitSyn),
    /// Rejects a protocol in iptables.
    IptablesRejectProtocol(tools::IptablesRejectProtocol),
    /// Adds the sources to an ipset whose members iptables drops.
    IpsetBan(tools::IpsetBan),
    /// Denies a protocol in ufw.
    UfwDenyProtocol(tools::UfwDenyProtocol),
    /// Denies the sources in ufw.
    UfwDenySource(tools::UfwDenySource),
    /// Drops the sources in firewalld, by rich rules with a timeout.
    FirewalldDropSource(tools::FirewalldDropSource),
    /// Limits what an interface receives, by tc.
    TcPoliceInterface(tools::TcPoliceInterface),
    /// Routes the sources to nowhere.
    NullRouteSource(tools::NullRouteSource),
    /// Bans the sources in a jail of fail2ban.
    Fail2banBan(tools::Fail2banBan),
    /// Blocks the sources at Cloudflare.
    CloudflareBlock(tools::CloudflareBlock),
    /// Excludes the sources from what a DigitalOcean cloud firewall allows.
    DigitaloceanBlock(tools::DigitaloceanBlock),
    /// Excludes the sources from what a Vultr firewall group accepts.
    VultrBlock(tools::VultrBlock),
    /// Turns SYN cookies on.
    SynCookies(tools::SynCookies),
}

/// One hour: long enough for most attacks, short enough for a block nobody remembers.
pub(super) const fn default_ttl() -> u32 {
    3_600
}

/// The most sources one rule may name whose tool has a rule for each.
pub const MAX_SOURCES: usize = 1_024;
/// The most sources of an action whose tool has sets.
pub const MAX_SET_SOURCES: usize = 100_000;

impl Action {
    /// The parameters of an action of another tool than the kernel's own; none for XDP and nftables.
    pub(super) fn parameters(&self) -> Option<&dyn Parameters> {
        Some(match self {
            Self::IptablesDropProtocol(p) => p,
            Self::IptablesDropSource(p) => p,
            Self::IptablesDropPort(p) => p,
            Self::IptablesRateLimitSource(p) => p,
            Self::IptablesLimitConnections(p) => p,
            Self::IptablesLimitSyn(p) => p,
            Self::IptablesRejectProtocol(p) => p,
            Self::IpsetBan(p) => p,
            Self::UfwDenyProtocol(p) => p,
            Self::UfwDenySource(p) => p,
            Self::FirewalldDropSource(p) => p,
            Self::TcPoliceInterface(p) => p,
            Self::NullRouteSource(p) => p,
            Self::Fail2banBan(p) => p,
            Self::CloudflareBlock(p) => p,
            Self::DigitaloceanBlock(p) => p,
            Self::VultrBlock(p) => p,
            Self::SynCookies(p) => p,
            _ => return None,
        })
    }

    /// The type's name on the wire.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::XdpDropSource { .. } => "xdp_drop_source",
            Self::XdpRateLimitSource { .. } => "xdp_rate_limit_source",
            Self::XdpDropProtocol { .. } => "xdp_drop_protocol",
            Self::XdpDropPort { .. } => "xdp_drop_port",
            Self::XdpRateLimitTarget { .. } => "xdp_rate_limit_target",
            Self::NftDropProtocol { .. } => "nft_drop_protocol",
            Self::NftDropPort { .. } => "nft_drop_port",
            Self::NftDropSource { .. } => "nft_drop_source",
            Self::NftRateLimitSource { .. } => "nft_rate_limit_source",
            other => other.parameters().map_or("unknown", Parameters::kind),
        }
    }

    /// The tool that carries the action out.
    pub fn tool(&self) -> &'static str {
        match self {
            Self::XdpDropSource { .. }
            | Self::XdpRateLimitSource { .. }
            | Self::XdpDropProtocol { .. }
            | Self::XdpDropPort { .. }
            | Self::XdpRateLimitTarget { .. } => "xdp",
            other => other.parameters().map_or("nftables", Parameters::tool),
        }
    }

    /// Whether the agent's own rule set carries it out, in XDP or its nftables table; the rest needs other programs or
    /// servers.
    pub fn is_native(&self) -> bool {
        self.parameters().is_none()
    }

    /// Whether a provider's API carries it out, for which the node needs a key.
    pub fn is_cloud(&self) -> bool {
        matches!(self, Self::CloudflareBlock(_) | Self::DigitaloceanBlock(_) | Self::VultrBlock(_))
    }

    /// The sources that the parameters name, if the action is about sources.
    pub fn sources(&self) -> Option<&[IpNet]> {
        match self {
            Self::XdpDropSource { sources, .. }
            | Self::XdpRateLimitSource { sources, .. }
            | Self::NftDropSource { sources, .. }
            | Self::NftRateLimitSource { sources, .. } => Some(sources),
            other => other.parameters()?.sources(),
        }
    }

    /// The same, to be filled in from an incident.
    pub fn sources_mut(&mut self) -> Option<&mut Vec<IpNet>> {
        match self {
            Self::XdpDropSource { sources, .. }
            | Self::XdpRateLimitSource { sources, .. }
            | Self::NftDropSource { sources, .. }
            | Self::NftRateLimitSource { sources, .. } => Some(sources),
            Self::IptablesDropSource(p) => Some(&mut p.sources),
            Self::IpsetBan(p) => Some(&mut p.sources),
            Self::UfwDenySource(p) => Some(&mut p.sources),
            Self::FirewalldDropSource(p) => Some(&mut p.sources),
            Self::NullRouteSource(p) => Some(&mut p.sources),
            Self::Fail2banBan(p) => Some(&mut p.sources),
            Self::CloudflareBlock(p) => Some(&mut p.sources),
            Self::DigitaloceanBlock(p) => Some(&mut p.sources),
            Self::VultrBlock(p) => Some(&mut p.sources),
            _ => None,
        }
    }

    /// The same with at most [`MAX_SOURCES`] of its sources: for reports, beside which the number of them stands.
    pub fn brief(&self) -> Self {
        let mut brief = self.clone();
        if let Some(sources) = brief.sources_mut() {
            sources.truncate(MAX_SOURCES);
        }
        brief
    }

    /// The most sources that its tool takes of one action.
    pub fn max_sources(&self) -> usize {
        match self {
            Self::NftDropSource { .. } => MAX_SET_SOURCES,
            other => other.parameters().map_or(MAX_SOURCES, Parameters::max_sources),
        }
    }

    /// The target that the parameters name, if any.
    pub fn target(&self) -> Option<IpNet> {
        match self {
            Self::XdpDropProtocol { target, .. }
            | Self::XdpDropPort { target, .. }
            | Self::XdpRateLimitTarget { target, .. }
            | Self::NftDropProtocol { target, .. }
            | Self::NftDropPort { target, .. } => *target,
            _ => None,
        }
    }

    /// Seconds until the effect ends by itself, where the tool can do that.
    pub fn ttl_secs(&self) -> Option<u32> {
        match self {
            Self::XdpDropSource { ttl_secs, .. }
            | Self::XdpRateLimitSource { ttl_secs, .. }
            | Self::XdpDropProtocol { ttl_secs, .. }
            | Self::XdpDropPort { ttl_secs, .. }
            | Self::XdpRateLimitTarget { ttl_secs, .. }
            | Self::NftDropSource { ttl_secs, .. }
            | Self::NftRateLimitSource { ttl_secs, .. } => Some(*ttl_secs),
            other => other.parameters()?.ttl_secs(),
        }
    }

    /// Checks the bounds of every parameter.
    ///
    /// # Errors
    /// The first parameter out of bounds, by name.
    pub fn validate(&self) -> Result<(), ParameterError> {
        if let Some(sources) = self.sources() {
            let most = self.max_sources();
            if sources.len() > most {
                return Err(ParameterError::new("sources", format!("at most {most} addresses, got {}", sources.len())));
            }
            if let Some(whole) = sources.iter().find(|s| s.prefix_len() == 0) {
                return Err(ParameterError::new("sources", format!("{whole} is everybody: name a longer prefix")));
            }
        }
        if let Some(ttl) = self.ttl_secs()
            && !(1..=86_400).contains(&ttl)
        {
            return Err(ParameterError::new("ttl_secs", format!("must be 1 to 86400 seconds, got {ttl}")));
        }
        match self {
            Self::XdpDropPort { port: 0, .. } | Self::NftDropPort { port: 0, .. } => {
                Err(ParameterError::new("port", "must be 1 to 65535, got 0"))
            }
            Self::XdpRateLimitSource { pps, bps, burst, .. } => {
                one_rate(*pps, *bps)?;
                burst_in_bounds(*burst)
            }
            Self::XdpRateLimitTarget { pps, bps, .. } => one_rate(*pps, *bps),
            Self::NftRateLimitSource { pps, burst, .. } => {
                one_rate(Some(*pps), None)?;
                burst_in_bounds(*burst)
            }
            other => other.parameters().map_or(Ok(()), Parameters::check),
        }
    }
}

/// 100 million packets a second: 64-byte line rate of a 50 Gbit/s port.
pub const MAX_PPS: u64 = 100_000_000;
/// 1 Tbit/s.
pub const MAX_BPS: u64 = 1_000_000_000_000;

fn one_rate(pps: Option<u64>, bps: Option<u64>) -> Result<(), ParameterError> {
    match (pps, bps) {
        (None, None) => Err(ParameterError::new("pps", "give pps or bps")),
        (Some(_), Some(_)) => Err(ParameterError::new("bps", "give pps or bps, not both")),
        (Some(pps), None) if !(1..=MAX_PPS).contains(&pps) => {
            Err(ParameterError::new("pps", format!("must be 1 to {MAX_PPS} packets/s, got {pps}")))
        }
        (None, Some(bps)) if !(1_000..=MAX_BPS).contains(&bps) => {
            Err(ParameterError::new("bps", format!("must be 1000 to {MAX_BPS} bits/s, got {bps}")))
        }
        _ => Ok(()),
    }
}

fn burst_in_bounds(burst: Option<u64>) -> Result<(), ParameterError> {
    match burst {
        Some(burst) if !(1..=u64::from(u32::MAX)).contains(&burst) => {
            Err(ParameterError::new("burst", format!("must be 1 to {}, got {burst}", u32::MAX)))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(json: &str, expected: Result<(), &str>) {
        let got = serde_json::from_str::<Action>(json)
            .map_err(|e| e.to_string())
            .and_then(|a| a.validate().map_err(|e| e.to_string()));
        match expected {
            Ok(()) => assert_eq!(got, Ok(()), "{json}"),
            Err(part) => assert!(got.clone().is_err_and(|e| e.contains(part)), "{json}: {got:?} lacks {part:?}"),
        }
    }

    #[test]
    fn parameters_out_of_bounds_are_refused_by_name() {
        check(r#"{"type":"xdp_drop_source"}"#, Ok(()));
        check(r#"{"type":"xdp_drop_source","sources":["0.0.0.0/0"]}"#, Err("sources"));
        check(r#"{"type":"xdp_drop_source","ttl_secs":0}"#, Err("ttl_secs"));
        check(r#"{"type":"xdp_drop_port","protocol":"udp","port":0}"#, Err("port"));
        check(r#"{"type":"xdp_drop_port","protocol":"icmp","port":1}"#, Err("icmp"));
        check(r#"{"type":"xdp_rate_limit_target"}"#, Err("pps"));
        check(r#"{"type":"xdp_rate_limit_target","pps":5,"bps":5}"#, Err("not both"));
        check(r#"{"type":"xdp_rate_limit_target","bps":5}"#, Err("bps"));
        check(r#"{"type":"nft_drop_source","colour":"red"}"#, Err("colour"));
        check(r#"{"type":"rm_rf"}"#, Err("rm_rf"));
    }

    #[test]
    fn every_kind_is_its_name_on_the_wire() {
        for json in [
            r#"{"type":"xdp_drop_protocol","protocol":"udp"}"#,
            r#"{"type":"nft_rate_limit_source","pps":10}"#,
            r#"{"type":"nft_drop_port","protocol":"tcp","port":80}"#,
        ] {
            let action: Action = serde_json::from_str(json).expect(json);
            assert!(json.contains(action.kind()), "{json}");
        }
    }
}
