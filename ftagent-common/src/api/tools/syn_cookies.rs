//! `syn_cookies`.

use serde::{Deserialize, Serialize};

use super::{Ground, Parameters, VALUE_BEFORE};
use crate::api::preview::{Preview, argv};

/// Turns SYN cookies on, of IPv4 and IPv6: the kernel has one switch for both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SynCookies {}

impl Parameters for SynCookies {
    fn kind(&self) -> &'static str {
        "syn_cookies"
    }

    fn tool(&self) -> &'static str {
        "sysctl"
    }

    fn show(&self, _: &Ground<'_>, shown: &mut Preview) {
        shown.step(
            argv(&["sysctl", "-w", "net.ipv4.tcp_syncookies=1"]),
            argv(&["sysctl", "-w", &format!("net.ipv4.tcp_syncookies={VALUE_BEFORE}")]),
            "net.ipv4.tcp_syncookies is 1; undone, it has the value that the node found".to_owned(),
        );
    }
}
