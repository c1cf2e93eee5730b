//! The real program under load, killed again and again at random moments: nothing acknowledged is lost, nothing is done
//! or told twice.
//!
//! `FTAGENT_TEST_KILLS` says how often, 4 by default; `FTAGENT_TEST_SEED` which moments.

use crate::cluster::Cluster;
use crate::load::{Found, Load, SETTINGS, moment, random};
use crate::process::Process;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_and_repeat_nothing_on_sqlite() {
    kills("SQLite", &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_lose_nothing_and_repeat_nothing_on_postgres() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database().await;
    kills("PostgreSQL", &["--database", &url]).await;
}

#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn kills(name: &str, database: &[&str]) {
    let (kills, seed) = (setting("FTAGENT_TEST_KILLS", 4), setting("FTAGENT_TEST_SEED", 1));
    let folder = tempfile::tempdir().unwrap();
    let mut process = Process::start_with(folder.path(), database, &SETTINGS);
    let mut load = Load::start(&process, folder.path(), database).await;
    let mut random = random(seed);
    let begun = std::time::Instant::now();
    let mut slowest = std::time::Duration::ZERO;
    for _ in 0..kills {
        tokio::time::sleep(moment(&mut random)).await;
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        let killed = std::time::Instant::now();
        process = Process::start_with(folder.path(), database, &SETTINGS);
        slowest = slowest.max(killed.elapsed());
        load.moved(&process);
    }
    let (_, while_killing) = load.receiver.told();
    let ledger = load.finish().await;
    let (lost_deliveries, twice_told) = load.delivered(&ledger).await;
    let found = load.compare(&process, &ledger).await;
    let (told, requests) = load.receiver.told();
    println!(
        "{name}: {kills} kills (seed {seed}) in {:?}, the slowest start {slowest:?}\n\
         {} requests; acknowledged: {} incidents of 3 reports, {} rules, {} deletions, {} notes\n\
         acknowledged writes lost {}, effects too many {}, changes found done by their key {}, replays alike {}\n\
         deliveries {} in {requests} requests ({while_killing} before the last kill), lost {lost_deliveries}, \
         duplicates after the receiver's own check {twice_told}\n\
         audit chain of {} records intact: {}",
        begun.elapsed(),
        ledger.requests,
        ledger.incidents.len(),
        ledger.rules.len(),
        ledger.rules.values().filter(|gone| **gone).count(),
        ledger.notes.len(),
        found.lost,
        found.twice,
        ledger.found_done,
        ledger.replayed,
        told.values().map(Vec::len).sum::<usize>(),
        found.audited,
        found.intact,
    );
    assert!(ledger.incidents.len() > 3 && ledger.rules.len() > 5 && ledger.notes.len() > 3, "there was no load");
    let Found { lost, twice, intact, .. } = found;
    assert_eq!((lost, twice, intact), (0, 0, true));
    assert_eq!((lost_deliveries, twice_told), (0, 0));
}
