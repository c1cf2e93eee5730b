//! Series of traffic: which seconds a window has, and what a point of several is made of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use controlplane::domain::{MetricsWindow, Problem, Timestamp};
use controlplane::store::StoreError;
use ftagent_common::api::MetricsSample;

use crate::fixture::{Fixture, contract};

contract! {
    a_window_has_its_first_second_and_not_its_last,
    a_node_that_is_removed_while_it_reports_leaves_no_seconds,
}

async fn a_window_has_its_first_second_and_not_its_last(fixture: Fixture) {
    let start = fixture.now.secs();
    assert_eq!(start % 60, 0);
    // Two samples are missing: a mean is of what was measured.
    let samples: Vec<_> = (0..30)
        .filter(|n| !(12..14).contains(n))
        .map(|n| MetricsSample {
            at: Timestamp::from_secs(start + n).into(),
            pps: n.unsigned_abs(),
            bps: 8 * n.unsigned_abs(),
            dropped_pps: 0,
            tcp_pps: 0,
            udp_pps: 0,
            icmp_pps: 0,
            other_pps: 0,
        })
        .collect();
    fixture.store.record_metrics(fixture.node, &samples).await.unwrap();
    let points = async |from: i64, to: i64, step| {
        let window = MetricsWindow { from: fixture.now.plus_secs(from), to: fixture.now.plus_secs(to), step };
        let points = fixture.store.metrics(fixture.ws, fixture.node, window).await.unwrap();
        points.iter().map(|p| (p.at.secs() - start, p.pps, p.peak_pps)).collect::<Vec<_>>()
    };
    assert_eq!(points(0, 3, 1).await, [(0, 0, 0), (1, 1, 1), (2, 2, 2)]);
    assert_eq!(points(3, 4, 1).await, [(3, 3, 3)]);
    assert_eq!(points(0, 20, 10).await, [(0, 4, 9), (10, 15, 19)], "4.5 cut to whole packets; 15");
    assert_eq!(points(8, 12, 10).await, [(0, 8, 9), (10, 10, 11)], "parts of a step at either end");
    assert_eq!(points(29, 60, 60).await, [(0, 29, 29)]);
    assert!(points(30, 60, 1).await.is_empty() && points(12, 14, 1).await.is_empty());
}

async fn a_node_that_is_removed_while_it_reports_leaves_no_seconds(fixture: Fixture) {
    let mut nodes = Vec::new();
    for n in 0..12 {
        nodes.push(fixture.deploy(&format!("gone-{n}")).await.unwrap());
    }
    let fixture = Arc::new(fixture);
    let kept = Arc::new(AtomicU64::new(0));
    let report = |node| {
        let (fixture, kept) = (fixture.clone(), kept.clone());
        tokio::spawn(async move {
            for n in 0.. {
                let at = Timestamp::from_secs(fixture.now.secs() + n).into();
                let (pps, bps, dropped_pps, tcp_pps) = (1, 8, 0, 1);
                let sample =
                    MetricsSample { at, pps, bps, dropped_pps, tcp_pps, udp_pps: 0, icmp_pps: 0, other_pps: 0 };
                match fixture.store.record_metrics(node, &[sample]).await {
                    Ok(()) => kept.fetch_add(1, Ordering::Relaxed),
                    Err(StoreError::Problem(Problem::NotFound("node"))) => return,
                    Err(fault) => panic!("{fault}"),
                };
            }
        })
    };
    let reporting: Vec<_> = nodes.iter().map(|node| report(*node)).collect();
    for (n, node) in nodes.iter().enumerate() {
        while kept.load(Ordering::Relaxed) < 12 * (n as u64 + 1) {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        fixture.store.delete_node(fixture.ws, *node, fixture.fact()).await.unwrap();
    }
    for node in reporting {
        node.await.unwrap();
    }
    if fixture.is_postgres() {
        // Nothing else would say that there is a second without a node.
        fixture.raw("ALTER TABLE metrics ADD FOREIGN KEY (node_id) REFERENCES nodes (id)").await;
    }
}
