//! The same exchanges with the tools of administrators: a set of nftables, and a set of ipset, each from a file.

use std::env;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::bench::stats;
use crate::clock::now;
use crate::netns::Netns;

/// Where tools of administrators lie, in case the search path has only those of users.
const MORE: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// How long a tool took, the middle of the rounds.
pub(super) struct Taken {
    pub(super) name: &'static str,
    pub(super) ms: f64,
}

struct Peer {
    name: &'static str,
    program: &'static str,
    args: &'static [&'static str],
    first: fn(&str) -> String,
    exchange: fn(&str) -> String,
}

const PEERS: [Peer; 2] = [
    Peer { name: "nft -f", program: "nft", args: &["-f"], first: nft_first, exchange: nft_exchange },
    Peer {
        name: "ipset swap",
        program: "ipset",
        args: &["restore", "-file"],
        first: ipset_first,
        exchange: ipset_exchange,
    },
];

/// Replaces one set of prefixes, a line each, by the other and back; a tool that is not there is told and left out.
pub(super) fn replace(sets: [&str; 2], rounds: u32, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Taken>> {
    let mut all = Vec::new();
    for peer in &PEERS {
        match replace_with(peer, sets, rounds) {
            Ok(ms) => all.extend(stats::median(&ms).map(|ms| Taken { name: peer.name, ms })),
            Err(error) => progress(&format!("{} is not available: {error:#}", peer.name)),
        }
    }
    Ok(all)
}

/// Milliseconds of each exchange, the start of the program included: an operator waits for it too.
fn replace_with(peer: &Peer, sets: [&str; 2], rounds: u32) -> anyhow::Result<Vec<f64>> {
    let program = find(peer.program)?;
    let dir = tempfile::tempdir()?;
    let netns = Netns::create("peer")?;
    let written = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let path = dir.path().join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let first = written("first", (peer.first)(sets[0]))?;
    let files = [written("0", (peer.exchange)(sets[0]))?, written("1", (peer.exchange)(sets[1]))?];
    netns.run(|| {
        run(&program, peer.args, &first)?;
        let mut ms = Vec::new();
        for round in 1..=rounds as usize {
            let began = now();
            run(&program, peer.args, &files[round % 2])?;
            ms.push(began.elapsed().as_secs_f64() * 1e3);
        }
        Ok(ms)
    })?
}

fn run(program: &Path, args: &[&str], file: &Path) -> anyhow::Result<()> {
    let said = tempfile::NamedTempFile::new()?;
    let mut command = Command::new(program);
    command.args(args).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(said.path())?);
    let status = command.status().with_context(|| format!("{} cannot be started", program.display()))?;
    if !status.success() {
        let said: String = fs::read_to_string(said.path()).unwrap_or_default().chars().take(160).collect();
        bail!("{} ended with {status}: {}", program.display(), said.trim());
    }
    Ok(())
}

fn find(program: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).chain(MORE.map(PathBuf::from)).map(|folder| folder.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("{program} is not installed"))
}

fn nft_first(set: &str) -> String {
    let hook = "type filter hook prerouting priority raw; policy accept; ip saddr @blocked drop;";
    let table = format!(
        "table ip lab {{\nset blocked {{ type ipv4_addr; flags interval; }}\nchain incoming {{ {hook} }}\n}}\n"
    );
    table + &nft_exchange(set)
}

/// One file is one transaction.
fn nft_exchange(set: &str) -> String {
    let elements: Vec<&str> = set.lines().collect();
    format!("flush set ip lab blocked\nadd element ip lab blocked {{ {} }}\n", elements.join(",\n"))
}

fn ipset_first(set: &str) -> String {
    ipset_set("blocked", set)
}

fn ipset_exchange(set: &str) -> String {
    ipset_set("next", set) + "swap blocked next\ndestroy next\n"
}

fn ipset_set(name: &str, set: &str) -> String {
    let count = set.lines().count();
    let mut text = format!("create {name} hash:net family inet hashsize {} maxelem {count}\n", count.max(64));
    for prefix in set.lines() {
        writeln!(text, "add {name} {prefix}").expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_names_every_prefix_once() {
        let set = "192.0.2.0/24\n198.51.100.7/32\n";
        let nft = nft_exchange(set);
        assert!(
            nft.starts_with("flush set ip lab blocked\n") && nft.contains("{ 192.0.2.0/24,\n198.51.100.7/32 }"),
            "{nft}"
        );
        let ipset = ipset_exchange(set);
        let lines: Vec<&str> = ipset.lines().collect();
        assert_eq!(
            lines[1..],
            ["add next 192.0.2.0/24", "add next 198.51.100.7/32", "swap blocked next", "destroy next"]
        );
    }
}
