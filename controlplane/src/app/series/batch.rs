//! What goes with one request.

use std::collections::{BTreeMap, HashMap};

use ftagent_common::api::MetricsSample;
use uuid::Uuid;

use super::{Measured, amount};
use crate::domain::Timestamp;
use crate::outbound::{WorkspaceKey, key_of};

/// Nodes whose last second is remembered.
const NODES: usize = 500_000;

/// The last second that was given to the receiver, of each node.
pub(super) type Last = HashMap<Uuid, i64>;

/// Samples by node, each node's in order.
#[derive(Default)]
pub(super) struct Batch {
    by_node: BTreeMap<(WorkspaceKey, Uuid), Vec<MetricsSample>>,
    seconds: usize,
    late: usize,
}

impl Batch {
    /// Adds what is newer than anything before it.
    pub(super) fn add(&mut self, measured: Measured, last: &mut Last) {
        let Measured { workspace, node, mut samples } = measured;
        samples.sort_by_key(|sample| sample.at);
        if last.len() >= NODES && !last.contains_key(&node) {
            last.clear();
        }
        let newest = last.entry(node).or_insert(i64::MIN);
        let all = samples.len();
        samples.retain(|sample| {
            let at = Timestamp::from(sample.at).micros() / 1_000;
            let newer = at > *newest;
            *newest = at.max(*newest);
            newer
        });
        self.seconds += samples.len();
        self.late += all - samples.len();
        if !samples.is_empty() {
            self.by_node.entry((key_of(workspace), node)).or_default().append(&mut samples);
        }
    }

    pub(super) const fn by_node(&self) -> &BTreeMap<(WorkspaceKey, Uuid), Vec<MetricsSample>> {
        &self.by_node
    }

    /// Samples of single series.
    pub(super) fn samples(&self) -> u64 {
        amount(self.seconds)
    }

    /// Those that were left out.
    pub(super) fn late(&self) -> u64 {
        amount(self.late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WorkspaceId;

    #[test]
    fn a_nodes_seconds_are_in_order_and_never_twice() {
        let measured = |node: u128, seconds: &[i64]| {
            let sample = |secs: &i64| MetricsSample {
                at: Timestamp::from_secs(*secs).into(),
                pps: 1,
                bps: 1,
                dropped_pps: 0,
                tcp_pps: 0,
                udp_pps: 0,
                icmp_pps: 0,
                other_pps: 0,
            };
            Measured {
                workspace: WorkspaceId(1),
                node: Uuid::from_u128(node),
                samples: seconds.iter().map(sample).collect(),
            }
        };
        let seconds = |batch: &Batch, node: u128| {
            let samples = &batch.by_node()[&(1, Uuid::from_u128(node))];
            samples.iter().map(|s| Timestamp::from(s.at).secs()).collect::<Vec<_>>()
        };
        let (mut last, mut batch) = (Last::new(), Batch::default());
        batch.add(measured(1, &[12, 10, 11]), &mut last);
        batch.add(measured(2, &[5]), &mut last);
        batch.add(measured(1, &[12, 13]), &mut last);
        assert_eq!((seconds(&batch, 1), seconds(&batch, 2)), (vec![10, 11, 12, 13], vec![5]));
        assert_eq!((batch.samples(), batch.late()), (35, 7));
        let mut next = Batch::default();
        next.add(measured(1, &[9, 13, 14]), &mut last);
        assert_eq!((seconds(&next, 1), next.late()), (vec![14], 14), "also across requests");
    }
}
