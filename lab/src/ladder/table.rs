//! The ladder for people.

use std::fmt::Write as _;

use super::row::{Row, Sources};

const BAR: usize = 28;

/// Every ladder in `rows` as aligned text, slowest peer on top; what is the same for every list stands in each.
pub fn text(rows: &[Row]) -> String {
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.entries).filter(|&entries| entries > 0).collect();
    sizes.sort_unstable();
    sizes.dedup();
    if sizes.is_empty() {
        sizes.push(0);
    }
    let mut text = String::new();
    for entries in sizes {
        for sources in [Sources::Hot, Sources::Random] {
            let of = |row: &&Row| row.sources == sources && (row.entries == entries || row.entries == 0);
            let mut here: Vec<&Row> = rows.iter().filter(of).collect();
            if here.is_empty() {
                continue;
            }
            here.sort_by(|a, b| b.ns_median.total_cmp(&a.ns_median));
            ladder(&mut text, entries, sources, &here).expect("a string takes any text");
        }
    }
    text
}

fn ladder(text: &mut String, entries: u32, sources: Sources, rows: &[&Row]) -> std::fmt::Result {
    let from = match sources {
        Sources::Hot => "one of them sends",
        Sources::Random => "all of them send in turn",
    };
    writeln!(text, "{} blocked, {from}", thousands(u64::from(entries)))?;
    writeln!(text, "  {:<34} {:>9} {:>9} {:>10}", "", "ns/packet", "x floor", "Mpps/core")?;
    let fastest = rows.iter().map(|row| row.mpps).fold(0.0, f64::max);
    for row in rows.iter().filter(|row| row.rounds > 0) {
        let filled = if fastest > 0.0 { (row.mpps / fastest * BAR as f64).round() as usize } else { 0 };
        let bar = "█".repeat(filled.clamp(1, BAR));
        writeln!(text, "  {:<34} {:>9.1} {:>9.2} {:>10.2}  {bar}", row.title, row.ns_median, row.ratio, row.mpps)?;
        if row.is_defence && row.leaked > 0 {
            writeln!(text, "  {:<34} LEAKED {} of {} packets", "", thousands(row.leaked), thousands(row.packets))?;
        }
        if let Some(error) = &row.error {
            writeln!(text, "  {:<34} failed in a round: {error}", "")?;
        }
    }
    for row in rows.iter().filter(|row| row.rounds == 0) {
        writeln!(text, "  {:<34} {}", row.title, row.error.as_deref().unwrap_or("was not measured"))?;
    }
    writeln!(text)
}

/// 1234567 as 1,234,567.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(title: &str, entries: u32, ns: f64) -> Row {
        Row {
            peer: title.to_owned(),
            title: title.to_owned(),
            entries,
            sources: Sources::Random,
            is_defence: true,
            rounds: 3,
            packets: 5_000,
            leaked: 0,
            ns_min: ns,
            ns_median: ns,
            over_floor_ns: 0.0,
            ratio: ns / 40.0,
            ratio_min: ns / 40.0,
            ratio_max: ns / 40.0,
            mpps: 1e3 / ns,
            mpps_generated: 0.0,
            setup_ms: 1.0,
            error: None,
        }
    }

    #[test]
    fn each_ladder_has_the_slowest_on_top_and_what_is_missing_below() {
        let missing = Row {
            rounds: 0,
            mpps: 0.0,
            error: Some("not available: nft is not installed".into()),
            ..row("nft", 1_000, 0.0)
        };
        let leaky = Row { leaked: 1_234, ..row("leaky", 1_000, 80.0) };
        let rows = [row("floor", 0, 40.0), missing, leaky, row("slow", 1_000, 400.0), row("slow", 1, 300.0)];
        let shown = text(&rows);
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("1 blocked") && lines[5].starts_with("1,000 blocked"), "{shown}");
        let titles: Vec<&str> = lines[7..].iter().filter_map(|line| line.split_whitespace().next()).collect();
        assert_eq!(titles, ["slow", "leaky", "LEAKED", "floor", "nft"], "{shown}");
        assert!(shown.contains("LEAKED 1,234 of 5,000 packets") && shown.contains("not available: nft"));
        assert!(lines[10].ends_with(&"█".repeat(BAR)), "{shown}");
    }
}
