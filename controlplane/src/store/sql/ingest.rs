//! What nodes say every few seconds, kept many at a time: one transaction for all heartbeats and samples that wait.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use ftagent_common::api::MetricsSample;
use uuid::Uuid;

use super::look::{Place, places};
use super::rows::Rows;
use super::transaction::{Pools, Tx};
use super::{Query, again, count, sql};
use crate::domain::{Problem, Timestamp};
use crate::store::Result;

/// Reports of one transaction.
pub(super) const MOST: usize = 512;
/// Nobody waits for these but the node, which sends the next in seconds.
pub(super) const PACE: Duration = Duration::from_millis(20);

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

macro_rules! into_metrics {
    () => {
        "INSERT INTO metrics (node_id, at_secs, pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps) "
    };
}

macro_rules! newest_counts {
    () => {
        " ON CONFLICT (node_id, at_secs) DO UPDATE
     SET pps = excluded.pps, bps = excluded.bps, dropped_pps = excluded.dropped_pps, tcp_pps = excluded.tcp_pps,
         udp_pps = excluded.udp_pps, icmp_pps = excluded.icmp_pps, other_pps = excluded.other_pps"
    };
}

static SAMPLES: Rows = Rows::new(concat!(into_metrics!(), "VALUES"), 9, newest_counts!());

/// One text for any number of rows, with an array for each column.
const SAMPLES_IN_ARRAYS: &str = concat!(
    into_metrics!(),
    "SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[],
                          $7::bigint[], $8::bigint[], $9::bigint[])",
    newest_counts!()
);

/// Keeps the reports; answers each with the version of the configuration that its node should have.
pub(super) async fn keep(pools: Pools, reports: Vec<Report>) -> Result<Vec<Result<u64>>> {
    again(|| keep_once(&pools, &reports)).await
}

async fn keep_once(pools: &Pools, reports: &[Report]) -> Result<Vec<Result<u64>>> {
    let mut tx = pools.write_lazily().await?;
    let nodes: BTreeSet<Uuid> = reports.iter().map(Report::node).collect();
    let mut known = places(&mut tx, &nodes.into_iter().collect::<Vec<_>>()).await?;
    if tx.is_postgres() {
        hold(&mut tx, &mut known).await?;
    }
    let (heartbeats, samples) = sorted(reports, &known);
    for (text, some) in HEARTBEATS.exactly(tx.is_postgres(), &heartbeats) {
        let insert = some.iter().fold(sql(text), |insert, (id, (at, ratio, text))| {
            insert.bind(*id).bind(at.micros()).bind(*ratio).bind(&***text)
        });
        insert.run(&mut tx).await?;
    }
    if tx.is_postgres() {
        if !samples.is_empty() {
            in_arrays(&samples).run(&mut tx).await?;
        }
    } else {
        for (text, some) in SAMPLES.exactly(false, &samples) {
            let insert = some.iter().flat_map(columns).fold(sql(text), Query::bind);
            insert.run(&mut tx).await?;
        }
    }
    tx.commit().await?;
    let version = |report: &Report| known.get(&report.node()).map(|place| place.version);
    Ok(reports.iter().map(|report| version(report).ok_or_else(|| Problem::NotFound("node").into())).collect())
}

/// Keeps the nodes from being removed until the transaction ends, and forgets those that have been: no constraint of the
/// table of samples does so.
async fn hold(tx: &mut Tx, known: &mut HashMap<Uuid, Place>) -> Result<()> {
    let mut ids: Vec<i64> = known.values().map(|place| place.id).collect();
    ids.sort_unstable();
    let held = sql("SELECT id FROM nodes WHERE id = ANY($1) ORDER BY id FOR KEY SHARE").bind(ids).all(tx).await?;
    let held = held.iter().map(|row| row.try_get("id")).collect::<std::result::Result<HashSet<i64>, _>>()?;
    known.retain(|_, place| held.contains(&place.id));
    Ok(())
}

/// A row of the samples, in the order of its columns.
fn columns(((id, at), sample): &((i64, i64), &MetricsSample)) -> [i64; 9] {
    let MetricsSample { pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps, .. } = **sample;
    let [pps, bps, dropped, tcp, udp, icmp, other] =
        [pps, bps, dropped_pps, tcp_pps, udp_pps, icmp_pps, other_pps].map(count);
    [*id, *at, pps, bps, dropped, tcp, udp, icmp, other]
}

fn in_arrays(samples: &[((i64, i64), &MetricsSample)]) -> Query {
    let mut arrays = [const { Vec::new() }; 9];
    for sample in samples {
        for (array, value) in arrays.iter_mut().zip(columns(sample)) {
            array.push(value);
        }
    }
    arrays.into_iter().fold(sql(SAMPLES_IN_ARRAYS), Query::bind)
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
