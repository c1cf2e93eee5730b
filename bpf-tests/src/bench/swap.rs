//! Rule sets and lists, exchanged.

mod frames;
mod peers;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ftagent::engine::{Matches, RuleId, RuleSet, Verdict};
use ftagent::lists::{ListInForce, ListSet, Look, Pick, Widest, file_as_list, look};
use ftagent::xdp::compile::{Ground, Lists, Slots, compile};
use ftagent::xdp::maps::Maps;
use ftagent::xdp::prefixes::tables::ListTables;
use ftagent::xdp::writer::Writer;

use super::under_test::{Load, UnderTest, Wires, net, rules, settings};
use super::{Goal, Options, stats};
use crate::clock::now;

/// What every rule set and every list has, so that its frames must never pass.
const ALWAYS_LISTED: &str = "24.0.0.0/24";
/// What none of them has, so that its frames must never be dropped.
const NEVER_LISTED: &str = "25.0.0.0/24";

/// Measures how soon another rule set and another list are in force, here and with the tools of administrators.
///
/// # Errors
/// When the lab cannot be built, or the kernel refuses what is written.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let rounds = if options.quick { 5 } else { options.rounds.max(5) };
    let again = if options.quick { 4 } else { 20 };
    let mut stray = frames::Counted::default();

    progress("swap: 10,000 rules");
    let under_test = UnderTest::new(Wires::new(1)?, &Load::default())?;
    let mut rules = Rules::new(&under_test)?;
    rules.swap(0)?;
    let swaps = (1..=rounds).map(|round| rules.swap(round)).collect::<anyhow::Result<Vec<f64>>>()?;
    let compiling = stats::median(&rules.compiling).unwrap_or(0.0);
    stray += frames::during(&under_test, || (1..=again).try_for_each(|i| rules.swap(rounds + i).map(drop)))?;

    progress("swap: a list of 100,000 prefixes");
    // Another one: the rules of the first are none of the list's business.
    let under_test = UnderTest::new(Wires::new(1)?, &Load::default())?;
    let mut list = ListFiles::new(&under_test)?;
    list.refresh(0)?;
    let refreshed = (1..=rounds).map(|round| list.refresh(round)).collect::<anyhow::Result<Vec<f64>>>()?;
    let until = [&list.reading, &list.building].map(|ms| stats::median(ms).unwrap_or(0.0));
    stray += frames::during(&under_test, || (1..=again).try_for_each(|i| list.refresh(rounds + i).map(drop)))?;

    let peers_rounds = if options.quick { 2 } else { 5 };
    progress("swap: 10,000 entries with nftables and ipset");
    let short = peers::replace([&sources(0), &sources(1)], peers_rounds, progress)?;
    progress("swap: 100,000 entries with nftables and ipset");
    let long = peers::replace([&list_text(0), &list_text(1)], peers_rounds, progress)?;

    let beside = |mut goal: Goal, peers: &[peers::Taken]| {
        let said: Vec<String> = peers.iter().map(|p| format!("{} {:.0} ms", p.name, p.ms)).collect();
        goal.peer = (!said.is_empty()).then(|| said.join(", "));
        goal.peer_value = peers.iter().map(|p| p.ms).reduce(f64::min);
        goal
    };
    Ok(vec![
        beside(
            goal(
                "P11a",
                "10,000-rule swap, from rules to all of them in force",
                30.0,
                &swaps,
                &format!(
                    "{compiling:.1} ms of it compile, the rest writes the idle slot, reads it back and swaps; the wait for the \
                     last packet of the old rule set comes after it; the peers replace a set of 10,000 sources from a file, in \
                     one transaction"
                ),
            ),
            &short,
        ),
        beside(
            goal(
                "P11b",
                "100,000-entry list refreshed, from its file to all of it in force",
                300.0,
                &refreshed,
                &format!(
                    "read and parsed after {:.0} ms, built after {:.0}, the rest writes, reads back and swaps; /24 to /32 in equal \
                     parts, all of them other prefixes than before; the peers take the same prefixes from a file",
                    until[0], until[1]
                ),
            ),
            &long,
        ),
        stray.goal(2 * again),
    ])
}

fn goal(id: &'static str, what: &str, most: f64, ms: &[f64], detail: &str) -> Goal {
    let longest = ms.iter().copied().fold(0.0, f64::max);
    let median = stats::median(ms);
    Goal {
        value: median,
        met: median.map(|median| median <= most),
        minimum: stats::minimum(ms),
        median,
        rounds: ms.len() as u32,
        ..Goal::missing(id, what, "ms", &format!("<= {most} ms"), &format!("{detail}; longest {longest:.1} ms"))
    }
}

/// 10,000 rules of all kinds; no two numbers have one in common but the targets, and one that is always there.
fn rule_set(number: u32) -> RuleSet {
    let base = number * 0x0100_0000;
    let address = |i: u32| std::net::Ipv4Addr::from(0x2000_0000 + base + i * 7);
    let exact = (0..6_000).map(|i| (Matches::source(net(&format!("{}/32", address(i)))), Verdict::Drop));
    let wide = (0..2_499).map(|i| {
        let first = 0x4000_0000 + base + (i << 8);
        (Matches::source(net(&format!("{}/24", std::net::Ipv4Addr::from(first)))), Verdict::Drop)
    });
    let six =
        (0..1_200u32).map(move |i| (Matches::source(net(&format!("2001:db8:{number:x}:{i:x}::/64"))), Verdict::Drop));
    let targets = (0..300u32).map(move |i| {
        let target = net(&format!("10.99.{}.{}/32", i / 200 + 1, i % 200 + 1));
        let port = 1_000 + number as u16;
        (Matches { dst_port: Some([port, port]), protocol: Some(17), ..Matches::target(target) }, Verdict::Drop)
    });
    let always = [(Matches::source(net(ALWAYS_LISTED)), Verdict::Drop)];
    rules(exact.chain(wide).chain(six).chain(targets).chain(always))
}

/// As many sources, for tools that know nothing else.
fn sources(number: u32) -> String {
    let base = number * 0x0100_0000;
    let mut text = format!("{ALWAYS_LISTED}\n");
    for i in 1..7_500u32 {
        text.push_str(&format!("{}/32\n", std::net::Ipv4Addr::from(0x2000_0000 + base + i * 7)));
    }
    for i in 0..2_500u32 {
        text.push_str(&format!("{}/24\n", std::net::Ipv4Addr::from(0x4000_0000 + base + (i << 8))));
    }
    text
}

/// What is protected in all of this.
fn ground() -> Ground {
    Ground { protected: vec![net("10.99.0.0/16")], ..Ground::default() }
}

/// Rule sets put into force in turn.
struct Rules<'a> {
    maps: &'a Maps,
    writer: Writer,
    /// Milliseconds of each swap that went into compiling.
    compiling: Vec<f64>,
}

impl<'a> Rules<'a> {
    fn new(under_test: &'a UnderTest) -> anyhow::Result<Self> {
        let maps = under_test.maps();
        Ok(Self { maps, writer: Writer::adopt(maps)?, compiling: Vec::new() })
    }

    /// Milliseconds until the other rule set was in force.
    fn swap(&mut self, round: u32) -> anyhow::Result<f64> {
        let (maps, ground) = (self.maps, ground());
        let wanted = rule_set(round % 2);
        let before = self.writer.generation();
        let began = now();
        let in_force = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| -> anyhow::Result<()> {
                while maps.read_settings()?.generation == before {
                    if began.elapsed() > Duration::from_secs(30) {
                        bail!("the rule set is not in force after 30 s");
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                in_force.store(began.elapsed().as_micros() as u64, Ordering::Relaxed);
                Ok(())
            });
            let compiled = compile(&wanted, &ground, &mut Slots::default());
            self.compiling.push(began.elapsed().as_secs_f64() * 1e3);
            if let Some((_, why)) = compiled.refused.first() {
                bail!("a rule is refused: {why}");
            }
            let errors = self.writer.apply(maps, &compiled.tables, &settings());
            watch.join().ok().context("the watch ends")??;
            match errors.into_iter().next() {
                Some(error) => Err(error).context("a rule is not in the kernel"),
                None => Ok(()),
            }
        })?;
        Ok(in_force.into_inner() as f64 / 1e3)
    }
}

/// 100,000 prefixes of four lengths, none inside another, one of which is always there.
fn list_text(number: u32) -> String {
    let mut text = format!("{ALWAYS_LISTED}\n");
    for i in 1..100_000u32 {
        let first = 0x0100_0000 + number * 0x1000_0000 + (i << 9);
        let len = 24 + (i % 4) * 2 + u32::from(i % 4 == 3) * 2;
        text.push_str(&format!("{}/{len}\n", std::net::Ipv4Addr::from(first)));
    }
    text
}

/// Lists put into force in turn, each from a file.
struct ListFiles<'a> {
    maps: &'a Maps,
    writer: Writer,
    files: Vec<tempfile::NamedTempFile>,
    /// Milliseconds of each refresh until the file was read and parsed, and until its table was built.
    reading: Vec<f64>,
    building: Vec<f64>,
}

impl<'a> ListFiles<'a> {
    fn new(under_test: &'a UnderTest) -> anyhow::Result<Self> {
        let written = |number| {
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(list_text(number).as_bytes())?;
            file.flush()?;
            Ok(file)
        };
        let maps = under_test.maps();
        let files = (0..2).map(written).collect::<anyhow::Result<_>>()?;
        Ok(Self { maps, writer: Writer::adopt(maps)?, files, reading: Vec::new(), building: Vec::new() })
    }

    /// Milliseconds from the other file to its list in force.
    fn refresh(&mut self, round: u32) -> anyhow::Result<f64> {
        let file = &self.files[round as usize % 2];
        let config = file_as_list(file.path(), &Pick::default(), Widest::default());
        let began = now();
        // A file that was just written is looked at again later, unless the clock says that it is old.
        let Look::Loaded(list) = look(&config, None, &[], i128::MAX / 2)? else { bail!("the list is not loaded") };
        self.reading.push(began.elapsed().as_secs_f64() * 1e3);
        if list.v4.len() != 100_000 {
            bail!("{} of 100,000 prefixes are loaded", list.v4.len());
        }
        let in_force = ListInForce {
            name: config.name.clone(),
            rule: RuleId(1_000_000),
            action: config.action,
            ends_at_ns: 0,
            list,
        };
        let made = ListTables::make(&ListSet { lists: vec![in_force] }, 1 << 30)?;
        self.building.push(began.elapsed().as_secs_f64() * 1e3);
        let table = u64::from(round) + 1;
        self.writer.hold(table, made.v4.context("a table")?);
        let lists = Lists { table, rules: vec![(RuleId(1_000_000), false)], v6: Vec::new(), ..Lists::default() };
        let ground = Ground { lists: Some(Arc::new(lists)), ..ground() };
        let compiled = compile(&RuleSet::default(), &ground, &mut Slots::default());
        match self.writer.apply(self.maps, &compiled.tables, &settings()).into_iter().next() {
            Some(error) => Err(error).context("a list is not in the kernel"),
            None => Ok(began.elapsed().as_secs_f64() * 1e3),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_always_listed_is_in_every_set_and_what_never_is_in_none() {
        let never = net(NEVER_LISTED);
        for number in [0, 1] {
            let set = rule_set(number);
            assert_eq!(set.rules.len(), 10_000);
            let from_rules = set.rules.values().filter_map(|rule| rule.matches.source);
            assert!(from_rules.clone().any(|source| source == net(ALWAYS_LISTED)));
            assert!(!from_rules.clone().any(|source| source.contains(&never) || never.contains(&source)));
            for (text, count) in [(list_text(number), 100_000), (sources(number), 10_000)] {
                let lines: Vec<ipnet::IpNet> = text.lines().map(net).collect();
                assert_eq!((lines.len(), lines[0]), (count, net(ALWAYS_LISTED)));
                assert!(!lines.iter().any(|source| source.contains(&never) || never.contains(source)));
            }
        }
    }
}
