//! `firewalld_drop_source`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Ground, Parameters, is_v6, short};
use crate::api::action::default_ttl;
use crate::api::preview::{Preview, argv};

/// Drops the sources, a rich rule each in the default zone, which firewalld takes back by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FirewalldDropSource {
    /// Addresses or prefixes, at most 256; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
    /// Seconds until firewalld takes the rule back, 1 to 86,400; 3,600 by default.
    #[serde(default = "default_ttl")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
    pub ttl_secs: u32,
}

impl Parameters for FirewalldDropSource {
    fn kind(&self) -> &'static str {
        "firewalld_drop_source"
    }

    fn tool(&self) -> &'static str {
        "firewalld"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn ttl_secs(&self) -> Option<u32> {
        Some(self.ttl_secs)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            let family = if is_v6(source) { "ipv6" } else { "ipv4" };
            let rich = format!("rule family=\"{family}\" source address=\"{}\" drop", short(source));
            let add = format!("--add-rich-rule={rich}");
            let run = argv(&["firewall-cmd", &add, &format!("--timeout={}", self.ttl_secs)]);
            let undo = argv(&["firewall-cmd", &format!("--remove-rich-rule={rich}")]);
            shown.step(run, undo, format!("rich rule of the default zone, timeout {} s: {rich}", self.ttl_secs));
        }
        shown.warnings.push("interfaces in other zones than the default one are not covered".to_owned());
    }
}
