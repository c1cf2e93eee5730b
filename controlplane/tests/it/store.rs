//! What every store must keep: one suite, run on each backend.

use std::sync::Arc;

use controlplane::domain::{
    Actor, AllowlistScope, Fact, IncidentFilter, MetricsWindow, NewAllowlistEntry, NewChunk, NewRule, NewThreshold,
    NewToken, NodeFilter, Page, PcapFormat, Problem, Role, RuleScope, Secret, Timestamp, WorkspaceId,
};
use controlplane::store::sql::SqlStore;
use controlplane::store::{Answered, Assembled, CLAIM_SECS, Claim, Idempotency, Key, Store, StoreError, UnderWay};
use ftagent_common::api::{IncidentReport, MetricsSample, Order};
use ftagent_common::vocab::NodeStatus;
use uuid::Uuid;

use crate::fixture::{Fixture, contract};
use crate::support::{UUID, report};

contract! {
    a_refused_write_leaves_neither_row_nor_record,
    another_workspace_sees_nothing,
    reports_that_come_together_are_each_answered_for_themselves,
    the_status_filter_agrees_with_the_status_shown,
    old_seconds_become_minutes_and_old_minutes_go,
    commands_that_nobody_took_expire_but_can_still_be_acknowledged,
    the_last_owner_token_stays,
    answers_are_kept_for_their_time,
    a_workspace_has_no_more_thresholds_than_nodes_take,
    captures_belong_to_their_node_and_workspace_and_end_by_age_and_bytes,
    a_store_opens_again_with_what_was_kept,
    a_table_that_a_newer_program_changed_is_read_again,
    pruning_is_in_nobodys_way,
}

mod intel;
mod intent;
mod profiles;
mod series;
mod staged;

const PAGE: Page = Page { limit: 100, offset: 0 };

async fn a_refused_write_leaves_neither_row_nor_record(fixture: Fixture) {
    let before = fixture.audited().await;
    assert!(matches!(fixture.deploy("edge-1").await, Err(StoreError::Problem(Problem::AlreadyExists(_)))));
    let entry = |node| NewAllowlistEntry::parse("198.51.100.1", "", AllowlistScope::Node, Some(node)).unwrap();
    let refused = fixture.store.allow(fixture.ws, entry(Uuid::from_u128(9)), fixture.fact()).await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))));
    assert_eq!(fixture.audited().await, before);
    assert_eq!(fixture.store.config_version(fixture.node).await.unwrap(), 1);
    fixture.store.allow(fixture.ws, entry(fixture.node), fixture.fact()).await.unwrap();
    assert_eq!(fixture.audited().await, before + 1);
    assert_eq!(fixture.store.config_version(fixture.node).await.unwrap(), 2);
}

async fn another_workspace_sees_nothing(fixture: Fixture) {
    let store = &fixture.store;
    let stranger = WorkspaceId(fixture.ws.0 + 1);
    store.record(fixture.node, serde_json::from_value(report(UUID, 1, "active")).unwrap(), fixture.now).await.unwrap();
    let missing = |problem: StoreError| matches!(problem, StoreError::Problem(Problem::NotFound(_)));
    assert!(store.node(stranger, fixture.node, fixture.now).await.is_err_and(missing));
    assert!(store.incident(stranger, 1).await.is_err_and(missing));
    assert!(store.find(stranger, UUID).await.is_err_and(missing));
    assert!(store.delete_node(stranger, fixture.node, fixture.fact()).await.is_err_and(missing));
    assert!(store.disallow(stranger, 1, fixture.fact()).await.is_err_and(missing));
    assert_eq!(store.incidents(stranger, &IncidentFilter::default(), PAGE).await.unwrap().total, 0);
    assert_eq!(store.nodes(stranger, &NodeFilter::default(), PAGE, fixture.now).await.unwrap().total, 0);
    let order = Order::Unblock { source: "192.0.2.1/32".parse().unwrap() };
    assert!(store.order(stranger, fixture.node, &order, fixture.fact()).await.is_err_and(missing));
}

async fn reports_that_come_together_are_each_answered_for_themselves(fixture: Fixture) {
    let other = fixture.deploy("edge-2").await.unwrap();
    let audited = fixture.audited().await;
    let own = |n: u32| format!("00000000-0000-4000-8000-{n:012}");
    let parsed = |body| serde_json::from_value::<IncidentReport>(body).unwrap();
    fixture.store.record(fixture.node, parsed(report(&own(0), 1, "active")), fixture.now).await.unwrap();
    // Sixty new ones, another node's report of the first, and one of a node that there is not.
    let mut reports = vec![(other, own(0)), (Uuid::from_u128(7), own(99))];
    reports.extend((1..=60).map(|n| (if n % 2 == 0 { fixture.node } else { other }, own(n))));
    let fixture = Arc::new(fixture);
    let tasks = reports.into_iter().map(|(node, uuid)| {
        let mut body = report(&uuid, 1, "active");
        body["target"] = format!("203.0.113.{}/32", &uuid[uuid.len() - 2..].parse::<u8>().unwrap()).into();
        let (fixture, report) = (fixture.clone(), parsed(body));
        tokio::spawn(async move { (node, fixture.store.record(node, report, fixture.now).await) })
    });
    let (mut opened, mut refused) = (Vec::new(), Vec::new());
    for task in tasks.collect::<Vec<_>>() {
        match task.await.unwrap() {
            (node, Ok(recorded)) => {
                assert!(recorded.opened && recorded.incident.node == node);
                opened.push(recorded.incident.id);
            }
            (_, Err(StoreError::Problem(problem))) => refused.push(problem),
            (_, Err(fault)) => panic!("{fault}"),
        }
    }
    opened.sort_unstable();
    opened.dedup();
    assert_eq!(opened.len(), 60);
    assert!(matches!(&refused[..], [Problem::AlreadyExists(_), Problem::NotFound("node")]), "{refused:?}");
    assert_eq!(fixture.audited().await, audited + 61);
}

async fn the_status_filter_agrees_with_the_status_shown(fixture: Fixture) {
    for (name, ratio, ago, attacked) in [
        ("on", 0.0, 1, false),
        ("high", 0.71, 1, false),
        ("edge", 0.7, 1, false),
        ("gone", 0.9, 90, true),
        ("hit", 0.0, 89, true),
    ] {
        let node = fixture.deploy(name).await.unwrap();
        fixture.heartbeat(node, ratio, fixture.now.plus_secs(-ago)).await;
        if attacked {
            let body = report(&Uuid::new_v4().to_string(), 1, "active");
            fixture.store.record(node, serde_json::from_value(body).unwrap(), fixture.now).await.unwrap();
        }
    }
    let all = fixture.store.nodes(fixture.ws, &NodeFilter::default(), PAGE, fixture.now).await.unwrap();
    assert_eq!(all.total, 6);
    for status in NodeStatus::ALL {
        let filter = NodeFilter { status: Some(*status) };
        let some = fixture.store.nodes(fixture.ws, &filter, PAGE, fixture.now).await.unwrap();
        let expected: Vec<_> = all.entries.iter().filter(|n| n.status == *status).map(|n| n.uuid).collect();
        assert!(!expected.is_empty(), "no node is {status}");
        assert_eq!(some.entries.iter().map(|n| n.uuid).collect::<Vec<_>>(), expected, "{status}");
        assert_eq!(some.total, expected.len() as u64);
    }
}

async fn old_seconds_become_minutes_and_old_minutes_go(fixture: Fixture) {
    let sample = |secs: i64, pps: u64| MetricsSample {
        at: Timestamp::from_secs(secs).into(),
        pps,
        bps: u64::MAX,
        dropped_pps: 0,
        tcp_pps: 0,
        udp_pps: 0,
        icmp_pps: 0,
        other_pps: 0,
    };
    let start = fixture.now.secs();
    let samples: Vec<_> = (0..120).map(|n| sample(start + n, if n < 60 { 10 } else { 30 })).collect();
    fixture.store.record_metrics(fixture.node, &samples).await.unwrap();
    let series = async |step| {
        let window = MetricsWindow { from: fixture.now, to: fixture.now.plus_secs(600), step };
        fixture.store.metrics(fixture.ws, fixture.node, window).await.unwrap()
    };
    let before = series(60).await;
    assert_eq!(before.iter().map(|p| p.pps).collect::<Vec<_>>(), [10, 30]);
    assert_eq!(fixture.store.prune_metrics(fixture.now.plus_secs(90), fixture.now).await.unwrap(), 60);
    assert_eq!(series(60).await, before, "thinned out, the minutes are the same");
    assert_eq!(series(1).await.len(), 61);
    // A late second of a minute that was thinned out counts as one of its samples.
    fixture.store.record_metrics(fixture.node, &[sample(start, 71)]).await.unwrap();
    fixture.store.prune_metrics(fixture.now.plus_secs(90), fixture.now).await.unwrap();
    let merged = series(60).await;
    assert_eq!((merged[0].pps, merged[0].peak_pps), (11, 71));
    fixture.store.prune_metrics(fixture.now.plus_secs(600), fixture.now.plus_secs(600)).await.unwrap();
    assert!(series(60).await.is_empty());
}

async fn commands_that_nobody_took_expire_but_can_still_be_acknowledged(fixture: Fixture) {
    let order = Order::Block { source: "192.0.2.1/32".parse().unwrap(), ttl_secs: 60 };
    let command = fixture.store.order(fixture.ws, fixture.node, &order, fixture.fact()).await.unwrap();
    let pending = fixture.store.pending_commands(fixture.node, 0).await.unwrap();
    assert_eq!(pending.iter().map(|(_, c)| c).collect::<Vec<_>>(), [&command]);
    assert!(fixture.store.pending_commands(fixture.node, pending[0].0).await.unwrap().is_empty());
    assert_eq!(fixture.store.expire_commands(fixture.now).await.unwrap(), 0);
    assert_eq!(fixture.store.expire_commands(fixture.now.plus_secs(1)).await.unwrap(), 1);
    assert!(fixture.store.pending_commands(fixture.node, 0).await.unwrap().is_empty());
    let text = format!(r#"{{"command_id":"{}","status":"applied"}}"#, command.command_id);
    let ack = serde_json::from_str(&text).unwrap();
    let before = fixture.audited().await;
    for _ in 0..2 {
        fixture.store.acknowledge(fixture.node, &ack, fixture.fact()).await.unwrap();
    }
    assert_eq!(fixture.audited().await, before + 1);
    let other = fixture.deploy("edge-2").await.unwrap();
    assert!(fixture.store.acknowledge(other, &ack, fixture.fact()).await.is_err(), "another node's command");
}

async fn the_last_owner_token_stays(fixture: Fixture) {
    let store = &fixture.store;
    let new = |role| NewToken { name: "t".to_owned(), role, rate_limit: None, expires_at: None };
    let hash = |n| Secret::from_random([n; 32]).hash();
    let admin = store.create_token(fixture.ws, new(Role::Admin), &hash(7), fixture.fact()).await.unwrap();
    let revoke = async |id| store.revoke_token(fixture.ws, id, fixture.now, fixture.fact()).await;
    assert!(matches!(revoke(1).await, Err(StoreError::Problem(Problem::Forbidden(_)))));
    assert_eq!(store.token_candidates(&hash(1)).await.unwrap().len(), 1, "nothing was revoked");
    store.create_token(fixture.ws, new(Role::Owner), &hash(8), fixture.fact()).await.unwrap();
    assert!(revoke(1).await.is_ok());
    assert!(revoke(admin.id).await.is_ok());
    assert!(store.token_candidates(&hash(1)).await.unwrap().is_empty());
    assert!(matches!(revoke(99).await, Err(StoreError::Problem(Problem::NotFound(_)))));
}

async fn answers_are_kept_for_their_time(fixture: Fixture) {
    let key = |request: u8| Key { hash: [2; 32], request_hash: [request; 32] };
    let claim = async |actor: &str, since: i64| {
        fixture.store.claim(actor, &key(1), fixture.now, fixture.now.plus_secs(since)).await.unwrap()
    };
    assert_eq!(claim("token/1", 0).await, Claim::Taken);
    assert_eq!(claim("token/1", -9).await, Claim::Taken, "a process keeps its own requests in line");
    if fixture.is_postgres() {
        let other = SqlStore::open(&fixture.database).await.unwrap();
        let asked = async |now| Idempotency::claim(&other, "token/1", &key(1), now, fixture.now.plus_secs(-9)).await;
        assert_eq!(asked(fixture.now).await.unwrap(), Claim::UnderWay, "it is another process's");
        let late = fixture.now.plus_secs(CLAIM_SECS + 1);
        assert_eq!(asked(late).await.unwrap(), Claim::Taken, "whose has died");
        assert_eq!(claim("token/1", -9).await, Claim::UnderWay);
        fixture.store.release("token/1", [2; 32]).await.unwrap();
        assert_eq!(claim("token/1", -9).await, Claim::UnderWay, "it is not this one's to give free");
        Idempotency::release(&other, "token/1", [2; 32]).await.unwrap();
        other.close().await;
    }
    fixture.store.release("token/1", [2; 32]).await.unwrap();
    assert_eq!(claim("token/1", 0).await, Claim::Taken);
    let answered = Answered { request_hash: [1; 32], status: 200, answer: vec![1, 2, 3] };
    fixture.store.remember("token/1", [2; 32], &answered, fixture.now).await.unwrap();
    assert_eq!(claim("token/1", 0).await, Claim::Answered(answered.clone()));
    fixture.store.release("token/1", [2; 32]).await.unwrap();
    assert_eq!(claim("token/1", 0).await, Claim::Answered(answered), "an answer stays");
    assert_eq!(claim("token/2", 0).await, Claim::Taken);
    fixture.store.release("token/2", [2; 32]).await.unwrap();
    assert_eq!(fixture.store.forget_answers(fixture.now.plus_secs(1)).await.unwrap(), 1);
    assert_eq!(claim("token/1", 0).await, Claim::Taken);
}

#[tokio::test]
async fn a_transaction_that_sqlite_ended_by_itself_leaves_the_store_writing() {
    let fixture = Fixture::sqlite().await;
    // The same end of a transaction as on a full disk.
    let trigger = "CREATE TRIGGER t BEFORE INSERT ON rules BEGIN SELECT RAISE(ROLLBACK, 'as on a full disk'); END";
    fixture.raw(trigger).await;
    let rule = || NewRule {
        name: "r".to_owned(),
        trigger: serde_json::from_str(r#"{"type":"any"}"#).unwrap(),
        action: serde_json::from_str(r#"{"type":"xdp_drop_source"}"#).unwrap(),
        scope: RuleScope::All {},
        cooldown_minutes: 5,
        enabled: true,
    };
    let create = async || fixture.store.create_rule(fixture.ws, rule(), fixture.fact()).await;
    assert!(create().await.is_err());
    fixture.raw("DROP TRIGGER t").await;
    assert!(create().await.is_ok());
    fixture.audited().await;
}

async fn a_workspace_has_no_more_thresholds_than_nodes_take(fixture: Fixture) {
    let many = format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)
         INSERT INTO thresholds (workspace_id, target, label, thresholds, created_at, updated_at)
         SELECT {}, '10.0.' || (i / 250) || '.' || (i % 250) || '/32', '', '{{}}', 0, 0 FROM n",
        fixture.ws.0
    );
    fixture.raw(&many).await;
    let save = async |target: &str| {
        let rates = [("pps".to_owned(), 5)].into_iter().collect();
        fixture.store.save_threshold(fixture.ws, NewThreshold::parse(target, "", rates).unwrap(), fixture.fact()).await
    };
    assert!(matches!(save("192.0.2.1").await, Err(StoreError::Problem(Problem::Invalid(_)))));
    assert!(save("10.0.0.1").await.is_ok(), "one that is there can be replaced");
}

async fn a_store_opens_again_with_what_was_kept(fixture: Fixture) {
    let records = fixture.audited().await;
    fixture.store.close().await;
    assert!(matches!(fixture.store.check().await, Err(StoreError::Unavailable { .. })));
    let store: Arc<dyn Store> = Arc::new(SqlStore::open(&fixture.database).await.unwrap());
    let mut second = fixture;
    second.store = store;
    assert!(!second.store.bootstrap(second.now, &Secret::from_random([2; 32]).hash()).await.unwrap());
    second.store.check().await.unwrap();
    assert_eq!(second.audited().await, records);
}

async fn a_table_that_a_newer_program_changed_is_read_again(fixture: Fixture) {
    let store = &fixture.store;
    let read = async || store.thresholds(fixture.ws, PAGE).await.map(|listed| listed.total);
    for _ in 0..20 {
        assert_eq!(read().await.unwrap(), 0);
    }
    fixture.raw("ALTER TABLE thresholds ADD COLUMN tomorrow TEXT").await;
    let mut tries = 0;
    while let Err(fault) = read().await {
        assert!(matches!(fault, StoreError::Unavailable { .. }), "{fault:?}");
        tries += 1;
        assert!(tries <= 20, "once for each connection at most");
    }
    let rates = [("pps".to_owned(), 5)].into_iter().collect();
    let new = NewThreshold::parse("192.0.2.1", "", rates).unwrap();
    store.save_threshold(fixture.ws, new, fixture.fact()).await.unwrap();
}

async fn pruning_is_in_nobodys_way(fixture: Fixture) {
    let fixture = Arc::new(fixture);
    let start = fixture.now.secs();
    let mut tasks = Vec::new();
    for task in 0..8_i64 {
        let fixture = fixture.clone();
        tasks.push(tokio::spawn(async move {
            for round in 0..10 {
                let node = fixture.deploy(&format!("n{task}-{round}")).await.unwrap();
                let sample = |secs: i64| MetricsSample {
                    at: Timestamp::from_secs(start + secs).into(),
                    pps: 1,
                    bps: 1,
                    dropped_pps: 0,
                    tcp_pps: 0,
                    udp_pps: 0,
                    icmp_pps: 0,
                    other_pps: 0,
                };
                let samples: Vec<_> = (0..120).rev().map(sample).collect();
                fixture.store.record_metrics(node, &samples).await.unwrap();
                fixture.store.record_metrics(fixture.node, &samples).await.unwrap();
                fixture.store.prune_metrics(fixture.now.plus_secs(60), fixture.now).await.unwrap();
                if round % 2 == 0 {
                    fixture.store.delete_node(fixture.ws, node, fixture.fact()).await.unwrap();
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    fixture.audited().await;
}

async fn captures_belong_to_their_node_and_workspace_and_end_by_age_and_bytes(fixture: Fixture) {
    let store = &fixture.store;
    store.record(fixture.node, serde_json::from_value(report(UUID, 1, "active")).unwrap(), fixture.now).await.unwrap();
    let chunk = |upload: &str, incident: &str| NewChunk {
        incident: incident.parse().unwrap(),
        upload: upload.to_owned(),
        index: 0,
        total: 3,
        part: 1,
        packets: Some(5),
        sha256: None,
    };
    let open = async |chunk: &NewChunk, now| store.open_upload(fixture.node, chunk, 1 << 30, now).await;
    let stranger = fixture.deploy("edge-2").await.unwrap();
    let missing = |problem: StoreError| matches!(problem, StoreError::Problem(Problem::NotFound(_)));
    assert!(store.open_upload(stranger, &chunk("a", UUID), 1 << 30, fixture.now).await.is_err_and(missing));
    let room = store.open_upload(fixture.node, &chunk("a", UUID), (6 << 20) - 1, fixture.now).await;
    assert!(matches!(room, Err(StoreError::Disk { .. })));

    let mut ids = Vec::new();
    for n in 0..4_u8 {
        let now = fixture.now.plus_secs(i64::from(n) * 3_600);
        let chunk = chunk(&format!("u{n}"), UUID);
        let UnderWay::Key(key) = open(&chunk, now).await.unwrap().under_way else { panic!("not begun") };
        let again = open(&chunk, now.plus_secs(100)).await.unwrap();
        assert_eq!((again.under_way, again.quota.remaining), (UnderWay::Key(key), 10));
        let file = Assembled { format: PcapFormat::Pcapng, bytes: 1_000, sha256: [n; 32] };
        let fact = Fact::new(now, &Actor::System { workspace: fixture.ws }, "pcap.upload", "pcap");
        let kept = store.keep_pcap(key, &chunk, &file, fact).await.unwrap();
        assert!(store.keep_pcap(key, &chunk, &file, fixture.fact()).await.is_err_and(missing), "it has ended");
        assert_eq!(open(&chunk, now).await.unwrap().under_way, UnderWay::Done(kept.clone()));
        ids.push(kept.id);
    }
    let other = WorkspaceId(fixture.ws.0 + 1);
    assert!(store.pcap(other, ids[0]).await.is_err_and(missing));
    assert!(store.delete_pcap(other, ids[0], fixture.fact()).await.is_err_and(missing));
    assert_eq!(store.pcaps(other, PAGE).await.unwrap().total, 0);
    assert_eq!(store.pcaps_of(fixture.ws, 1).await.unwrap().len(), 4);

    let UnderWay::Key(still) = open(&chunk("still", UUID), fixture.now).await.unwrap().under_way else { panic!() };
    assert!(store.forget_uploads(fixture.now).await.unwrap().is_empty());
    assert_eq!(store.pcap_files().await.unwrap(), (vec![still], (0..4).map(|n| [n; 32]).collect()));
    assert_eq!(store.forget_uploads(fixture.now.plus_secs(1)).await.unwrap(), [still]);
    let left = async || store.pcaps(fixture.ws, PAGE).await.unwrap().entries.iter().map(|p| p.id).collect::<Vec<_>>();
    assert_eq!(store.prune_pcaps(fixture.now, 4_000).await.unwrap(), 0);
    assert_eq!(store.prune_pcaps(fixture.now.plus_secs(1), 10_000).await.unwrap(), 1);
    assert_eq!(left().await, [ids[3], ids[2], ids[1]]);
    assert_eq!(store.prune_pcaps(fixture.now, 2_999).await.unwrap(), 1);
    assert_eq!(left().await, [ids[3], ids[2]]);
    let before = fixture.audited().await;
    store.delete_pcap(fixture.ws, ids[3], fixture.fact()).await.unwrap();
    assert_eq!((fixture.audited().await, left().await), (before + 1, vec![ids[2]]));
    store.delete_node(fixture.ws, fixture.node, fixture.fact()).await.unwrap();
    assert_eq!(store.pcap_files().await.unwrap(), (vec![], vec![]));
}
