//! Addresses that nothing automated may block.

use ftagent_common::api::AllowEntry;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp};

/// For whom an entry holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AllowlistScope {
    #[default]
    Workspace,
    Node,
}

/// An entry to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAllowlistEntry {
    pub prefix: IpNet,
    pub label: String,
    /// None: the whole workspace.
    pub node: Option<Uuid>,
}

impl NewAllowlistEntry {
    /// # Errors
    /// What is no address or prefix, a prefix that is everybody, a label over 128 characters, a scope that does not
    /// fit the node.
    pub fn parse(ip: &str, label: &str, scope: AllowlistScope, node: Option<Uuid>) -> Result<Self, Problem> {
        let mut check = Check::default();
        let prefix = parse_prefix(ip);
        check.that(prefix.is_some(), "ip_address", || "must be an IPv4 or IPv6 address, or a CIDR prefix".to_owned());
        check.that(prefix.is_none_or(|p| p.prefix_len() > 0), "ip_address", || {
            "is everybody: nothing could be blocked any more".to_owned()
        });
        check.line("label", label, 0, 128);
        check.that(scope == AllowlistScope::Workspace || node.is_some(), "node", || {
            "is required when scope is node".to_owned()
        });
        check.that(scope == AllowlistScope::Node || node.is_none(), "node", || {
            "is only possible when scope is node".to_owned()
        });
        check.done()?;
        let prefix = prefix.ok_or_else(|| Problem::field("ip_address", "must be an address"))?;
        Ok(Self { prefix, label: label.to_owned(), node })
    }
}

/// Reads an address or prefix and clears its host bits, so that one network has one spelling.
pub(crate) fn parse_prefix(text: &str) -> Option<IpNet> {
    let text = text.trim();
    text.parse::<IpNet>().ok().or_else(|| text.parse::<std::net::IpAddr>().ok().map(IpNet::from)).map(|p| p.trunc())
}

/// The shortest spelling: an address without its length.
pub(crate) fn prefix_text(prefix: &IpNet) -> String {
    if prefix.prefix_len() == prefix.max_prefix_len() { prefix.addr().to_string() } else { prefix.to_string() }
}

/// An entry as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct AllowlistEntry {
    pub id: i64,
    /// Address, or prefix in CIDR notation.
    #[serde(serialize_with = "serialize_prefix")]
    #[schema(value_type = String)]
    pub ip_address: IpNet,
    pub label: String,
    pub scope: AllowlistScope,
    /// The node that it holds for, if not for all.
    pub node: Option<Uuid>,
    pub created_at: Timestamp,
}

pub(crate) fn serialize_prefix<S: serde::Serializer>(prefix: &IpNet, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&prefix_text(prefix))
}

impl AllowlistEntry {
    /// The entry as a node needs it.
    pub fn to_wire(&self) -> AllowEntry {
        AllowEntry { prefix: self.ip_address, label: self.label.clone() }
    }

    /// Whether blocking `other` would block somebody in this entry.
    pub fn overlaps(&self, other: &IpNet) -> bool {
        self.ip_address.contains(other) || other.contains(&self.ip_address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ip: &str, scope: AllowlistScope, node: Option<Uuid>, expected: Result<&str, &str>) {
        let got = NewAllowlistEntry::parse(ip, "office", scope, node);
        match (got, expected) {
            (Ok(entry), Ok(text)) => assert_eq!(prefix_text(&entry.prefix), text, "{ip}"),
            (Err(Problem::Invalid(fields)), Err(field)) => assert_eq!(fields[0].field, field, "{ip}"),
            (got, _) => panic!("{ip}: {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn addresses_and_prefixes_have_one_spelling() {
        use AllowlistScope::{Node, Workspace};
        let node = Some(Uuid::nil());
        check("198.51.100.10", Workspace, None, Ok("198.51.100.10"));
        check("198.51.100.10/32", Workspace, None, Ok("198.51.100.10"));
        check("198.51.100.77/24", Workspace, None, Ok("198.51.100.0/24"));
        check("2001:DB8::1", Node, node, Ok("2001:db8::1"));
        for junk in ["", "office", "198.51.100.10/33", "0.0.0.0/0", "::/0", "1.2.3.4' OR 1=1", "1.2.3.4\0"] {
            check(junk, Workspace, None, Err("ip_address"));
        }
        check("198.51.100.10", Node, None, Err("node"));
        check("198.51.100.10", Workspace, node, Err("node"));
    }
}
