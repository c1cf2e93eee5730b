//! Rule sets and lists, exchanged.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ftagent::engine::{Matches, RuleId, RuleSet, Verdict};
use ftagent::lists::{ListInForce, ListSet, Look, Pick, Widest, file_as_list, look};
use ftagent::xdp::compile::{Ground, Lists, Slots, compile};
use ftagent::xdp::prefixes::tables::ListTables;
use ftagent::xdp::writer::Writer;

use super::under_test::{Load, UnderTest, Wires, net, rules, settings};
use super::{Goal, Options};
use crate::clock::now;

/// Measures how soon another rule set and another list are in force.
///
/// # Errors
/// When the lab cannot be built, or the kernel refuses what is written.
pub fn run(options: &Options, progress: &mut dyn FnMut(&str)) -> anyhow::Result<Vec<Goal>> {
    let rounds = if options.quick { 5 } else { options.rounds.max(5) };
    let under_test = UnderTest::new(Wires::new(1)?, &Load::default())?;
    progress("swap: 10,000 rules");
    let swap = swap_rules(&under_test, rounds)?;
    progress("swap: a list of 100,000 prefixes");
    let list = refresh_list(&under_test, rounds)?;
    Ok(vec![
        goal(
            "P11a",
            "10,000-rule swap, from rules to all of them in force",
            30.0,
            &swap,
            "compiling included; the wait for the last packet of the old rule set comes after it; that no packet is misjudged \
             is a test's to show (`stages`), not this figure's",
        ),
        goal(
            "P11b",
            "100,000-entry list refreshed, from its file to all of it in force",
            300.0,
            &list,
            "reading, parsing, building, reading back and swapping; /24 to /32 in equal parts, all of them other \
             prefixes than before",
        ),
    ])
}

fn goal(id: &'static str, what: &str, most: f64, ms: &[f64], detail: &str) -> Goal {
    let mut sorted = ms.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (minimum, median) = (sorted.first().copied(), sorted.get(sorted.len() / 2).copied());
    let largest = sorted.last().copied().unwrap_or_default();
    Goal {
        id,
        what: what.to_owned(),
        value: median,
        unit: "ms",
        floor: None,
        peer: None,
        goal: format!("<= {most} ms"),
        met: median.map(|median| median <= most),
        minimum,
        median,
        rounds: ms.len() as u32,
        detail: format!("{detail}; longest {largest:.1} ms"),
    }
}

/// 10,000 rules of all kinds; no two numbers have one in common but the targets.
fn rule_set(number: u32) -> RuleSet {
    let base = number * 0x0100_0000;
    let address = |i: u32| std::net::Ipv4Addr::from(0x2000_0000 + base + i * 7);
    let exact = (0..6_000).map(|i| (Matches::source(net(&format!("{}/32", address(i)))), Verdict::Drop));
    let wide = (0..2_500).map(|i| {
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
    rules(exact.chain(wide).chain(six).chain(targets))
}

/// Milliseconds until each of `rounds` other rule sets was in force.
fn swap_rules(under_test: &UnderTest, rounds: u32) -> anyhow::Result<Vec<f64>> {
    let maps = under_test.maps();
    let ground = Ground { protected: vec![net("10.99.0.0/16")], ..Ground::default() };
    let mut writer = Writer::adopt(maps)?;
    let mut taken = Vec::new();
    for round in 0..=rounds {
        let wanted = rule_set(round % 2);
        let before = writer.generation();
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
            if let Some((_, why)) = compiled.refused.first() {
                bail!("a rule is refused: {why}");
            }
            let errors = writer.apply(maps, &compiled.tables, &settings());
            watch.join().ok().context("the watch ends")??;
            match errors.into_iter().next() {
                Some(error) => Err(error).context("a rule is not in the kernel"),
                None => Ok(()),
            }
        })?;
        // The first one finds empty maps: nothing is exchanged yet.
        if round > 0 {
            taken.push(in_force.into_inner() as f64 / 1e3);
        }
    }
    Ok(taken)
}

/// 100,000 prefixes of four lengths, none inside another.
fn list_text(number: u32) -> String {
    let mut text = String::new();
    for i in 0..100_000u32 {
        let first = 0x0100_0000 + number * 0x1000_0000 + (i << 9);
        let len = 24 + (i % 4) * 2 + u32::from(i % 4 == 3) * 2;
        text.push_str(&format!("{}/{len}\n", std::net::Ipv4Addr::from(first)));
    }
    text
}

/// Milliseconds from a file to its list in force.
fn refresh_list(under_test: &UnderTest, rounds: u32) -> anyhow::Result<Vec<f64>> {
    let maps = under_test.maps();
    let mut writer = Writer::adopt(maps)?;
    let mut ground = Ground { protected: vec![net("10.99.0.0/16")], ..Ground::default() };
    let files: Vec<tempfile::NamedTempFile> = (0..2)
        .map(|number| {
            let mut file = tempfile::NamedTempFile::new()?;
            file.write_all(list_text(number).as_bytes())?;
            file.flush()?;
            Ok(file)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut taken = Vec::new();
    for round in 0..=rounds {
        let file = &files[round as usize % 2];
        let config = file_as_list(file.path(), &Pick::default(), Widest::default());
        let began = now();
        // A file that was just written is looked at again later, unless the clock says that it is old.
        let Look::Loaded(list) = look(&config, None, &[], i128::MAX / 2)? else { bail!("the list is not loaded") };
        if list.v4.len() != 100_000 {
            bail!("{} of 100,000 prefixes are loaded", list.v4.len());
        }
        let in_force = ListInForce { name: config.name.clone(), rule: RuleId(1_000_000), action: config.action, list };
        let made = ListTables::make(&ListSet { lists: vec![in_force] }, 1 << 30)?;
        let table = u64::from(round) + 1;
        writer.hold(table, made.v4.context("a table")?);
        ground.lists = Some(Arc::new(Lists { table, rules: vec![(RuleId(1_000_000), false)], v6: Vec::new() }));
        let compiled = compile(&RuleSet::default(), &ground, &mut Slots::default());
        if let Some(error) = writer.apply(maps, &compiled.tables, &settings()).into_iter().next() {
            return Err(error).context("a list is not in the kernel");
        }
        if round > 0 {
            taken.push(began.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(taken)
}
