//! `null_route_source`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Ground, Parameters, is_v6};
use crate::api::preview::{Preview, argv};

/// Our routes are known by this number: routing daemons sweep away at their start what carries one of theirs (FRR's begin
/// at 186), and the fall-back of XDP has 247.
const PROTOCOL: &str = "248";
/// Our rules are known by this one.
const PREFERENCE: &str = "187";

/// Routes the sources to nowhere: a blackhole route, and a rule by source for what is forwarded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NullRouteSource {
    /// Addresses or prefixes, at most 256; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for NullRouteSource {
    fn kind(&self) -> &'static str {
        "null_route_source"
    }

    fn tool(&self) -> &'static str {
        "null_route"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            let family = if is_v6(source) { "-6" } else { "-4" };
            let prefix = source.to_string();
            let route = |verb| argv(&["ip", family, "route", verb, "blackhole", &prefix, "proto", PROTOCOL]);
            shown.step(route("add"), route("del"), format!("blackhole route to {prefix}, protocol {PROTOCOL}"));
            let rule = |verb| argv(&["ip", family, "rule", verb, "pref", PREFERENCE, "from", &prefix, "blackhole"]);
            shown.step(rule("add"), rule("del"), format!("rule {PREFERENCE}: from {prefix} blackhole"));
        }
        if on.sources.iter().any(|s| !is_v6(s)) {
            shown.warnings.push(
                "packets to addresses of the node itself are dropped where its reverse-path check is on (rp_filter 1 or \
                 2), else only the answers to them; what the node forwards is dropped by the rule"
                    .to_owned(),
            );
        }
        if on.sources.iter().any(is_v6) {
            shown.warnings.push(
                "IPv6 has no reverse-path check: of packets to addresses of the node itself only the answers are dropped"
                    .to_owned(),
            );
        }
    }
}
