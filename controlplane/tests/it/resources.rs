//! What every store must keep of single resources: the rest of the contract, run on each database.

use std::collections::BTreeSet;

use controlplane::domain::{
    AllowlistScope, AuditFilter, Fingerprint, IncidentFilter, NewAllowlistEntry, NewRule, NewThreshold, NewToken,
    NodePatch, OperatorChange, Page, Problem, Role, RuleScope, Secret, Subscription, WorkspacePatch,
};
use controlplane::store::sql::SqlStore;
use controlplane::store::{Agents as _, Changed, Look, NewRoot, StoreError, Wanted};
use ftagent_common::api::Order;
use ftagent_common::vocab::{IncidentStatus, Severity};
use serde_json::json;
use uuid::Uuid;

use crate::fixture::{Fixture, contract};
use crate::support::{UUID, report};

contract! {
    a_workspace_is_changed_and_its_nodes_hear_of_it,
    a_rule_that_moves_is_new_for_the_nodes_of_both_scopes,
    an_entry_for_a_node_is_its_own,
    what_was_read_for_nodes_is_read_again_after_every_change,
    a_look_at_what_nodes_share_misses_nothing_of_their_own,
    thresholds_are_replaced_by_target_and_pages_do_not_overlap,
    an_incident_is_found_changed_noted_and_exported,
    executions_are_kept_once_with_their_record,
    records_are_filtered_and_nobodys_words_are_patterns,
    text_of_any_kind_comes_back,
}

const ALL: Page = Page { limit: 100, offset: 0 };

fn rule(name: &str, scope: RuleScope) -> NewRule {
    NewRule {
        name: name.to_owned(),
        trigger: serde_json::from_str(r#"{"type":"any"}"#).unwrap(),
        action: serde_json::from_str(r#"{"type":"xdp_drop_source"}"#).unwrap(),
        scope,
        cooldown_minutes: 5,
        enabled: true,
    }
}

fn missing(problem: StoreError) -> bool {
    matches!(problem, StoreError::Problem(Problem::NotFound(_)))
}

async fn a_workspace_is_changed_and_its_nodes_hear_of_it(fixture: Fixture) {
    let store = &fixture.store;
    let named = WorkspacePatch { name: Some("edge".to_owned()), detection: None };
    let (workspace, changed) = store.patch_workspace(fixture.ws, named, fixture.fact()).await.unwrap();
    assert_eq!((workspace.name.as_str(), changed), ("edge", Changed::none()), "a name is nothing to nodes");
    let detection = serde_json::from_value(json!({ "multiplier": 4.0 })).unwrap();
    let other = WorkspacePatch { name: None, detection: Some(detection) };
    let (workspace, changed) = store.patch_workspace(fixture.ws, other, fixture.fact()).await.unwrap();
    assert_eq!((workspace.name.as_str(), changed), ("edge", Changed::Shared(fixture.ws)));
    let config = store.node_config(fixture.node).await.unwrap();
    assert_eq!((config.version, &config.detection), (2, &workspace.detection));
    let known = store.node_key(fixture.node, None).await.unwrap().unwrap().known;
    assert_eq!(known.subscription, Subscription::Active);
    store.subscribe(fixture.ws, Subscription::Inactive, fixture.fact()).await.unwrap();
    assert_eq!(store.workspace(fixture.ws).await.unwrap().subscription, Subscription::Inactive);
    let new =
        NewToken { name: "t".to_owned(), role: Role::Analyst, rate_limit: Some(7), expires_at: Some(fixture.now) };
    let hash = Secret::from_random([9; 32]).hash();
    let token = store.create_token(fixture.ws, new, &hash, fixture.fact()).await.unwrap();
    assert_eq!((token.rate_limit, token.expires_at), (Some(7), Some(fixture.now)));
    let listed = store.tokens(fixture.ws, Page { limit: 1, offset: 0 }).await.unwrap();
    assert_eq!((listed.total, listed.entries[0].id), (2, token.id), "newest first");
    assert_eq!(store.token_candidates(&hash).await.unwrap()[0].subscription, Subscription::Inactive);
    let patch = NodePatch { location: Some("here".to_owned()), ..NodePatch::default() };
    let node = store.patch_node(fixture.ws, fixture.node, patch, fixture.now, fixture.fact()).await.unwrap();
    assert_eq!((node.location.as_str(), node.name.as_str()), ("here", "edge-1"));
    fixture.deploy("edge-2").await.unwrap();
    let taken = NodePatch { name: Some("edge-2".to_owned()), ..NodePatch::default() };
    let taken = store.patch_node(fixture.ws, fixture.node, taken, fixture.now, fixture.fact()).await;
    assert!(matches!(taken, Err(StoreError::Problem(Problem::AlreadyExists(_)))));
    assert_eq!(store.all_nodes(fixture.now).await.unwrap().len(), 2);
    fixture.audited().await;
}

async fn a_rule_that_moves_is_new_for_the_nodes_of_both_scopes(fixture: Fixture) {
    let store = &fixture.store;
    let (second, third) = (fixture.deploy("edge-2").await.unwrap(), fixture.deploy("edge-3").await.unwrap());
    let only = |node| RuleScope::Nodes { nodes: BTreeSet::from([node]) };
    let (made, changed) = store.create_rule(fixture.ws, rule("r", only(fixture.node)), fixture.fact()).await.unwrap();
    assert_eq!(changed, Changed::Nodes(vec![fixture.node]));
    let moved = Box::new(move |old: &controlplane::domain::Rule| {
        Ok(NewRule { enabled: old.enabled, ..rule("r", only(second)) })
    });
    let (rule_now, changed) = store.edit_rule(fixture.ws, made.id, moved, fixture.fact()).await.unwrap();
    assert_eq!(changed, Changed::Nodes(BTreeSet::from([fixture.node, second]).into_iter().collect()));
    assert_eq!(store.rule(fixture.ws, made.id).await.unwrap(), rule_now);
    let rules_of = async |node| store.node_config(node).await.unwrap().rules.len();
    assert_eq!((rules_of(fixture.node).await, rules_of(second).await, rules_of(third).await), (0, 1, 0));
    let stranger = store.create_rule(fixture.ws, rule("s", only(Uuid::from_u128(5))), fixture.fact()).await;
    assert!(matches!(stranger, Err(StoreError::Problem(Problem::Invalid(_)))));
    let refused = Box::new(|_: &controlplane::domain::Rule| Err(Problem::field("name", "no")));
    assert!(store.edit_rule(fixture.ws, made.id, refused, fixture.fact()).await.is_err());
    let off = Box::new(move |_: &controlplane::domain::Rule| Ok(NewRule { enabled: false, ..rule("r", only(second)) }));
    assert_eq!(
        store.edit_rule(fixture.ws, made.id, off, fixture.fact()).await.unwrap().1,
        Changed::Nodes(vec![second])
    );
    assert!(store.delete_rule(fixture.ws, made.id, fixture.fact()).await.unwrap().is_empty(), "it was off");
    assert!(store.rule(fixture.ws, made.id).await.is_err_and(missing));
    assert_eq!(store.rules(fixture.ws, ALL).await.unwrap().total, 0);
    assert_eq!(store.config_version(third).await.unwrap(), 1);
    fixture.audited().await;
}

async fn an_entry_for_a_node_is_its_own(fixture: Fixture) {
    let store = &fixture.store;
    let other = fixture.deploy("edge-2").await.unwrap();
    let entry = |prefix: &str, node: Option<Uuid>| {
        let scope = if node.is_some() { AllowlistScope::Node } else { AllowlistScope::Workspace };
        NewAllowlistEntry::parse(prefix, "ours", scope, node).unwrap()
    };
    let allow = async |new| store.allow(fixture.ws, new, fixture.fact()).await;
    let (everywhere, changed) = allow(entry("198.51.100.0/24", None)).await.unwrap();
    assert_eq!(changed, Changed::Shared(fixture.ws));
    let (here, changed) = allow(entry("2001:db8::/32", Some(fixture.node))).await.unwrap();
    assert_eq!(changed, Changed::Nodes(vec![fixture.node]));
    allow(entry("198.51.100.0/24", Some(fixture.node))).await.unwrap();
    let again = allow(entry("198.51.100.0/24", None)).await;
    assert!(matches!(again, Err(StoreError::Problem(Problem::AlreadyExists(_)))));
    let seen = async |node| store.allowlist(fixture.ws, node, ALL).await.unwrap().total;
    assert_eq!((seen(None).await, seen(Some(fixture.node)).await, seen(Some(other)).await), (3, 3, 1));
    assert_eq!(store.all_allowed(fixture.ws).await.unwrap()[0], everywhere);
    assert_eq!(store.node_config(other).await.unwrap().allowlist.len(), 1);
    assert_eq!(store.disallow(fixture.ws, here.id, fixture.fact()).await.unwrap(), Changed::Nodes(vec![fixture.node]));
    store.delete_node(fixture.ws, fixture.node, fixture.fact()).await.unwrap();
    assert_eq!(seen(None).await, 1, "a node's entries go with it");
    assert!(store.disallow(fixture.ws, here.id, fixture.fact()).await.is_err_and(missing));
    fixture.audited().await;
}

/// Two processes keep what they read, and one of them changes it.
async fn what_was_read_for_nodes_is_read_again_after_every_change(fixture: Fixture) {
    let (ws, other) = (fixture.ws, fixture.deploy("edge-2").await.unwrap());
    let second = SqlStore::attach(&fixture.database).await.unwrap();
    let store = &fixture.store;
    let step = std::cell::Cell::new(0);
    // What both say must be what a process says that has read nothing yet, and another thing than before.
    let compare = async |changed: &[Uuid]| {
        step.set(step.get() + 1);
        let fresh = SqlStore::attach(&fixture.database).await.unwrap();
        for node in [fixture.node, other] {
            let expected = fresh.node_config(node).await.unwrap();
            assert_eq!(store.node_config(node).await.unwrap(), expected, "step {}", step.get());
            let known = Look { node, config: Wanted::Unless(expected.version), commands_after: None, seen: None };
            assert!(second.look(known).await.unwrap().config.is_none(), "step {}", step.get());
            let before = Look { node, config: Wanted::Unless(expected.version - 1), commands_after: None, seen: None };
            assert_eq!(second.look(before).await.unwrap().config.unwrap().to_wire(), expected, "step {}", step.get());
        }
        let configs = [store.node_config(fixture.node).await.unwrap(), store.node_config(other).await.unwrap()];
        (configs, changed.to_vec())
    };
    let mut last = compare(&[]).await.0;
    let mut check = async |changed: &[Uuid]| {
        let (now, changed) = compare(changed).await;
        for (node, (now, last)) in [fixture.node, other].iter().zip(now.iter().zip(&last)) {
            assert_eq!(now != last, changed.contains(node), "step {}: {node}", step.get());
        }
        last = now;
    };
    let (one, both) = ([fixture.node], [fixture.node, other]);
    let only = RuleScope::Nodes { nodes: BTreeSet::from(one) };
    let everywhere = store.create_rule(ws, rule("everywhere", RuleScope::All {}), fixture.fact()).await.unwrap().0;
    check(&both).await;
    let here = store.create_rule(ws, rule("here", only.clone()), fixture.fact()).await.unwrap().0;
    check(&one).await;
    let wider = Box::new(|_: &controlplane::domain::Rule| Ok(rule("here", RuleScope::All {})));
    store.edit_rule(ws, here.id, wider, fixture.fact()).await.unwrap();
    check(&both).await;
    let off = Box::new(|_: &controlplane::domain::Rule| {
        Ok(NewRule { enabled: false, ..rule("everywhere", RuleScope::All {}) })
    });
    store.edit_rule(ws, everywhere.id, off, fixture.fact()).await.unwrap();
    check(&both).await;
    store.delete_rule(ws, here.id, fixture.fact()).await.unwrap();
    check(&both).await;
    let entry = |scope, node| NewAllowlistEntry::parse("198.51.100.0/24", "ours", scope, node).unwrap();
    let mine = store.allow(ws, entry(AllowlistScope::Node, Some(fixture.node)), fixture.fact()).await.unwrap().0;
    check(&one).await;
    let ours = store.allow(ws, entry(AllowlistScope::Workspace, None), fixture.fact()).await.unwrap().0;
    check(&both).await;
    store.disallow(ws, mine.id, fixture.fact()).await.unwrap();
    check(&one).await;
    store.disallow(ws, ours.id, fixture.fact()).await.unwrap();
    check(&both).await;
    let new = NewThreshold::parse("192.0.2.1", "", [("pps".to_owned(), 7)].into_iter().collect()).unwrap();
    let threshold = store.save_threshold(ws, new, fixture.fact()).await.unwrap().0;
    check(&both).await;
    store.delete_threshold(ws, threshold.id, fixture.fact()).await.unwrap();
    check(&both).await;
    let detection = serde_json::from_value(json!({ "multiplier": 4.0 })).unwrap();
    let patch = WorkspacePatch { name: None, detection: Some(detection) };
    store.patch_workspace(ws, patch, fixture.fact()).await.unwrap();
    check(&both).await;
    store.add_root(ws, &root(&fixture), fixture.fact()).await.unwrap();
    check(&both).await;
    store.ask_to_renew(ws, Some(fixture.node), fixture.fact()).await.unwrap();
    check(&one).await;
    store.ask_to_renew(ws, None, fixture.fact()).await.unwrap();
    check(&both).await;
}

/// A stream hears of a change for all nodes before it hears of one of its node's own, which was committed first.
async fn a_look_at_what_nodes_share_misses_nothing_of_their_own(fixture: Fixture) {
    let (store, ws, node) = (&fixture.store, fixture.ws, fixture.node);
    let look = async |version, seen| {
        let question = Look { node, config: Wanted::Unless(version), commands_after: None, seen };
        store.look(question).await.unwrap()
    };
    store.add_root(ws, &root(&fixture), fixture.fact()).await.unwrap();
    let first = look(u64::MAX, None).await;
    let (mut version, mut seen, mut has) = (first.version, first.seen, first.config.unwrap().to_wire());
    let entry = |prefix: &str, scope, node| NewAllowlistEntry::parse(prefix, "ours", scope, node).unwrap();
    for n in 0..4 {
        match n {
            0 => {}
            1 => drop(store.ask_to_renew(ws, None, fixture.fact()).await.unwrap()),
            2 => drop(store.ask_to_renew(ws, Some(node), fixture.fact()).await.unwrap()),
            _ => {
                let own = entry("192.0.2.0/24", AllowlistScope::Node, Some(node));
                store.allow(ws, own, fixture.fact()).await.unwrap();
            }
        }
        let all = entry(&format!("198.51.100.{n}/32"), AllowlistScope::Workspace, None);
        assert_eq!(store.allow(ws, all, fixture.fact()).await.unwrap().1, Changed::Shared(ws));
        let shared = look(version, Some(seen)).await;
        let config = shared.config.expect("another version, for all").to_wire();
        assert_eq!((config.version, config.allowlist.len() > has.allowlist.len()), (shared.version, true), "step {n}");
        let own = look(shared.version, None).await;
        let now = own.config.map_or(config, |config| config.to_wire());
        assert_eq!(now, store.node_config(node).await.unwrap(), "step {n}");
        assert_eq!(own.version > shared.version, n > 0, "step {n}: what is a node's own advances its own version");
        (version, seen, has) = (own.version, own.seen, now);
    }
    // Of two streams of one node, the one that knows more decides.
    let (old, new) = tokio::join!(look(version, Some(first.seen)), look(version, Some(seen)));
    assert_eq!((new.version, new.config.is_none()), (version, true));
    assert!(old.version <= version);
}

fn root(fixture: &Fixture) -> NewRoot {
    NewRoot {
        name: "root".to_owned(),
        certificate: vec![1; 8],
        fingerprint: Fingerprint([1; 32]),
        sealed_key: vec![1],
        not_after: fixture.now.plus_secs(1_000_000),
    }
}

async fn thresholds_are_replaced_by_target_and_pages_do_not_overlap(fixture: Fixture) {
    let store = &fixture.store;
    let save = async |target: &str, pps: u64| {
        let new = NewThreshold::parse(target, "", [("pps".to_owned(), pps)].into_iter().collect()).unwrap();
        store.save_threshold(fixture.ws, new, fixture.fact()).await.unwrap()
    };
    let (first, changed) = save("192.0.2.1", 1).await;
    assert_eq!(changed, Changed::Shared(fixture.ws));
    assert_eq!(save("192.0.2.1", 2).await.0.id, first.id);
    for n in 2..=5 {
        save(&format!("192.0.2.{n}"), 1).await;
    }
    let mut seen = Vec::new();
    for offset in [0, 2, 4, 6] {
        let page = store.thresholds(fixture.ws, Page { limit: 2, offset }).await.unwrap();
        assert_eq!(page.total, 5);
        seen.extend(page.entries.iter().map(|t| t.target_ip.to_string()));
    }
    assert_eq!(seen, ["192.0.2.5/32", "192.0.2.4/32", "192.0.2.3/32", "192.0.2.2/32", "192.0.2.1/32"]);
    assert_eq!(
        store.delete_threshold(fixture.ws, first.id, fixture.fact()).await.unwrap(),
        Changed::Shared(fixture.ws)
    );
    assert!(store.delete_threshold(fixture.ws, first.id, fixture.fact()).await.is_err_and(missing));
    assert_eq!(store.node_config(fixture.node).await.unwrap().thresholds.len(), 4);
}

async fn an_incident_is_found_changed_noted_and_exported(fixture: Fixture) {
    let store = &fixture.store;
    let take = async |revision, status| {
        let report = serde_json::from_value(report(UUID, revision, status)).unwrap();
        store.record(fixture.node, report, fixture.now).await.unwrap()
    };
    assert!(take(2, "active").await.opened);
    assert!(!take(1, "active").await.applied, "an older report changes nothing");
    assert!(take(3, "active").await.applied);
    let id = store.find(fixture.ws, UUID).await.unwrap();
    for reference in [id.to_string(), format!("inc_{}", &UUID[..8]), format!("inc_{}", UUID[..8].to_uppercase())] {
        assert_eq!(store.find(fixture.ws, &reference).await.unwrap(), id, "{reference}");
    }
    assert!(store.find(fixture.ws, "inc_ffffffff").await.is_err_and(missing));
    let change = OperatorChange { status: Some(IncidentStatus::Resolved), severity: Some(Severity::Low) };
    let (changed, command) = store.change(fixture.ws, id, change, "somebody", fixture.fact()).await.unwrap();
    assert_eq!((changed.status(), changed.severity()), (IncidentStatus::Resolved, Severity::Low));
    let pending = store.pending_commands(fixture.node, 0).await.unwrap();
    assert_eq!(pending.iter().map(|(_, command)| command.clone()).collect::<Vec<_>>(), [command.unwrap()]);
    assert!(matches!(pending[0].1.order, Order::ResolveIncident { .. }));
    store.note(fixture.ws, id, "somebody", "seen", fixture.fact()).await.unwrap();
    let (kept, notes, _) = store.incident(fixture.ws, id).await.unwrap();
    assert_eq!((kept, notes.len()), (changed, 3), "two changes and a note");
    assert!(store.note(fixture.ws, id + 1, "somebody", "seen", fixture.fact()).await.is_err_and(missing));
    let filter = |severity| IncidentFilter {
        node: Some(fixture.node),
        severity: Some(severity),
        from: Some(fixture.now.plus_secs(-3_600)),
        to: Some(fixture.now),
        ..IncidentFilter::default()
    };
    let total = async |severity| store.incidents(fixture.ws, &filter(severity), ALL).await.unwrap().total;
    assert_eq!((total(Severity::Low).await, total(Severity::High).await), (1, 0), "an operator's word counts");
    assert_eq!(store.export(fixture.ws, &filter(Severity::Low), i64::MAX).await.unwrap().len(), 1);
    assert!(store.export(fixture.ws, &filter(Severity::Low), id).await.unwrap().is_empty());
    let other = fixture.deploy("edge-2").await.unwrap();
    let stolen = store.record(other, serde_json::from_value(report(UUID, 9, "active")).unwrap(), fixture.now).await;
    assert!(matches!(stolen, Err(StoreError::Problem(Problem::AlreadyExists(_)))));
    fixture.audited().await;
}

async fn executions_are_kept_once_with_their_record(fixture: Fixture) {
    let store = &fixture.store;
    let (made, _) = store.create_rule(fixture.ws, rule("r", RuleScope::All {}), fixture.fact()).await.unwrap();
    let execution = |n: u128, outcome: &str| {
        json!({
            "uuid": Uuid::from_u128(n), "rule_id": made.id, "incident": UUID, "action": { "type": "xdp_drop_source" },
            "outcome": outcome, "output": "ä".repeat(5_000), "at": "2026-05-12T14:29:01Z",
        })
    };
    let before = fixture.audited().await;
    for revision in 1..=3 {
        let mut body = report(UUID, revision, "active");
        body["executions"] = json!([execution(1, "applied"), execution(1, "undone"), execution(2, "failed")]);
        store.record(fixture.node, serde_json::from_value(body).unwrap(), fixture.now).await.unwrap();
    }
    assert_eq!(fixture.audited().await, before + 4, "the incident and three executions");
    let listed = store.executions(fixture.ws, made.id, ALL).await.unwrap();
    assert_eq!(listed.total, 3);
    assert!(listed.entries.iter().all(|e| e.node == fixture.node && e.execution.output.len() == 4_096));
    assert!(store.executions(fixture.ws, made.id + 1, ALL).await.is_err_and(missing));
}

async fn records_are_filtered_and_nobodys_words_are_patterns(fixture: Fixture) {
    let store = &fixture.store;
    for name in ["edge-2", "edge-3"] {
        fixture.deploy(name).await.unwrap();
    }
    let total = async |filter: AuditFilter| store.audit(fixture.ws, &filter, ALL).await.unwrap().total;
    let all = total(AuditFilter::default()).await;
    assert_eq!(all, 5, "a workspace, its token, three nodes");
    let word = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (AuditFilter { action: word("test"), ..AuditFilter::default() }, 3),
        (AuditFilter { actor: word("system"), ..AuditFilter::default() }, 5),
        (AuditFilter { actor: word("sys"), ..AuditFilter::default() }, 5),
        (AuditFilter { actor: word("stem"), ..AuditFilter::default() }, 0),
        (AuditFilter { actor: word("%"), ..AuditFilter::default() }, 0),
        (AuditFilter { actor: word("s_stem"), ..AuditFilter::default() }, 0),
        (AuditFilter { object: word("' OR ''='"), ..AuditFilter::default() }, 0),
        (AuditFilter { object: word("\0"), ..AuditFilter::default() }, 0),
        (AuditFilter { from: Some(fixture.now), to: Some(fixture.now.plus_secs(1)), ..AuditFilter::default() }, 5),
        (AuditFilter { to: Some(fixture.now), ..AuditFilter::default() }, 0),
    ] {
        assert_eq!(total(filter.clone()).await, expected, "{filter:?}");
    }
    let page = store.audit(fixture.ws, &AuditFilter::default(), Page { limit: 2, offset: 1 }).await.unwrap();
    assert_eq!(page.entries.iter().map(|r| r.seq).collect::<Vec<_>>(), [4, 3]);
}

async fn text_of_any_kind_comes_back(fixture: Fixture) {
    let store = &fixture.store;
    store.record(fixture.node, serde_json::from_value(report(UUID, 1, "active")).unwrap(), fixture.now).await.unwrap();
    for text in ["", "'; DROP TABLE nodes; --", "$1 ?2 \\", "\u{1f980} ä \u{202e}", &"x".repeat(100_000)] {
        let note = store.note(fixture.ws, 1, "somebody", text, fixture.fact()).await.unwrap();
        assert_eq!(note.text, text);
    }
    // PostgreSQL has no place for NUL: it is shown as what cannot be shown, and nothing fails.
    let note = store.note(fixture.ws, 1, "somebody", "a\0b", fixture.fact()).await.unwrap();
    assert_eq!(note.text, if fixture.is_postgres() { "a\u{fffd}b" } else { "a\0b" });
    let (_, notes, _) = store.incident(fixture.ws, 1).await.unwrap();
    assert_eq!(notes.len(), 6);
    fixture.audited().await;
}
