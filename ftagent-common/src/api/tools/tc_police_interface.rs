//! `tc_police_interface`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::InterfaceName;
use super::{Ground, Parameters, is_v6, within};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

/// The place of our filter among those of the interface: behind those that people number, which begin at 1.
const PREFERENCE: &str = "49187";

/// Where filters begin that let pass who is spared: before that one.
const FIRST_PREFERENCE: usize = 49_100;
/// The most prefixes that are spared: a filter each.
const MAX_SPARED: usize = 64;

/// Drops what an interface receives above a rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TcPoliceInterface {
    /// 1 to 15 characters.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,14}$"))]
    pub interface: InterfaceName,
    /// Bits per second, 8,000 to 1,000,000,000,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 8_000, maximum = 1_000_000_000_000_u64))]
    pub bps: u64,
    /// Bytes that may come at once, 2,048 to 4,294,967,295; what comes in ten milliseconds by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 2_048, maximum = 4_294_967_295_u64))]
    pub burst_bytes: Option<u32>,
}

impl TcPoliceInterface {
    /// A hundredth of a second's bytes, within the bounds; less than some packets would let nothing through.
    fn burst(&self) -> u64 {
        self.burst_bytes.map_or_else(|| (self.bps / 800).clamp(65_536, u64::from(u32::MAX)), u64::from)
    }

    /// Lets those pass that are never to be limited, and the questions for the addresses of neighbours.
    fn spare(&self, spared: &[IpNet], shown: &mut Preview) {
        if spared.is_empty() {
            return;
        }
        if spared.len() > MAX_SPARED {
            shown.refused = Some(format!(
                "{} prefixes must not be limited, more than the {MAX_SPARED} that tc is told to let pass: use XDP, which \
                 spares any number",
                spared.len()
            ));
            return;
        }
        let interface = self.interface.as_str();
        let mut pass = |place: usize, matches: &[&str], object: String| {
            let place = (FIRST_PREFERENCE + place).to_string();
            let filter = ["tc", "filter", "add", "dev", interface, "ingress", "pref", &place, "protocol"];
            let run = argv(&[filter.as_slice(), matches, &["action", "ok"]].concat());
            let undo = argv(&["tc", "filter", "del", "dev", interface, "ingress", "pref", &place]);
            shown.step(run, undo, format!("ingress filter {place} of {interface}: {object} passes"));
        };
        pass(0, &["arp", "matchall"], "ARP".to_owned());
        // IPv6 asks by ICMPv6, types 133 to 136, of which none comes through a router (RFC 4861, section 7.1).
        let direct =
            ["ipv6", "u32", "match", "u8", "0xff", "0xff", "at", "7", "match", "ip6", "protocol", "58", "0xff"];
        for (at, (kind, mask)) in [("0x84", "0xfc"), ("0x88", "0xff")].into_iter().enumerate() {
            let matches = [direct.as_slice(), &["match", "u8", kind, mask, "at", "40"]].concat();
            pass(MAX_SPARED + 1 + at, &matches, format!("neighbour discovery ({kind}/{mask})"));
        }
        for (at, prefix) in spared.iter().enumerate() {
            let (protocol, word) = if is_v6(prefix) { ("ipv6", "ip6") } else { ("ip", "ip") };
            let source = prefix.to_string();
            pass(at + 1, &[protocol, "u32", "match", word, "src", &source], format!("what comes from {source}"));
        }
    }
}

impl Parameters for TcPoliceInterface {
    fn kind(&self) -> &'static str {
        "tc_police_interface"
    }

    fn tool(&self) -> &'static str {
        "tc"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("bps", self.bps, 8_000, 1_000_000_000_000)?;
        within("burst_bytes", self.burst_bytes.map_or(2_048, u64::from), 2_048, u32::MAX.into())
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let interface = self.interface.as_str();
        let make = argv(&["tc", "qdisc", "add", "dev", interface, "clsact"]);
        let object = format!("qdisc clsact of {interface}, made unless it is there");
        shown.step(make, argv(&["tc", "qdisc", "del", "dev", interface, "clsact"]), object);
        self.spare(on.spared, shown);
        let (rate, burst) = (format!("{}bit", self.bps), self.burst().to_string());
        let filter = ["filter", "add", "dev", interface, "ingress", "pref", PREFERENCE, "protocol", "all", "matchall"];
        let police = ["action", "police", "rate", &rate, "burst", &burst, "conform-exceed", "drop"];
        let run = argv(&[["tc"].as_slice(), &filter, &police].concat());
        let undo = argv(&["tc", "filter", "del", "dev", interface, "ingress", "pref", PREFERENCE]);
        shown.step(
            run,
            undo,
            format!("ingress filter {PREFERENCE} of {interface}: police {rate}, burst {burst} bytes"),
        );
        shown.warnings.push(format!(
            "everything that {interface} receives shares the rate: wanted traffic is dropped with the rest. The node lets \
             pass, before that, every prefix that it never blocks: its allowlist, gateways, resolvers, control plane and \
             management sources"
        ));
        shown.warnings.push(
            "shown for a kernel that has clsact and police; a node whose kernel has not must do it another way, and \
             only the node can tell"
                .to_owned(),
        );
    }
}
