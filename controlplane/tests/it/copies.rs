//! Copies of a database that is written to by many: each is of one moment, whole, and consistent in itself.

use std::path::Path;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::load::{Load, SETTINGS, Snapshot};
use crate::process::{Process, run};

/// What must hold in a copy of any moment.
async fn check(load: &Load, copy: &Process, before: &Snapshot, after: &Snapshot) {
    let there = Snapshot::of(load, &copy.url).await;
    assert!(there.intact, "the audit chain");
    assert_eq!(there.created - there.deleted, there.rules.len(), "each rule with its records");
    assert_eq!(there.noted, there.notes.len(), "each note with its record");
    // What was acknowledged before is in it, and nothing is that was not there in the end.
    assert!(before.resolved.is_subset(&there.resolved) && there.resolved.is_subset(&after.resolved));
    assert!(before.notes.iter().all(|note| there.notes.contains(note)));
    assert!(there.created >= before.created && there.created <= after.created);
    assert!(there.incidents >= before.incidents && there.incidents <= after.incidents);
    assert!(there.audited >= before.audited && there.audited <= after.audited);
    println!(
        "{} incidents ({} before, {} in the end), {} rules, {} notes, {} audit records",
        there.incidents,
        before.incidents,
        after.incidents,
        there.rules.len(),
        there.notes.len(),
        there.audited
    );
}

fn must(data: &Path, args: &[&str]) -> String {
    let (ok, said) = run(data, args);
    assert!(ok, "{args:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_under_load_are_whole_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let process = Process::start_with(&data, &[], &SETTINGS);
    let mut load = Load::start(&process, &data, &[]).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut copies = Vec::new();
    for n in 0..3 {
        let before = Snapshot::of(&load, &process.url).await;
        let (file, dump) = (folder.path().join(format!("{n}.sqlite")), folder.path().join(format!("{n}.jsonl")));
        must(&data, &["backup", file.to_str().unwrap()]);
        must(&data, &["export", dump.to_str().unwrap()]);
        tokio::time::sleep(Duration::from_millis(300)).await;
        copies.push((before, file, dump));
    }
    let ledger = load.finish().await;
    let after = Snapshot::of(&load, &process.url).await;
    println!("{} requests meanwhile", ledger.requests);
    for (n, (before, file, dump)) in copies.iter().enumerate() {
        let restored = folder.path().join(format!("restored-{n}"));
        // Verifies pages, foreign keys and chains before it puts the copy in its place.
        assert!(must(&restored, &["restore", file.to_str().unwrap()]).contains("intact"));
        check(&load, &Process::start(&restored, &[]), before, &after).await;
        let imported = folder.path().join(format!("imported-{n}"));
        assert!(must(&imported, &["import", dump.to_str().unwrap()]).contains("intact"));
        check(&load, &Process::start(&imported, &[]), before, &after).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_under_load_are_whole_on_postgres() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (data, url) = (folder.path().join("data"), cluster.database().await);
    let database = ["--database", url.as_str()];
    let process = Process::start_with(&data, &database, &SETTINGS);
    let mut load = Load::start(&process, &data, &database).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let mut copies = Vec::new();
    for n in 0..3 {
        let before = Snapshot::of(&load, &process.url).await;
        let dump = folder.path().join(format!("{n}.jsonl"));
        must(&data, &[&database[..], &["export", dump.to_str().unwrap()]].concat());
        let copied = cluster.copy(&url).await;
        copies.push((before, dump, copied));
    }
    let ledger = load.finish().await;
    let after = Snapshot::of(&load, &process.url).await;
    println!("{} requests meanwhile", ledger.requests);
    for (n, (before, dump, copied)) in copies.iter().enumerate() {
        // Our own dump, and PostgreSQL's programs; foreign keys are checked by PostgreSQL as it takes the rows.
        let fresh = cluster.database().await;
        let imported = folder.path().join(format!("imported-{n}"));
        let into = ["--database", fresh.as_str()];
        assert!(must(&imported, &[&into[..], &["import", dump.to_str().unwrap()]].concat()).contains("intact"));
        check(&load, &Process::start(&imported, &into), before, &after).await;
        let other = folder.path().join(format!("copied-{n}"));
        check(&load, &Process::start(&other, &["--database", copied]), before, &after).await;
    }
}
