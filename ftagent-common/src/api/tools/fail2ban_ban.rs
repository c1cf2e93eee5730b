//! `fail2ban_ban`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::names::JailName;
use super::{Ground, Parameters, short};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

/// Bans the sources in a jail, which says what a ban is and how long it lasts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Fail2banBan {
    /// 1 to 64 characters.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,63}$"))]
    pub jail: JailName,
    /// Addresses, at most 256, no prefixes; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
}

impl Parameters for Fail2banBan {
    fn kind(&self) -> &'static str {
        "fail2ban_ban"
    }

    fn tool(&self) -> &'static str {
        "fail2ban"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn check(&self) -> Result<(), ParameterError> {
        match self.sources.iter().find(|s| s.prefix_len() < s.max_prefix_len()) {
            Some(prefix) => {
                Err(ParameterError::new("sources", format!("{prefix} is a prefix: fail2ban bans addresses")))
            }
            None => Ok(()),
        }
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            let (jail, source) = (self.jail.as_str(), short(source));
            let words = |verb| argv(&["fail2ban-client", "set", jail, verb, &source]);
            shown.step(words("banip"), words("unbanip"), format!("ban of {source} in jail {jail}"));
        }
        shown.warnings.push(format!("how long a ban lasts is up to the jail {}", self.jail));
    }
}
