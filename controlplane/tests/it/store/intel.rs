//! Indicators, feeds and maintenance windows, on each backend.

use controlplane::domain::{
    AllowlistScope, IndicatorFilter, IndicatorValue, MaintenanceWindow, NewAllowlistEntry, NewFeedToken, NewIndicator,
    NewWindow, Problem, Schedule, Secret, Timestamp, Weekday, WindowPatch, WorkspaceId,
};
use controlplane::store::StoreError;

use super::PAGE;
use crate::fixture::{Fixture, contract};

contract! {
    a_source_has_one_word_on_a_value_and_the_times_widen,
    an_import_is_kept_whole_or_not_at_all,
    indicators_end_by_their_time_and_the_surest_come_first,
    a_workspace_has_a_bounded_number_of_indicators,
    a_value_keeps_its_number_and_no_other_gets_it,
    feed_tokens_are_found_by_their_hash_until_they_are_revoked,
    windows_hold_for_their_node_and_go_with_it,
}

fn missing(problem: StoreError) -> bool {
    matches!(problem, StoreError::Problem(Problem::NotFound(_)))
}

fn stranger(fixture: &Fixture) -> WorkspaceId {
    WorkspaceId(fixture.ws.0 + 1)
}

fn new(fixture: &Fixture, value: &str, confidence: f64) -> NewIndicator {
    NewIndicator {
        value: IndicatorValue::parse(value).unwrap(),
        confidence,
        source: "s".to_owned(),
        description: "d".to_owned(),
        first_seen: fixture.now,
        last_seen: fixture.now,
        expires_at: fixture.now.plus_secs(100),
    }
}

async fn a_source_has_one_word_on_a_value_and_the_times_widen(fixture: Fixture) {
    let store = &fixture.store;
    let first = new(&fixture, "198.51.100.7", 0.7);
    let imported = store.import_indicators(fixture.ws, std::slice::from_ref(&first), fixture.fact()).await.unwrap();
    assert_eq!((imported.created, imported.updated), (1, 0));
    let (early, late) = (fixture.now.plus_secs(-50), fixture.now.plus_secs(-10));
    let second = NewIndicator {
        confidence: 0.29,
        description: String::new(),
        first_seen: early,
        last_seen: late,
        expires_at: fixture.now.plus_secs(50),
        ..first.clone()
    };
    let other = NewIndicator { source: "t".to_owned(), ..first };
    let imported = store.import_indicators(fixture.ws, &[second, other], fixture.fact()).await.unwrap();
    assert_eq!((imported.created, imported.updated), (1, 1));
    let kept = &imported.indicators[0];
    assert_eq!((kept.id, kept.confidence, kept.description.as_str()), (1, 0.29, ""));
    assert_eq!((kept.first_seen, kept.last_seen, kept.expires_at), (early, fixture.now, fixture.now.plus_secs(50)));

    let listed = async |filter: IndicatorFilter| {
        let listed = store.indicators(fixture.ws, &filter, PAGE).await.unwrap();
        assert_eq!(listed.total, listed.entries.len() as u64);
        listed.entries.iter().map(|i| i.source.clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed(IndicatorFilter::default()).await, ["t", "s"]);
    assert_eq!(listed(IndicatorFilter { min_confidence: Some(0.29), ..Default::default() }).await, ["t", "s"]);
    assert_eq!(listed(IndicatorFilter { min_confidence: Some(0.3), ..Default::default() }).await, ["t"]);
    assert_eq!(listed(IndicatorFilter { source: Some("s".to_owned()), ..Default::default() }).await, ["s"]);
    let value = IndicatorValue::parse("198.51.100.7/32");
    assert_eq!(listed(IndicatorFilter { value, ..Default::default() }).await, ["t", "s"]);
    let strange = store.indicators(stranger(&fixture), &IndicatorFilter::default(), PAGE).await.unwrap();
    assert_eq!(strange.total, 0);
    assert!(store.delete_indicator(stranger(&fixture), 1, fixture.fact()).await.is_err_and(missing));
    store.delete_indicator(fixture.ws, 1, fixture.fact()).await.unwrap();
    assert!(store.delete_indicator(fixture.ws, 1, fixture.fact()).await.is_err_and(missing));
}

async fn an_import_is_kept_whole_or_not_at_all(fixture: Fixture) {
    let store = &fixture.store;
    let entry = NewAllowlistEntry::parse("198.51.100.0/28", "", AllowlistScope::Node, Some(fixture.node)).unwrap();
    store.allow(fixture.ws, entry, fixture.fact()).await.unwrap();
    let before = fixture.audited().await;
    let call = [new(&fixture, "198.51.100.99", 0.5), new(&fixture, "198.51.100.7", 0.5)];
    let refused = store.import_indicators(fixture.ws, &call, fixture.fact()).await;
    let Err(StoreError::Problem(Problem::Invalid(fields))) = refused else { panic!("{refused:?}") };
    assert_eq!(fields[0].field, "indicators[1].value");
    assert_eq!(store.indicators(fixture.ws, &IndicatorFilter::default(), PAGE).await.unwrap().total, 0);
    assert_eq!(fixture.audited().await, before);
    store.import_indicators(fixture.ws, &call[..1], fixture.fact()).await.unwrap();
    assert_eq!(fixture.audited().await, before + 1);
}

async fn indicators_end_by_their_time_and_the_surest_come_first(fixture: Fixture) {
    let store = &fixture.store;
    let at = |secs| fixture.now.plus_secs(secs);
    let indicators = [
        NewIndicator { last_seen: at(-20), first_seen: at(-20), ..new(&fixture, "198.51.100.1", 0.9) },
        NewIndicator { expires_at: at(10), ..new(&fixture, "198.51.100.2", 0.3) },
        new(&fixture, "198.51.100.3", 0.5),
        new(&fixture, "evil.example", 0.5),
    ];
    store.import_indicators(fixture.ws, &indicators, fixture.fact()).await.unwrap();
    let surest = async |since: Timestamp, now: Timestamp, most| {
        let surest = store.surest_indicators(fixture.ws, since, now, most).await.unwrap();
        surest.iter().map(|i| i.value.to_string()).collect::<Vec<_>>()
    };
    let all = ["198.51.100.1", "198.51.100.3", "evil.example", "198.51.100.2"];
    assert_eq!(surest(at(-20), fixture.now, 9).await, all);
    assert_eq!(surest(at(-19), fixture.now, 9).await, all[1..]);
    assert_eq!(surest(at(-20), at(9), 2).await, all[..2]);
    assert_eq!(surest(at(-20), at(10), 9).await, all[..3]);
    assert!(store.surest_indicators(stranger(&fixture), at(-20), fixture.now, 9).await.unwrap().is_empty());
    assert_eq!(store.forget_indicators(at(9)).await.unwrap(), 0);
    assert_eq!(store.forget_indicators(at(10)).await.unwrap(), 1);
    assert_eq!(store.forget_indicators(at(100)).await.unwrap(), 3);
}

async fn a_workspace_has_a_bounded_number_of_indicators(fixture: Fixture) {
    let many = format!(
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99999)
         INSERT INTO indicators (workspace_id, source, value, kind, confidence, description, first_seen, last_seen,
                                 expires_at, created_at, updated_at)
         SELECT {}, 's', 'n' || i || '.example', 'domain', 0.5, '', 0, 0, 9, 0, 0 FROM n",
        fixture.ws.0
    );
    fixture.raw(&many).await;
    let import = async |value: &str| {
        fixture.store.import_indicators(fixture.ws, &[new(&fixture, value, 0.5)], fixture.fact()).await
    };
    assert!(matches!(import("198.51.100.7").await, Err(StoreError::Problem(Problem::Invalid(_)))));
    assert_eq!(import("n0.example").await.unwrap().updated, 1, "one that is there can be replaced");
}

async fn a_value_keeps_its_number_and_no_other_gets_it(fixture: Fixture) {
    let store = &fixture.store;
    let values: Vec<String> = (0..1_200).map(|n| format!("198.18.{}.{}", n / 250, n % 250)).collect();
    let first = store.sids(fixture.ws, &values[..1_100], fixture.now).await.unwrap();
    assert_eq!(first.len(), 1_100);
    let distinct: std::collections::BTreeSet<_> = first.values().collect();
    assert_eq!((distinct.len(), **distinct.first().unwrap()), (1_100, 1));
    let later = fixture.now.plus_secs(100 * 86_400);
    let second = store.sids(fixture.ws, &values[500..], later).await.unwrap();
    assert!(values[500..1_100].iter().all(|v| first[v] == second[v]), "numbers stay");
    assert!(values[1_100..].iter().all(|v| !first.values().any(|n| *n == second[v])), "new numbers are new");
    assert_eq!(store.forget_sids(later.plus_secs(-1)).await.unwrap(), 500, "what the second feed had is used");
    let again = store.sids(fixture.ws, &values, later).await.unwrap();
    assert!(values[..500].iter().all(|v| again[v] > 1_200), "a number is never given again");
    assert!(store.sids(fixture.ws, &[], later).await.unwrap().is_empty());
    fixture.raw("INSERT INTO workspaces (name, created_at) VALUES ('other', 0)").await;
    let other = store.sids(stranger(&fixture), &values[..1], later).await.unwrap();
    assert_ne!(other[&values[0]], again[&values[0]]);
}

async fn feed_tokens_are_found_by_their_hash_until_they_are_revoked(fixture: Fixture) {
    let store = &fixture.store;
    let hash = |n| Secret::from_random([n; 32]).hash();
    let wanted = NewFeedToken { name: "ids".to_owned(), expires_at: Some(fixture.now.plus_secs(9)) };
    let before = fixture.audited().await;
    let token = store.create_feed_token(fixture.ws, &wanted, &hash(7), fixture.fact()).await.unwrap();
    assert_eq!((token.name.as_str(), token.expires_at), ("ids", wanted.expires_at));
    let found = store.feed_token_candidates(&hash(7)).await.unwrap();
    assert_eq!((found.len(), found[0].id, found[0].workspace), (1, token.id, fixture.ws));
    assert!(found[0].hash.matches(&hash(7)));
    assert!(store.feed_token_candidates(&hash(8)).await.unwrap().is_empty());
    assert!(store.token_candidates(&hash(7)).await.unwrap().is_empty(), "it is no deploy token");
    assert_eq!(store.feed_tokens(stranger(&fixture), PAGE).await.unwrap().total, 0);
    assert!(store.revoke_feed_token(stranger(&fixture), token.id, fixture.fact()).await.is_err_and(missing));
    for _ in 0..2 {
        let revoked = store.revoke_feed_token(fixture.ws, token.id, fixture.fact()).await.unwrap();
        assert_eq!(revoked.revoked_at, Some(fixture.now));
    }
    assert!(store.feed_token_candidates(&hash(7)).await.unwrap().is_empty());
    assert_eq!(fixture.audited().await, before + 3);
    for n in 0..100 {
        store.create_feed_token(fixture.ws, &wanted, &hash(100 + n), fixture.fact()).await.unwrap();
    }
    let refused = store.create_feed_token(fixture.ws, &wanted, &hash(9), fixture.fact()).await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))));
    assert_eq!(store.feed_tokens(fixture.ws, PAGE).await.unwrap().total, 101);
}

async fn windows_hold_for_their_node_and_go_with_it(fixture: Fixture) {
    let store = &fixture.store;
    let other = fixture.deploy("edge-2").await.unwrap();
    let window = |node, enabled| NewWindow {
        name: "patches".to_owned(),
        node,
        schedule: Schedule::Weekly { weekday: Weekday::Sunday, start: "23:30".to_owned(), minutes: 60 },
        enabled,
    };
    let mut ids = Vec::new();
    for new in [window(None, true), window(Some(fixture.node), true), window(Some(other), false)] {
        let made = store.create_window(fixture.ws, new.clone(), fixture.fact()).await.unwrap();
        assert_eq!((&made.schedule, made.node, made.enabled), (&new.schedule, new.node, new.enabled));
        assert_eq!(store.window(fixture.ws, made.id).await.unwrap(), made);
        ids.push(made.id);
    }
    let nobody = uuid::Uuid::from_u128(9);
    let refused = store.create_window(fixture.ws, window(Some(nobody), true), fixture.fact()).await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))));
    let listed = async |node| {
        let listed = store.windows(fixture.ws, node, PAGE).await.unwrap();
        assert_eq!(listed.total, listed.entries.len() as u64);
        listed.entries.iter().map(|w| w.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(None).await, [ids[2], ids[1], ids[0]]);
    assert_eq!(listed(Some(fixture.node)).await, [ids[1], ids[0]]);
    assert_eq!(store.all_windows(fixture.ws).await.unwrap().len(), 2, "those that are enabled");
    assert!(store.all_windows(stranger(&fixture)).await.unwrap().is_empty());
    assert!(store.window(stranger(&fixture), ids[0]).await.is_err_and(missing));
    assert!(store.delete_window(stranger(&fixture), ids[0], fixture.fact()).await.is_err_and(missing));

    let now = fixture.now;
    let patch = WindowPatch { enabled: Some(true), name: Some("updates".to_owned()), schedule: None };
    let changed = store
        .edit_window(
            fixture.ws,
            ids[2],
            Box::new(move |w: &MaintenanceWindow| patch.applied_to(w, now)),
            fixture.fact(),
        )
        .await
        .unwrap();
    assert_eq!((changed.name.as_str(), changed.enabled, changed.node), ("updates", true, Some(other)));
    let before = fixture.audited().await;
    let wrong = WindowPatch { name: Some(String::new()), ..WindowPatch::default() };
    let refused = store
        .edit_window(
            fixture.ws,
            ids[2],
            Box::new(move |w: &MaintenanceWindow| wrong.applied_to(w, now)),
            fixture.fact(),
        )
        .await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))));
    assert_eq!(fixture.audited().await, before);
    store.delete_node(fixture.ws, other, fixture.fact()).await.unwrap();
    assert_eq!(listed(None).await, [ids[1], ids[0]]);
    store.delete_window(fixture.ws, ids[0], fixture.fact()).await.unwrap();
    assert_eq!(listed(None).await, [ids[1]]);
}
