//! Operators' lists of sources: files of prefixes, and countries or networks out of a GeoIP database.
//!
//! ```text
//! [[lists]] ─> Keeper: which is due ─> load (blocking): file ─> text or mmdb ─> prune ─> LoadedList ─> Keeper ─> ListSet
//! ```
//!
//! A list is taken whole or not at all: whatever goes wrong while one is loaded, the one before stays in force and
//! `ftagent status` says why. Nothing here knows the kernel: a [`ListSet`] is what the datapath makes its tables of.

mod check;
mod config;
mod file;
mod keeper;
mod line;
mod load;
mod mmdb;
mod prune;
mod report;
mod text;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::engine::RuleId;

pub use check::{Checked, check, file_as_list, spared};
pub use config::{RawList, check_lists};
pub use file::{FileError, Stamp};
pub use keeper::{Change, Keeper, ListStatus, Order};
pub use load::{LoadError, Look, look};
pub use mmdb::MmdbError;
pub use report::{Finding, Kind, Report, Shown, SparedHit};

/// Entries of one list that are read at most; more is an error, never a part of the list.
pub const MAX_ENTRIES: usize = 4_000_000;

/// One `[[lists]]` of the configuration, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListConfig {
    pub name: String,
    pub source: ListSource,
    pub action: ListAction,
    /// Between two looks whether the file has changed.
    pub refresh_secs: u32,
    pub widest: Widest,
}

/// Where the prefixes of a list are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListSource {
    /// A text file with an entry on each line.
    Text(PathBuf),
    /// Those networks of a MaxMind database that have one of these countries or autonomous systems.
    Mmdb { path: PathBuf, pick: Pick },
}

impl ListSource {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Text(path) | Self::Mmdb { path, .. } => path,
        }
    }
}

/// What is taken out of a database: a network that has one of the countries or one of the numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// ISO 3166-1 codes of two capital letters.
    pub countries: BTreeSet<String>,
    /// Autonomous system numbers.
    pub asns: BTreeSet<u32>,
}

/// What happens to frames of listed sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ListAction {
    #[default]
    Block,
    /// Counted as what would have been dropped, and passed.
    Evaluate,
}

impl ListAction {
    /// As it is written in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Evaluate => "evaluate",
        }
    }
}

/// The shortest prefixes that a list may have: one line must not cut off half of the world by mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widest {
    /// 1 to 32.
    pub min_prefix_v4: u8,
    /// 1 to 128.
    pub min_prefix_v6: u8,
}

impl Default for Widest {
    fn default() -> Self {
        Self { min_prefix_v4: 8, min_prefix_v6: 16 }
    }
}

impl Widest {
    fn allows(self, net: &IpNet) -> bool {
        match net {
            IpNet::V4(net) => net.prefix_len() >= self.min_prefix_v4,
            IpNet::V6(net) => net.prefix_len() >= self.min_prefix_v6,
        }
    }
}

/// A prefix that lists should have nothing of, and what it is to the node.
///
/// The allowlist outranks lists, and fail-safe prefixes do on their ports; all the same whoever keeps the list wants to
/// know, and a gateway's or the node's own address on a list is a mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spared {
    pub prefix: IpNet,
    /// In an operator's words.
    pub why: &'static str,
}

/// The prefixes of one list: without host bits, sorted, none inside another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedList {
    pub v4: Vec<Ipv4Net>,
    pub v6: Vec<Ipv6Net>,
    pub report: Report,
    /// Of the file that it came from.
    pub stamp: Stamp,
}

impl LoadedList {
    /// Prefixes of both families.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Not one prefix.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// Every list that is in force, in the order of the configuration: of two lists with the same prefix the first holds.
#[derive(Clone, Debug, Default)]
pub struct ListSet {
    pub lists: Vec<ListInForce>,
}

impl ListSet {
    /// Every IPv4 prefix with its list's value in the table: the list's position from 1 on.
    pub fn v4(&self) -> impl Iterator<Item = (Ipv4Net, u16)> + '_ {
        self.lists.iter().zip(1..).flat_map(|(list, value)| list.list.v4.iter().map(move |net| (*net, value)))
    }

    /// Every IPv6 prefix, likewise.
    pub fn v6(&self) -> impl Iterator<Item = (Ipv6Net, u16)> + '_ {
        self.lists.iter().zip(1..).flat_map(|(list, value)| list.list.v6.iter().map(move |net| (*net, value)))
    }
}

/// One list for the datapath.
#[derive(Clone, Debug)]
pub struct ListInForce {
    pub name: String,
    /// The same before and after a refresh and a restart, so counters can be kept by it.
    pub rule: RuleId,
    pub action: ListAction,
    /// Monotonic nanoseconds from which on the kernel passes its prefixes; 0: it has no end.
    pub ends_at_ns: u64,
    pub list: Arc<LoadedList>,
}

/// The engine numbers its rules from 1; those of lists lie far above, and are integers in every JSON parser.
const FIRST_LIST_RULE: u64 = 1 << 52;

/// The rule of the list of this name (FNV-1a).
pub(crate) fn rule_of(name: &str) -> RuleId {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    RuleId(FIRST_LIST_RULE | hash & (FIRST_LIST_RULE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_id_depends_on_the_name_alone() {
        // Counters are kept by these across versions: they must never change.
        assert_eq!(rule_of("drop").0, FIRST_LIST_RULE | 0xf1a2_a766_dcd5_5bac & (FIRST_LIST_RULE - 1));
        assert_ne!(rule_of("a"), rule_of("b"));
    }
}
