//! Where the time of one frame goes: the same frame with one part of the work switched off after the other.
//!
//! Parts are switched off by the settings, as the daemon does it, so that what a part has left in the path (a test of a
//! bit) counts as the rest's. Parts overlap in the processor: they need not add up.

use aya::programs::Xdp;
use ftagent_common::abi::{Settings, feature, mode};

use crate::bench::stats;
use crate::bench::under_test::UnderTest;
use crate::run::time;

/// Shares below it are noise.
const LEAST_NS: f64 = 2.0;

/// A part of the work.
struct Part {
    name: &'static str,
    /// See [`feature`].
    features: u32,
    /// What would make it cheaper, in the order of what was measured elsewhere.
    help: &'static str,
}

const BLOCKS: u32 = feature::BLOCK4
    | feature::BLOCK4_PREFIX
    | feature::BLOCK6
    | feature::BLOCK6_NET
    | feature::BLOCK6_PREFIX
    | feature::BLOCK6_56
    | feature::BLOCK6_48;

const PARTS: [Part; 9] = [
    Part { name: "trust", features: feature::TRUST, help: "testing the bitmap before anything of the key is written" },
    Part { name: "reflectors", features: feature::REFLECTORS, help: "asking for the protocol before the map is read" },
    Part { name: "blocks", features: BLOCKS, help: "a filter whose word is read once for all kinds of blocks" },
    Part { name: "the list", features: feature::LISTS4, help: "a shorter first step of the table of prefixes" },
    Part {
        name: "sketch and heavy source",
        features: feature::SOURCES,
        help: "knowing a heavy source by its place in the table, without a second hash",
    },
    Part { name: "rules for all", features: feature::GLOBAL_RULES, help: "leaving out fields that no rule compares" },
    Part {
        name: "limited sources",
        features: feature::SOURCE_LIMIT,
        help: "the same bitmap line for trust and limits",
    },
    Part {
        name: "limit of heavy sources",
        features: feature::SOURCE_POLICER,
        help: "keeping its state beside the source's counters instead of in the kernel's hash",
    },
    Part {
        name: "samples",
        features: feature::SAMPLE,
        help: "drawing the distance to the next sample, not a number a frame",
    },
];

/// What each part takes of one frame, round by round.
pub(super) struct Shares {
    parts: Vec<Vec<f64>>,
    /// With no stage at all: parsing, clock, target, counters.
    rest: Vec<f64>,
}

impl Shares {
    pub(super) fn new() -> Self {
        Self { parts: PARTS.iter().map(|_| Vec::new()).collect(), rest: Vec::new() }
    }

    /// A round: everything on, then each part off; `floor_ns` is the floor of this round.
    pub(super) fn measure(
        &mut self,
        under_test: &UnderTest,
        program: &Xdp,
        frame: &[u8],
        repeat: u32,
        floor_ns: f64,
    ) -> anyhow::Result<()> {
        let there = under_test.maps().read_settings()?;
        let timed = |settings: &Settings| -> anyhow::Result<f64> {
            under_test.maps().settings.insert(&0, settings)?;
            Ok(time(program, frame, repeat)?.as_nanos() as f64)
        };
        let whole = timed(&there)?;
        for (part, ns) in PARTS.iter().zip(&mut self.parts).filter(|(part, _)| there.features & part.features != 0) {
            ns.push(whole - timed(&Settings { features: there.features & !part.features, ..there })?);
        }
        self.rest.push(
            timed(&Settings { mode: mode::BYPASS, features: there.features & !feature::SAMPLE, ..there })? - floor_ns,
        );
        under_test.maps().settings.insert(&0, &there)?;
        Ok(())
    }

    /// In words, the largest first; with what would help most if the goal is not met.
    pub(super) fn words(&self, is_met: bool) -> String {
        let Some(rest) = stats::median(&self.rest) else { return String::new() };
        let mut parts: Vec<(&Part, f64)> =
            PARTS.iter().zip(&self.parts).filter_map(|(part, ns)| Some((part, stats::median(ns)?))).collect();
        parts.retain(|(_, ns)| *ns >= LEAST_NS);
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let said: Vec<String> = parts.iter().map(|(part, ns)| format!("{} {ns:.0}", part.name)).collect();
        let stages = if said.is_empty() { "no stage by itself 2 or more".to_owned() } else { said.join(", ") };
        let mut text = format!(
            "over the floor in mode bypass (parsing, clock, target, counters, no stage) {rest:.0} ns; {stages}"
        );
        if !is_met {
            let stages: f64 = parts.iter().map(|(_, ns)| ns).sum();
            let help = match parts.first() {
                Some((part, ns)) if *ns > rest / 2.0 && stages > rest / 2.0 => part.help,
                _ => "fewer look-ups of maps before the first stage (settings, scratch memory, target, counters)",
            };
            text.push_str("; would help: ");
            text.push_str(help);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_share_comes_first_and_noise_is_left_out() {
        let mut shares = Shares::new();
        shares.rest = vec![20.0, 30.0, 22.0];
        shares.parts[0] = vec![3.0];
        shares.parts[4] = vec![25.0, 15.0];
        shares.parts[8] = vec![0.2];
        let words = shares.words(false);
        assert!(words.contains("no stage) 22 ns; sketch and heavy source 20, trust 3; would help: knowing"), "{words}");
        assert!(!shares.words(true).contains("help"));
        assert_eq!(Shares::new().words(true), "", "nothing was measured");
    }
}
