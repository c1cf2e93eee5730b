//! `ufw_deny_source`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::ufw_look::user_chain;
use super::{Ground, Parameters, is_v6, short};
use crate::api::preview::{Preview, argv};

/// Denies the sources, a rule each, before all others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UfwDenySource {
    /// Addresses or prefixes, at most 64; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for UfwDenySource {
    fn kind(&self) -> &'static str {
        "ufw_deny_source"
    }

    fn tool(&self) -> &'static str {
        "ufw"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    /// Each is a run of ufw, which reads and writes all of its rules.
    fn max_sources(&self) -> usize {
        64
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            // ufw takes longer to start and to load its rules anew than an attack has time: the same rule is put first in
            // its chain before that, where ufw replaces it by its own. Not those of all sources first: each run of ufw takes
            // from its chains what its files do not have.
            let (program, chain) = user_chain(is_v6(source));
            let whole = source.trunc().to_string();
            let rule = [chain, "-s", &whole, "-j", "DROP"];
            let run = argv(&[&[program, "-w", "5", "-I"], &rule[..]].concat());
            let undo = argv(&[&[program, "-w", "5", "-D"], &rule[..]].concat());
            shown.step(run, undo, format!("{program} rule, first in ufw's chain {chain}: drop from {whole}"));
            let source = short(source);
            let run = argv(&["ufw", "prepend", "deny", "from", &source, "to", "any"]);
            let undo = argv(&["ufw", "delete", "deny", "from", &source, "to", "any"]);
            shown.step(run, undo, format!("ufw rule, before all others: deny from {source} to any"));
        }
        shown.warnings.push("ufw lets established connections pass before its rules".to_owned());
    }
}
