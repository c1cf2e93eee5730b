//! Interfaces that had traffic and have none any more: a cable, a route, a tap or a program that is gone looks like peace.

use std::collections::BTreeMap;

use ftagent_common::abi::InterfaceCounters;
use serde::{Deserialize, Serialize};

use super::sample::SEC;

/// When each interface saw frames last.
#[derive(Debug, Default)]
pub(super) struct Silence {
    interfaces: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// All frames of the newest reading.
    packets: u64,
    /// When they grew last; absent while they have not since the start.
    last_ns: Option<u64>,
}

/// One interface's frames as `status` shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceTraffic {
    pub name: String,
    /// Seconds since the newest frame; absent where none has come since the agent started.
    pub idle_secs: Option<u64>,
    /// There was traffic, and none for `detection.silent_secs`.
    pub silent: bool,
}

impl Silence {
    /// Takes a reading; interfaces that it does not have are forgotten.
    pub(super) fn observe(&mut self, interfaces: &[(String, InterfaceCounters)], now_ns: u64) {
        self.interfaces.retain(|name, _| interfaces.iter().any(|(there, _)| there == name));
        for (name, counters) in interfaces {
            let packets = counters.reasons.iter().fold(0u64, |sum, c| sum.wrapping_add(c.packets));
            match self.interfaces.get_mut(name) {
                Some(seen) if seen.packets != packets => (seen.packets, seen.last_ns) = (packets, Some(now_ns)),
                Some(_) => {}
                // What is pinned counts from before: the first reading says nothing.
                None => {
                    self.interfaces.insert(name.clone(), Seen { packets, last_ns: None });
                }
            }
        }
    }

    /// Every interface at `now_ns`. With 0 none is ever silent.
    pub(super) fn view(&self, silent_secs: u32, now_ns: u64) -> Vec<InterfaceTraffic> {
        let all = self.interfaces.iter().map(|(name, seen)| {
            let idle_secs = seen.last_ns.map(|last| now_ns.saturating_sub(last) / SEC);
            let silent = silent_secs > 0 && idle_secs.is_some_and(|idle| idle >= u64::from(silent_secs));
            InterfaceTraffic { name: name.clone(), idle_secs, silent }
        });
        all.collect()
    }
}

impl InterfaceTraffic {
    /// What an operator should look at, where it is silent.
    pub fn warning(&self) -> Option<String> {
        let idle = self.idle_secs.filter(|_| self.silent)?;
        Some(format!("{}: had traffic, and has seen no frame for {idle} s: nothing is protected there", self.name))
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::abi::{Counter, Reason};

    use super::*;

    fn reading(all: &[(&str, u64)]) -> Vec<(String, InterfaceCounters)> {
        let one = |packets| {
            let mut counters = InterfaceCounters::default();
            counters.reasons[Reason::ALL[0].index()] = Counter { packets, bytes: packets * 60 };
            counters
        };
        all.iter().map(|(name, packets)| ((*name).to_owned(), one(*packets))).collect()
    }

    fn silent(silence: &Silence, secs: u64) -> Vec<(String, Option<u64>, bool)> {
        silence.view(60, secs * SEC).into_iter().map(|i| (i.name, i.idle_secs, i.silent)).collect()
    }

    #[test]
    fn only_what_had_traffic_falls_silent_and_a_frame_ends_it() {
        let mut silence = Silence::default();
        // eth1 counted before the agent began, and nothing since.
        silence.observe(&reading(&[("eth0", 0), ("eth1", 9)]), 0);
        silence.observe(&reading(&[("eth0", 5), ("eth1", 9)]), 10 * SEC);
        let (eth0, eth1) = ("eth0".to_owned(), ("eth1".to_owned(), None, false));
        for (secs, idle, expected) in [(10, 0, false), (69, 59, false), (70, 60, true), (900, 890, true)] {
            silence.observe(&reading(&[("eth0", 5), ("eth1", 9)]), secs * SEC);
            assert_eq!(silent(&silence, secs), [(eth0.clone(), Some(idle), expected), eth1.clone()], "{secs}");
        }
        let warnings: Vec<_> = silence.view(60, 900 * SEC).iter().filter_map(InterfaceTraffic::warning).collect();
        assert_eq!(warnings, ["eth0: had traffic, and has seen no frame for 890 s: nothing is protected there"]);
        assert!(silence.view(0, 900 * SEC).iter().all(|i| i.warning().is_none()), "0 turns it off");
        silence.observe(&reading(&[("eth0", 6), ("eth1", 9)]), 901 * SEC);
        assert_eq!(silent(&silence, 902), [(eth0, Some(1), false), eth1]);
    }

    #[test]
    fn an_interface_that_is_gone_is_forgotten_and_counters_that_begin_anew_are_traffic() {
        let mut silence = Silence::default();
        silence.observe(&reading(&[("eth0", 5)]), 0);
        silence.observe(&reading(&[("eth0", 2)]), SEC);
        assert_eq!(silent(&silence, 1), [("eth0".to_owned(), Some(0), false)]);
        silence.observe(&reading(&[]), 2 * SEC);
        assert!(silent(&silence, 100).is_empty());
    }
}
