//! What nodes say every few seconds, kept many at a time: one transaction for all heartbeats and samples that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use ftagent_common::api::MetricsSample;
use uuid::Uuid;

use super::look::{Place, places};
use super::rows::Rows;
use super::transaction::Pools;
use super::{again, count, sql};
use crate::domain::{Problem, Timestamp};
use crate::store::Result;

/// Reports of one transaction.
pub(super) const MOST: usize = 512;

/// The columns that seconds and minutes share.
pub(super) const MEANS: [&str; 7] = ["pps", "bps", "dropped_pps", "tcp_pps", "udp_pps", "icmp_pps", "other_pps"];

/// What a node says.
#[derive(Clone)]
pub(super) enum Report {
    Heartbeat {
        node: Uuid,
        at: Timestamp,
        ratio: f64,
        /// The whole of it, in JSON.
        text: Arc<str>,
    },
    Metrics {
        node: Uuid,
        samples: Arc<[MetricsSample]>,
    },
}

impl Report {
    const fn node(&self) -> Uuid {
        match self {
            Self::Heartbeat { node, .. } | Self::Metrics { node, .. } => *node,
        }
    }
}

static HEARTBEATS: Rows = Rows::new(
    "INSERT INTO node_states (node_id, last_seen, ratio, heartbeat) VALUES",
    4,
    "ON CONFLICT (node_id) DO UPDATE
     SET last_seen = excluded.last_seen, ratio = excluded.ratio, heartbeat = excluded.heartbeat",
);

static SAMPLES: Rows = Rows::new(
    "INSERT INTO metrics (node_id, at_secs, pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps) VALUES",
    9,
    "ON CONFLICT (node_id, at_secs) DO UPDATE
     SET pps = excluded.pps, bps = excluded.bps, dropped_pps = excluded.dropped_pps, tcp_pps = excluded.tcp_pps,
         udp_pps = excluded.udp_pps, icmp_pps = excluded.icmp_pps, other_pps = excluded.other_pps",
);

/// Keeps the reports; answers each with the version of the configuration that its node should have.
pub(super) async fn keep(pools: Pools, reports: Vec<Report>) -> Result<Vec<Result<u64>>> {
    again(|| keep_once(&pools, &reports)).await
}

async fn keep_once(pools: &Pools, reports: &[Report]) -> Result<Vec<Result<u64>>> {
    let mut tx = pools.write().await?;
    let nodes: BTreeSet<Uuid> = reports.iter().map(Report::node).collect();
    let known = places(&mut tx, &nodes.into_iter().collect::<Vec<_>>()).await?;
    let (heartbeats, samples) = sorted(reports, &known);
    for (text, some) in HEARTBEATS.exactly(tx.is_postgres(), &heartbeats) {
        let insert = some.iter().fold(sql(text), |insert, (id, (at, ratio, text))| {
            insert.bind(*id).bind(at.micros()).bind(*ratio).bind(&***text)
        });
        insert.run(&mut tx).await?;
    }
    for (text, some) in SAMPLES.exactly(tx.is_postgres(), &samples) {
        let insert = some.iter().fold(sql(text), |insert, ((id, at), sample)| {
            let MetricsSample { pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps, .. } = **sample;
            let values = [pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps];
            values.into_iter().fold(insert.bind(*id).bind(*at), |insert, value| insert.bind(count(value)))
        });
        insert.run(&mut tx).await?;
    }
    tx.commit().await?;
    let version = |report: &Report| known.get(&report.node()).map(|place| place.version);
    Ok(reports.iter().map(|report| version(report).ok_or_else(|| Problem::NotFound("node").into())).collect())
}

type Heartbeats<'a> = Vec<(i64, (Timestamp, f64, &'a Arc<str>))>;
type Samples<'a> = Vec<((i64, i64), &'a MetricsSample)>;

/// One heartbeat of a node and one sample of its second, the last of each, by node and second: so that two processes
/// take the rows in one order and wait for each other instead of locking each other out.
fn sorted<'a>(reports: &'a [Report], known: &HashMap<Uuid, Place>) -> (Heartbeats<'a>, Samples<'a>) {
    let (mut heartbeats, mut seconds) = (BTreeMap::new(), BTreeMap::new());
    for report in reports {
        let Some(place) = known.get(&report.node()) else { continue };
        match report {
            Report::Heartbeat { at, ratio, text, .. } => {
                heartbeats.insert(place.id, (*at, *ratio, text));
            }
            Report::Metrics { samples, .. } => {
                seconds.extend(samples.iter().map(|s| ((place.id, Timestamp::from(s.at).secs()), s)));
            }
        }
    }
    (heartbeats.into_iter().collect(), seconds.into_iter().collect())
}
