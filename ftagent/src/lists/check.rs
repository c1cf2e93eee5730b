//! `ftagent lists check`: loads lists as the agent would, and says what became of them.

use std::fmt::Write as _;
use std::path::Path;

use ipnet::IpNet;
use serde::Serialize;

use super::load::{LoadError, load};
use super::{ListAction, ListConfig, ListSource, Pick, Report, Spared, Widest};
use crate::config::Config;
use crate::host::HostFacts;

/// What became of one list.
#[derive(Debug, Serialize)]
pub struct Checked {
    pub name: String,
    pub path: String,
    /// The agent would take it.
    pub ok: bool,
    pub error: Option<String>,
    /// Absent where the file could not be read at all.
    pub report: Option<Report>,
}

impl Checked {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let name = if self.name == self.path { String::new() } else { format!("{} ", self.name) };
        let report = self.report.as_ref().map(Report::text).unwrap_or_default();
        match &self.error {
            Some(error) => _ = writeln!(text, "{name}NOT LOADED: {error}\n{report}"),
            None => _ = writeln!(text, "{name}{}: {report}", self.path),
        }
        text
    }
}

/// Loads each of `lists`, and says which of their prefixes meet `spared`.
pub fn check(lists: &[ListConfig], spared: &[Spared]) -> Vec<Checked> {
    let check = |list: &ListConfig| {
        let (name, path) = (list.name.clone(), list.source.path().display().to_string());
        match load(list, spared) {
            Ok(loaded) => Checked { name, path, ok: true, error: None, report: Some(loaded.report) },
            Err(error) => {
                let words = error.to_string();
                let report = match error {
                    LoadError::NoPrefix { report, .. } => Some(*report),
                    _ => None,
                };
                Checked { name, path, ok: false, error: Some(words), report }
            }
        }
    };
    lists.iter().map(check).collect()
}

/// A file of the command line as a list: a database where there is something to pick, else a text.
pub fn file_as_list(path: &Path, pick: &Pick, widest: Widest) -> ListConfig {
    let path = path.to_owned();
    let source = if *pick == Pick::default() {
        ListSource::Text(path.clone())
    } else {
        ListSource::Mmdb { path: path.clone(), pick: pick.clone() }
    };
    let name = path.display().to_string();
    ListConfig { name, source, action: ListAction::Block, refresh_secs: 60, widest }
}

/// The prefixes that lists should have nothing of: those that the operator trusts, and the node's own where known.
pub fn spared(config: &Config, facts: Option<&HostFacts>) -> Vec<Spared> {
    let allowed =
        config.settings.allow.iter().map(|entry| Spared { prefix: entry.prefix, why: "allowlist: outranks the list" });
    let management = config
        .management
        .iter()
        .map(|m| Spared { prefix: m.prefix, why: "management: outranks the list on its ports" });
    let own = facts.into_iter().flat_map(HostFacts::own_addresses);
    let own = own.map(|prefix| Spared { prefix, why: "an address of this node" });
    let gateways = facts.into_iter().flat_map(|facts| &facts.gateways);
    let gateways = gateways.map(|(ip, _)| Spared { prefix: IpNet::from(*ip), why: "a default gateway" });
    allowed.chain(management).chain(own).chain(gateways).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_says_what_is_loaded_and_what_is_not() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("good"), "198.51.100.0/24\n10.1.1.1/8\nnonsense\n").expect("room");
        std::fs::write(path("bad"), "<html>\n").expect("room");
        let lists = ["good", "bad", "none"].map(|name| file_as_list(&path(name), &Pick::default(), Widest::default()));
        let checked = check(&lists, &[]);
        assert_eq!(checked.iter().map(|c| c.ok).collect::<Vec<_>>(), [true, false, false]);
        let text = checked[0].text();
        assert!(text.contains("2 prefixes loaded (2 IPv4, 0 IPv6) from 3 lines"), "{text}");
        assert!(text.contains("line 2: 10.1.1.1/8") && text.contains("line 3: nonsense"), "{text}");
        assert!(checked[1].report.is_some() && checked[1].text().contains("NOT LOADED"), "{}", checked[1].text());
        assert!(checked[2].report.is_none());
        let json = serde_json::to_value(&checked).expect("JSON");
        assert_eq!(json[0]["report"]["findings"]["not_prefix"]["first"][0]["line"], 3);
    }

    #[test]
    fn what_lists_should_not_have_comes_from_the_configuration_and_the_node() {
        let text = "[[interface]]\nname = \"eth0\"\n[[allow]]\nprefix = \"198.51.100.7/32\"\n\
                    [management]\nsources = [\"192.0.2.0/24\"]\nports = [22]\n";
        let config = Config::parse(text, Path::new("t.toml")).expect("valid");
        let facts =
            HostFacts { gateways: vec![("203.0.113.1".parse().expect("an address"), 1)], ..HostFacts::default() };
        let why: Vec<&str> = spared(&config, Some(&facts)).iter().map(|s| s.why).collect();
        let expected =
            ["allowlist: outranks the list", "management: outranks the list on its ports", "a default gateway"];
        assert_eq!(why, expected);
    }
}
