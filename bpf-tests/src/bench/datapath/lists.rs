//! P3 and P4: a new source with every frame, by live frames, and lists of up to a million entries.
//!
//! What is on no list is dropped by a rule of the target, behind every other stage: what passes would be timed together
//! with the kernel's own work on it.

use std::net::Ipv4Addr;
use std::time::Duration;

use ftagent::engine::{Matches, Verdict};
use ftagent::xdp::program::MapSizes;
use ftagent_common::abi::{MAX_RULES, Settings, feature};
use ipnet::{IpNet, Ipv4Net};

use super::{Goal, over_floor};
use crate::bench::live::{Cost, Flood, cpus};
use crate::bench::svg::Series;
use crate::bench::under_test::{Floor, Load, UnderTest, Wires, net, rules};
use crate::bench::{Options, stats};
use crate::generator::{Entries, Listed, Vary};
use crate::ladder::{ADDRESS, MAC, Stopwatch};
use crate::packet::PacketBuilder;

const MILLION: u32 = 1_000_000;
/// Where no list of these has an entry, and none is special.
const FAR: &str = "32.0.0.0/4";
/// Where every /24 has one listed address: a miss there needs the last step of the look-up.
const NEAR: Ipv4Addr = Ipv4Addr::new(48, 0, 0, 0);
const NEAR_ENTRIES: u32 = 1 << 16;
/// Where the /16 to /23 lie, which the lab's own lists do not have: one of them in each /16.
const SHORT: Ipv4Addr = Ipv4Addr::new(64, 0, 0, 0);
const SHORT_ENTRIES: u32 = 1 << 13;

/// The flood without a list, with less and less behind it.
const NO_SKETCH: &str = "0 miss, no sketch";
const NO_SAMPLES: &str = "0 miss, no samples";
const BARE: &str = "0 miss, the rule alone";

pub(super) struct Measured {
    pub(super) goals: Vec<Goal>,
    /// Cost over the number of entries.
    pub(super) lines: Vec<Series>,
}

/// One flood of one datapath.
struct Scenario {
    id: &'static str,
    under_test: usize,
    /// What is switched off while it has its turn, see [`feature`].
    without: u32,
    flood: Flood,
    costs: Vec<Cost>,
}

pub(super) fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Measured> {
    let stopwatch = Stopwatch::start()?;
    let cpu = cpus()?.into_iter().next_back().unwrap_or(0);
    let floor = Floor::new(Wires::new(1)?)?;
    let mut tested = Vec::new();
    let mut stand = |what: &str, list: Vec<Ipv4Net>, blocks: Vec<[u8; 4]>| -> anyhow::Result<usize> {
        progress(&format!("setting up {what}"));
        let blocks_at_most = MapSizes::default().blocks.max(blocks.len() as u32);
        let sizes = MapSizes { blocks: blocks_at_most, ..MapSizes::default() };
        tested.push(UnderTest::new(Wires::new(1)?, &Load { rules: drops_all(), list, blocks, sizes })?);
        Ok(tested.len() - 1)
    };
    let addresses = |count| -> Vec<Ipv4Net> { Listed::new(Entries::Addresses, count).networks().collect() };
    let none = stand("no list", Vec::new(), Vec::new())?;
    let thousand = stand("1,000 prefixes", mixed(1_000), Vec::new())?;
    let hundred = stand("100,000 prefixes", mixed(100_000), Vec::new())?;
    let million = stand("1,000,000 prefixes of /16 to /32", mixed(MILLION), Vec::new())?;
    let million_ip = stand("1,000,000 addresses as a list", addresses(MILLION), Vec::new())?;
    let octets = addresses(MAX_RULES).iter().map(|n| n.addr().octets()).collect();
    let exact = stand("a block by each rule that can be", Vec::new(), octets)?;

    let listed = |entries, count| Vary { listed: Some(Listed::new(entries, count)), ..Vary::default() };
    let within = |prefix: &str| Vary { sources: Some(net(prefix)), ..Vary::default() };
    let all = feature::SOURCES | feature::SOURCE_POLICER | feature::SAMPLE | feature::REFLECTORS | feature::GATE;
    let rows = [
        ("hot", none, Vary::default()),
        ("0 miss", none, within(FAR)),
        (NO_SKETCH, none, within(FAR)),
        (NO_SAMPLES, none, within(FAR)),
        (BARE, none, within(FAR)),
        ("1k hit", thousand, listed(Entries::Networks, in_lab(1_000))),
        ("1k miss", thousand, within(FAR)),
        ("100k hit", hundred, listed(Entries::Networks, in_lab(100_000))),
        ("100k miss", hundred, within(FAR)),
        ("1M hit", million, listed(Entries::Networks, in_lab(MILLION))),
        ("1M miss", million, within(FAR)),
        ("1M near miss", million, within("48.0.0.0/8")),
        ("1M ip hit", million_ip, listed(Entries::Addresses, MILLION)),
        ("1M ip miss", million_ip, within(FAR)),
        ("exact hit", exact, listed(Entries::Addresses, MAX_RULES)),
        ("exact miss", exact, within(FAR)),
    ];
    let template = PacketBuilder::v4([32, 1, 2, 3], ADDRESS).macs([2, 0, 0, 0, 0, 2], MAC).udp(4_000, 4_242);
    let template = template.payload(&[0; 18]).build();
    let mut scenarios = Vec::new();
    for (id, under_test, vary) in rows {
        let flood = Flood::new(&template, &vary, cpu)?;
        let without = match id {
            NO_SKETCH => feature::SOURCES,
            NO_SAMPLES => feature::SAMPLE,
            BARE => all,
            _ => 0,
        };
        scenarios.push(Scenario { id, under_test, without, flood, costs: Vec::new() });
    }
    let mut bare = Flood::new(&template, &within(FAR), cpu)?;
    let time = Duration::from_millis(if options.quick { 40 } else { 100 });
    let mut floors = Vec::new();
    for round in 1..=options.rounds {
        progress(&format!("round {round} of {}", options.rounds));
        floors.push(bare.send(&floor.wires, 0, &stopwatch, time)?.receive_ns);
        for scenario in &mut scenarios {
            let under_test = &tested[scenario.under_test];
            let settings = &under_test.maps().settings;
            let there = under_test.maps().read_settings()?;
            settings.insert(&0, &Settings { features: there.features & !scenario.without, ..there })?;
            let cost = scenario.flood.send(&under_test.wires, 0, &stopwatch, time);
            settings.insert(&0, &there)?;
            scenario.costs.push(cost?);
        }
    }
    for (number, under_test) in tested.iter().enumerate() {
        anyhow::ensure!(under_test.dropped()? > 0, "datapath {number} dropped nothing");
    }
    let rounds = Rounds { scenarios, floors };
    Ok(Measured { goals: rounds.goals(), lines: rounds.lines() })
}

/// Everything that comes to the target, so that nothing is left for the kernel to do.
fn drops_all() -> ftagent::engine::RuleSet {
    rules([(Matches::target(IpNet::from(std::net::IpAddr::V4(ADDRESS))), Verdict::Drop)])
}

/// How many entries of a mixed list of `count` are the lab's, from which hits come.
fn in_lab(count: u32) -> u32 {
    if count < 10 * NEAR_ENTRIES { count } else { count - NEAR_ENTRIES - SHORT_ENTRIES }
}

/// A list of `count` prefixes of all lengths of /16 to /32, long lists with single addresses in a /8 of their own.
fn mixed(count: u32) -> Vec<Ipv4Net> {
    let lab = in_lab(count);
    let mut list: Vec<Ipv4Net> = Listed::new(Entries::Networks, lab).networks().collect();
    if count > lab {
        let prefix =
            |address: u32, length| Ipv4Net::new(Ipv4Addr::from(address), length).expect("a length of 16 to 32").trunc();
        list.extend((0..NEAR_ENTRIES).map(|i| prefix(u32::from(NEAR) | (i << 8) | 13, 32)));
        list.extend((0..SHORT_ENTRIES).map(|i| prefix(u32::from(SHORT) | (i << 16), 16 + (i % 8) as u8)));
    }
    list
}

/// What all rounds gave.
struct Rounds {
    scenarios: Vec<Scenario>,
    floors: Vec<f64>,
}

impl Rounds {
    fn costs(&self, id: &str) -> Vec<f64> {
        let found = self.scenarios.iter().find(|s| s.id == id);
        found.map(|s| s.costs.iter().map(|c| c.receive_ns).collect()).unwrap_or_default()
    }

    /// Differences of `id` to `to`, round by round.
    fn over(&self, id: &str, to: &[f64]) -> Vec<f64> {
        self.costs(id).iter().zip(to).map(|(ns, floor)| ns - floor).collect()
    }

    fn goals(&self) -> Vec<Goal> {
        let mut goals = self.random_and_hot();
        let rows = [
            ("P4a", "1 M prefixes /16-/32: random hit", 250.0, "1M hit"),
            ("P4b", "1 M prefixes /16-/32: random miss", 45.0, "1M miss"),
            ("P4c", "1 M exact blocks (a list): random hit", 230.0, "1M ip hit"),
            ("P4d", "1 M exact blocks (a list): random miss", 45.0, "1M ip miss"),
            ("P4e", "16,384 exact blocks by rules: random hit", 230.0, "exact hit"),
            ("P4f", "16,384 exact blocks by rules: random miss", 45.0, "exact miss"),
            ("P4g", "1 M prefixes: miss beside an entry in its /24", 45.0, "1M near miss"),
        ];
        let without = self.costs("0 miss");
        let miss = self.of_a_miss();
        for (id, what, at_most, scenario) in rows {
            let over = self.over(scenario, &self.floors);
            let beside = stats::median(&self.over(scenario, &without)).unwrap_or(0.0);
            let detail = if scenario.ends_with("miss") {
                format!("the list by itself: {beside:.0} ns more than without it; {miss}")
            } else {
                self.growth(id)
            };
            goals.push(over_floor((id, what, at_most), &over, &self.floors, detail));
        }
        goals
    }

    /// Where the time of a frame on no list goes.
    fn of_a_miss(&self) -> String {
        let all = self.costs("0 miss");
        let more = |id: &str| -stats::median(&self.over(id, &all)).unwrap_or(0.0);
        let bare = stats::median(&self.over(BARE, &self.floors)).unwrap_or(0.0);
        format!(
            "the same flood without any is {:.0} over the floor: sketch {:.0}, samples {:.0}, parsing, counters and the rule of the target that \
             drops it {bare:.0}, the rest reflectors and what these leave in the path; would help: fewer look-ups in \
             front of the first stage, and a sketch whose line is in the cache",
            stats::median(&self.over("0 miss", &self.floors)).unwrap_or(0.0),
            more(NO_SKETCH),
            more(NO_SAMPLES)
        )
    }

    /// What a hit costs the more entries there are.
    fn growth(&self, id: &str) -> String {
        if id != "P4a" {
            return "a random entry each time: what it costs more than with few entries are misses of the processor's cache"
                .to_owned();
        }
        let of = |id: &str| stats::median(&self.over(id, &self.floors)).unwrap_or(0.0);
        format!(
            "over the floor with 1,000 prefixes {:.0} ns, with 100,000 {:.0}: the same steps, what grows are misses of the \
             processor's cache and of its address translation",
            of("1k hit"),
            of("100k hit")
        )
    }

    /// P3.
    fn random_and_hot(&self) -> Vec<Goal> {
        let (hot, random) = (self.costs("hot"), self.costs("0 miss"));
        let ratios: Vec<f64> = random.iter().zip(&hot).map(|(random, hot)| random / hot).collect();
        let (floor, rounds) = (stats::median(&self.floors), ratios.len() as u32);
        let ratio = stats::median(&ratios);
        let mpps: Vec<f64> = random.iter().map(|ns| 1e3 / ns).collect();
        let rate = stats::median(&mpps);
        let walls: Vec<f64> = self
            .scenarios
            .iter()
            .filter(|s| s.id == "0 miss")
            .flat_map(|s| s.costs.iter().map(|c| 1e3 / c.wall_ns))
            .collect();
        let generated = stats::median(&walls).unwrap_or(0.0);
        vec![
            Goal {
                value: ratio,
                floor: None,
                met: ratio.map(|ratio| ratio <= 2.0),
                minimum: stats::minimum(&ratios),
                median: ratio,
                rounds,
                ..Goal::missing(
                    "P3a",
                    "random sources over one source",
                    "x",
                    "<= 2 x",
                    &format!(
                        "{:.0} ns a frame from random sources, {:.0} from one, floor {:.0}",
                        stats::median(&random).unwrap_or(0.0),
                        stats::median(&hot).unwrap_or(0.0),
                        floor.unwrap_or(0.0)
                    ),
                )
            },
            Goal {
                value: rate,
                floor: floor.map(|ns| 1e3 / ns),
                met: rate.map(|rate| rate >= 5.0),
                minimum: stats::minimum(&mpps),
                median: rate,
                rounds,
                ..Goal::missing(
                    "P3b",
                    "random sources dropped by one CPU over veth",
                    "Mpps",
                    ">= 5 Mpps",
                    &format!("by the time of reception; {generated:.1} Mpps with the generator on the same CPU"),
                )
            },
        ]
    }

    fn lines(&self) -> Vec<Series> {
        let point = |entries: f64, id: &str| stats::median(&self.over(id, &self.floors)).map(|ns| (entries, ns));
        let line = |name: &str, rows: &[(f64, &str)]| Series {
            name: name.to_owned(),
            points: rows.iter().filter_map(|(entries, id)| point(*entries, id)).collect(),
        };
        vec![
            line("ftagent, hit", &[(1e3, "1k hit"), (1e5, "100k hit"), (1e6, "1M hit")]),
            line("ftagent, miss", &[(0.0, "0 miss"), (1e3, "1k miss"), (1e5, "100k miss"), (1e6, "1M miss")]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_long_list_has_every_length_and_no_entry_where_misses_come_from() {
        let list = mixed(MILLION);
        assert_eq!(list.len() as u32, MILLION);
        let lengths: std::collections::BTreeSet<u8> = list.iter().map(|n| n.prefix_len()).collect();
        assert!((16..=24).chain([26, 28, 32]).all(|length| lengths.contains(&length)), "{lengths:?}");
        let far: Ipv4Net = FAR.parse().expect("a prefix");
        assert!(list.iter().all(|n| !far.contains(n) && !n.contains(&far)));
        assert_eq!(mixed(1_000).len(), 1_000);
    }
}
