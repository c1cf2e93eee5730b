//! `ipset_ban`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::members::{Members, SetListing};
use super::names::SetName;
use super::xtables::{Family, rule};
use super::{Ground, Parameters};
use crate::api::action::{MAX_SET_SOURCES, default_ttl};
use crate::api::preview::{Preview, argv};

/// The members that a set of ours takes: several actions may share one. Without the number it would be 65,536.
const MAX_MEMBERS: &str = "262144";

/// Adds the sources to a set; set and rule are made where they are missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct IpsetBan {
    /// 1 to 30 characters; sources of IPv6 go to the set of this name with a 6 behind it.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,29}$"))]
    pub set: SetName,
    /// Addresses or prefixes, at most 100,000; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
    /// Seconds until the kernel takes a source out again by itself, 1 to 86,400; 3,600 by default.
    #[serde(default = "default_ttl")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
    pub ttl_secs: u32,
}

impl Parameters for IpsetBan {
    fn kind(&self) -> &'static str {
        "ipset_ban"
    }

    fn tool(&self) -> &'static str {
        "ipset"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn max_sources(&self) -> usize {
        MAX_SET_SOURCES
    }

    fn ttl_secs(&self) -> Option<u32> {
        Some(self.ttl_secs)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        let ttl = self.ttl_secs.to_string();
        for (family, inet) in [(Family::V4, "inet"), (Family::V6, "inet6")] {
            let mine: Vec<_> = on.sources.iter().filter(|s| Family::of(s) == family).copied().collect();
            if mine.is_empty() {
                continue;
            }
            let set = match family {
                Family::V4 => self.set.to_string(),
                Family::V6 => format!("{}6", self.set),
            };
            let made = ["ipset", "create", &set, "hash:net", "family", inet, "timeout", &ttl, "maxelem", MAX_MEMBERS];
            shown.step(argv(&made), argv(&["ipset", "destroy", &set]), format!("ipset {set}, made unless it is there"));
            shown.unless.resize(shown.do_.len() - 1, Vec::new());
            shown.unless.push(argv(&["ipset", "list", "-t", &set]));
            rule(shown, family, &["-m", "set", "--match-set", &set, "src"], &["-j", "DROP"]);
            let last = shown.do_.len() - 1;
            let looked = shown.do_[last].iter().map(|word| if word == "-I" { "-C".to_owned() } else { word.clone() });
            shown.unless.push(looked.collect());
            shown.objects[last].push_str(", made unless it is there");
            for members in Members::of(&set, self.ttl_secs, mine) {
                shown.member_step(SetListing::restore(), members);
            }
        }
        shown.unless.resize(shown.do_.len(), Vec::new());
    }
}
