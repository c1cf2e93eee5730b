//! Frames by three counters that share no code: sent, got through, dropped.

use std::thread;
use std::time::Duration;

use anyhow::bail;
use ftagent::xdp::counters;
use ftagent_common::abi::{MAX_INTERFACES, Reason};

use super::report::ScenarioReport;
use super::stage::Stage;
use crate::generator::Sent;
use crate::meter::Counts;

/// Frames counted at one quiet moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    /// By the agent's kernel counters.
    pub(super) passed: u64,
    pub(super) dropped: u64,
    /// By the meters: left the client's stack, and got past XDP.
    pub(super) left: Counts,
    pub(super) arrived: Counts,
}

/// Waits until nothing moves any more and counts.
pub(super) fn quiet_count(stage: &Stage) -> anyhow::Result<Count> {
    let mut last = count(stage)?;
    for _ in 0..100 {
        thread::sleep(Duration::from_millis(50));
        let next = count(stage)?;
        if next == last {
            return Ok(next);
        }
        last = next;
    }
    bail!("the wire does not become quiet: {last:?}")
}

/// Counts at this moment; while frames are under way the numbers are a little apart.
pub(super) fn count(stage: &Stage) -> anyhow::Result<Count> {
    let (mut passed, mut dropped) = (0, 0);
    for slot in 0..MAX_INTERFACES {
        let counters = counters::interface(&stage.maps, slot)?;
        for reason in Reason::ALL {
            let packets = counters.reasons[reason.index()].packets;
            *if reason.is_drop() { &mut dropped } else { &mut passed } += packets;
        }
    }
    Ok(Count { passed, dropped, left: stage.left.counts()?, arrived: stage.arrived.counts()? })
}

/// Fills in the frames and says where the counters contradict each other.
pub(super) fn account(report: &mut ScenarioReport, before: Count, after: Count, sent: Option<Sent>) -> Vec<String> {
    let (left, arrived) = (after.left - before.left, after.arrived - before.arrived);
    let (passed, dropped) = (after.passed - before.passed, after.dropped - before.dropped);
    let mut problems = Vec::new();
    if arrived.other > left.other {
        problems.push(format!("{} clean frames arrived, but only {} left", arrived.other, left.other));
    }
    report.clean_frames_dropped = left.other.saturating_sub(arrived.other);
    report.sent = sent.map_or(0, |sent| sent.arrived());
    report.lost_on_wire = sent.map_or(0, |sent| sent.ring_dropped);
    report.passed = arrived.attack;
    // What the kernel dropped, less the clean frames among it.
    report.dropped = dropped.saturating_sub(report.clean_frames_dropped);
    if passed != arrived.attack + arrived.other {
        problems.push(format!(
            "the agent counted {passed} frames as passed, {} arrived behind it",
            arrived.attack + arrived.other
        ));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Moment;

    fn counted(passed: u64, dropped: u64, left: u64, arrived: (u64, u64)) -> Count {
        let arrived = Counts { attack: arrived.0, other: arrived.1 };
        Count { passed, dropped, left: Counts { attack: 0, other: left }, arrived }
    }

    fn sent(frames: u64, ring_dropped: u64) -> Option<Sent> {
        Some(Sent { frames, ring_dropped, refused: 0, first: Moment::now(), last: Moment::now() })
    }

    fn accounted(after: Count, sent: Option<Sent>) -> (ScenarioReport, Vec<String>) {
        let mut report = ScenarioReport::default();
        let problems = account(&mut report, counted(5, 5, 5, (5, 5)), after, sent);
        (report, problems)
    }

    #[test]
    fn attack_frames_are_what_was_sent_less_what_the_wire_lost() {
        let (report, problems) = accounted(counted(5 + 130, 5 + 867, 5 + 100, (5 + 30, 5 + 100)), sent(900, 3));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((report.sent, report.lost_on_wire, report.passed, report.dropped), (897, 3, 30, 867));
    }

    #[test]
    fn clean_frames_that_were_dropped_are_not_taken_for_attack_frames() {
        let (report, problems) = accounted(counted(5 + 128, 5 + 872, 5 + 100, (5 + 30, 5 + 98)), sent(900, 0));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!((report.clean_frames_dropped, report.dropped, report.passed), (2, 870, 30));
    }

    #[test]
    fn counters_that_contradict_each_other_are_a_problem() {
        let (_, problems) = accounted(counted(5 + 129, 5, 5 + 100, (5 + 30, 5 + 100)), sent(30, 0));
        assert_eq!(problems.len(), 1);
        let (_, problems) = accounted(counted(5 + 131, 5, 5 + 100, (5 + 30, 5 + 101)), sent(30, 0));
        assert_eq!(problems.len(), 1);
    }
}
