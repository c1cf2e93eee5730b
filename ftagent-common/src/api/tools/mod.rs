//! The actions that other programs or servers carry out, one file each: parameters, their bounds, what is run and undone.
//!
//! Pure, for agent and control plane alike: what is shown here is what the agent runs, as argument vectors and never
//! by a shell. Every word of a vector is a constant of this folder, a number, an address, or a name of
//! [`names`], which cannot hold what a tool would read as an option.

mod answer;
mod cloudflare_block;
mod digitalocean_block;
mod fail2ban_ban;
mod firewalld_drop_source;
mod ipset_ban;
mod iptables_drop_port;
mod iptables_drop_protocol;
mod iptables_drop_source;
mod iptables_limit_connections;
mod iptables_limit_syn;
mod iptables_rate_limit_source;
mod iptables_reject_protocol;
mod look;
mod members;
mod names;
mod null_route_source;
mod remainder;
mod step;
mod syn_cookies;
mod tc_police_interface;
#[cfg(test)]
mod tests;
mod ufw_deny_protocol;
mod ufw_deny_source;
mod ufw_look;
mod vultr_block;
mod xtables;

use ipnet::IpNet;

use super::action::ParameterError;
use super::preview::{NodeMeans, Preview};

pub use answer::{is_so_already, meaning};
pub use cloudflare_block::{
    CLOUDFLARE_API, CLOUDFLARE_MARK, CloudflareBlock, access_rule, access_rules, list_item, list_items,
};
pub use digitalocean_block::{DIGITALOCEAN_API, DigitaloceanBlock, firewall_path};
pub use fail2ban_ban::Fail2banBan;
pub use firewalld_drop_source::FirewalldDropSource;
pub use ipset_ban::IpsetBan;
pub use iptables_drop_port::IptablesDropPort;
pub use iptables_drop_protocol::IptablesDropProtocol;
pub use iptables_drop_source::IptablesDropSource;
pub use iptables_limit_connections::IptablesLimitConnections;
pub use iptables_limit_syn::IptablesLimitSyn;
pub use iptables_rate_limit_source::IptablesRateLimitSource;
pub use iptables_reject_protocol::IptablesRejectProtocol;
pub use look::{Look, There, VALUE_BEFORE};
pub use members::{MEMBERS_AT_ONCE, Members, SetListing};
pub use names::{CloudId, FirewallId, InterfaceName, JailName, NameError, SetName};
pub use null_route_source::NullRouteSource;
pub use remainder::minus;
pub use step::ToolStep;
pub use syn_cookies::SynCookies;
pub use tc_police_interface::{PoliceLack, PoliceMeans, PoliceWay, TcPoliceInterface, police_trial};
pub use ufw_deny_protocol::{UfwDenyProtocol, UfwProtocol};
pub use ufw_deny_source::UfwDenySource;
pub use vultr_block::{VULTR_API, VultrBlock, accept_rule, group_rules, piece_notes, piece_of};

/// What an action acts on: its own sources or the incident's, and its own target or the incident's.
pub(super) struct Ground<'a> {
    pub(super) sources: &'a [IpNet],
    pub(super) target: IpNet,
    /// Whom an action that concerns everybody leaves alone.
    pub(super) spared: &'a [IpNet],
    pub(super) node: &'a NodeMeans,
}

/// An action of another tool.
pub(super) trait Parameters {
    /// The type's name on the wire.
    fn kind(&self) -> &'static str;

    fn tool(&self) -> &'static str;

    /// The sources that the parameters name, if the action is about sources.
    fn sources(&self) -> Option<&[IpNet]> {
        None
    }

    /// The most sources that the tool takes of one action: what has no sets gets a rule for each, and every packet pays
    /// for every rule.
    fn max_sources(&self) -> usize {
        256
    }

    /// Seconds until the effect ends by itself.
    fn ttl_secs(&self) -> Option<u32> {
        None
    }

    /// # Errors
    /// The first parameter out of bounds, by name.
    fn check(&self) -> Result<(), ParameterError> {
        Ok(())
    }

    /// Adds the steps of doing and undoing, and the risks.
    fn show(&self, on: &Ground<'_>, shown: &mut Preview);
}

/// Refuses a number outside of `from` to `to`.
fn within(field: &'static str, value: u64, from: u64, to: u64) -> Result<(), ParameterError> {
    if (from..=to).contains(&value) {
        Ok(())
    } else {
        Err(ParameterError::new(field, format!("must be {from} to {to}, got {value}")))
    }
}

/// An address without its length, a prefix with it: how people write both.
fn short(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.trunc().to_string() }
}

const fn is_v6(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}
