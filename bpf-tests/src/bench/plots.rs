//! The plots that a whole run leaves beside its history.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::svg::{self, Series};
use super::{Goal, Options};
use crate::ladder::{self, Row, Sources};

/// Who is drawn beside the datapath over the length of the list.
const PEERS: [(&str, &str); 4] = [
    ("nft-netdev", "nftables netdev, hit"),
    ("ipset-net", "ipset hash:net, hit"),
    ("xdp-lpm", "XDP trie, hit"),
    ("xdp-hash", "XDP hash, hit"),
];
const LENGTHS: [u32; 3] = [1_000, 100_000, 1_000_000];

/// Draws cost over the number of entries into `entries.svg`, the peers' measured for it, which are returned.
///
/// # Errors
/// The lab cannot be built, or the plot cannot be written.
pub(crate) fn entries(
    folder: &Path,
    options: &Options,
    mut lines: Vec<Series>,
    progress: &mut dyn FnMut(&str),
) -> anyhow::Result<Vec<Series>> {
    let asked = ladder::Options {
        rounds: options.rounds.min(5),
        time: Duration::from_millis(80),
        entries: LENGTHS.to_vec(),
        sources: vec![Sources::Random],
        only: PEERS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        ..ladder::Options::default()
    };
    let own = lines.len();
    lines.extend(curves(&ladder::run(&asked, progress)?));
    let plot = svg::lines("Cost of a dropped frame, random sources", "entries", "ns over a bare XDP_DROP", &lines);
    write(folder, "entries.svg", &plot)?;
    Ok(lines.split_off(own))
}

/// What each peer costs with the longest list, in words; those with lists of networks, or the one with addresses.
pub(crate) fn with_a_million(peers: &[Series], are_networks: bool) -> Option<String> {
    let is_wanted = |name: &str| name.starts_with("XDP hash") != are_networks;
    let last = |line: &Series| line.points.last().filter(|p| p.0 >= 1e6).map(|p| p.1);
    let wanted = peers.iter().filter(|line| is_wanted(&line.name));
    let said: Vec<String> = wanted
        .filter_map(|line| Some(format!("{} floor + {:.0} ns", line.name.trim_end_matches(", hit"), last(line)?)))
        .collect();
    (!said.is_empty()).then(|| said.join(", "))
}

/// A line for each peer that was measured.
fn curves(rows: &[Row]) -> Vec<Series> {
    let line = |(peer, name): &(&str, &str)| {
        let mut points: Vec<(f64, f64)> = rows
            .iter()
            .filter(|row| row.peer == *peer && row.rounds > 0)
            .map(|row| (f64::from(row.entries), row.over_floor_ns))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: (*name).to_owned(), points }
    };
    PEERS.iter().map(line).filter(|line| !line.points.is_empty()).collect()
}

/// Draws what the goals of a run say: `paths.svg` and `latency.svg`, each if there is something in it.
///
/// # Errors
/// A plot cannot be written.
pub fn goals(folder: &Path, goals: &[Goal]) -> anyhow::Result<()> {
    let paths = rows(goals, |goal| (goal.id.starts_with("P1") || goal.id.starts_with("P2")) && goal.unit == "ns");
    if !paths.is_empty() {
        let title = "What a frame costs by its path, over a bare XDP_DROP, one frame repeated";
        write(folder, "paths.svg", &svg::bars(title, "ns", &paths))?;
    }
    let mut latency = families(goals);
    if latency.is_empty() {
        latency = rows(goals, |goal| goal.id.starts_with("P9") && goal.unit == "ms");
    }
    if !latency.is_empty() {
        let title = "From the first frame of an attack to its drop";
        write(folder, "latency.svg", &svg::bars(title, "ms", &latency))?;
    }
    Ok(())
}

/// Two bars for each family of attacks, from the goal whose detail tells them apart.
fn families(goals: &[Goal]) -> Vec<(String, f64)> {
    const BEFORE: &str = "p50/p99/longest ms: ";
    let told = goals.iter().filter(|goal| goal.id.starts_with("P9")).find_map(|goal| goal.detail.split_once(BEFORE));
    let bars = |row: &str| -> Option<[(String, f64); 2]> {
        let (family, figures) = row.split_once(' ')?;
        let mut figures = figures.split(['/', ' ']).map(|figure| figure.parse::<f64>().ok());
        Some([(format!("{family}, p50"), figures.next()??), (format!("{family}, p99"), figures.next()??)])
    };
    told.into_iter().flat_map(|(_, rows)| rows.split(", ")).filter_map(bars).flatten().collect()
}

/// A bar for each goal that has a figure.
fn rows(goals: &[Goal], is_wanted: impl Fn(&Goal) -> bool) -> Vec<(String, f64)> {
    let wanted = goals.iter().filter(|goal| is_wanted(goal));
    wanted.filter_map(|goal| Some((goal.what.chars().take(40).collect(), goal.value?))).collect()
}

fn write(folder: &Path, name: &str, plot: &str) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::write(&path, plot).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_stand_beside_the_goal_of_their_kind_of_list() {
        let line = |name: &str, x| Series { name: name.to_owned(), points: vec![(1e3, 1.0), (x, 1_440.2)] };
        let peers = [line("XDP trie, hit", 1e6), line("nftables netdev, hit", 1e5), line("XDP hash, hit", 1e6)];
        assert_eq!(with_a_million(&peers, true).as_deref(), Some("XDP trie floor + 1440 ns"));
        assert_eq!(with_a_million(&peers, false).as_deref(), Some("XDP hash floor + 1440 ns"));
        assert_eq!(with_a_million(&peers[1..2], true), None, "not measured with a million");
    }

    #[test]
    fn only_what_was_measured_is_drawn() {
        let measured = |id, what: &str, unit| Goal { value: Some(12.0), ..Goal::missing(id, what, unit, "", "") };
        let goals = [
            measured("P1a", "malformed", "ns"),
            Goal::missing("P1b", "martian", "ns", "", ""),
            measured("P10a", "load", "ms"),
            measured("P9b", "syn flood, p50", "ms"),
        ];
        let folder = tempfile::tempdir().expect("a folder");
        super::goals(folder.path(), &goals).expect("drawn");
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect(name);
        let paths = read("paths.svg");
        assert!(paths.contains("malformed") && !paths.contains("martian") && !paths.contains("load"), "{paths}");
        assert!(read("latency.svg").contains("syn flood, p50"));
        let detail = "p50/p99/longest ms: syn_flood 81.0/120/130, udp_flood 90.5/140/2000 (1 failed)".to_owned();
        super::goals(folder.path(), &[Goal { detail, ..measured("P9c", "p99", "ms") }]).expect("drawn");
        let latency = read("latency.svg");
        assert!(latency.contains("udp_flood, p99") && latency.contains("90.5 ms"), "{latency}");
    }
}
