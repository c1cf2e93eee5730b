//! Staged rules, on each backend.

use controlplane::domain::{
    AllowlistScope, Decision, DestinationKind, Duty, NewAllowlistEntry, NewWindow, Problem, Schedule, Setting,
    Settings, StagedStatus,
};
use controlplane::store::{Draft, Recorded, StoreError};
use ftagent_common::api::{AckStatus, CommandAck, IncidentReport, Order};
use ftagent_common::vocab::Severity;

use super::PAGE;
use crate::fixture::{Fixture, contract};
use crate::support::{UUID, report};

contract! {
    a_staged_rule_is_decided_on_once_and_shows_what_became_of_it,
    of_two_decisions_at_once_one_counts,
    staged_rules_end_with_their_time_and_with_their_incident,
    new_sources_are_staged_after_the_answer_and_never_twice,
    an_integration_that_asks_nobody_orders_at_once_unless_a_window_is_open,
}

async fn integrate(fixture: &Fixture, settings: Settings) -> i64 {
    let draft = Draft {
        kind: DestinationKind::Iptables,
        name: "iptables".to_owned(),
        enabled: true,
        min_severity: Severity::High,
        settings,
        secret_names: Default::default(),
        sealed: Vec::new(),
    };
    fixture.store.create_destination(fixture.ws, Duty::Integration, draft, fixture.fact()).await.unwrap().id
}

fn sourced(revision: u32, status: &str, sources: &[&str]) -> IncidentReport {
    let mut body = report(UUID, revision, status);
    body["top_sources"] = sources.iter().map(|ip| serde_json::json!({ "ip": ip, "pps": 1, "share": 0.1 })).collect();
    serde_json::from_value(body).unwrap()
}

async fn record(fixture: &Fixture, report: IncidentReport) -> Recorded {
    fixture.store.record(fixture.node, report, fixture.now).await.unwrap()
}

fn is_taken(fault: &StoreError) -> bool {
    matches!(fault, StoreError::Problem(Problem::AlreadyExists(_)))
}

async fn orders(fixture: &Fixture) -> Vec<ftagent_common::api::NodeCommand> {
    let pending = fixture.store.pending_commands(fixture.node, 0).await.unwrap();
    pending.into_iter().map(|(_, command)| command).collect()
}

async fn a_staged_rule_is_decided_on_once_and_shows_what_became_of_it(fixture: Fixture) {
    let integration = integrate(&fixture, Settings::new()).await;
    let recorded = record(&fixture, sourced(1, "active", &["198.51.100.7", "2001:db8::7"])).await;
    assert_eq!((recorded.staged, recorded.ordered), (1, false));
    let staged = fixture.store.staged_rule(fixture.ws, 1).await.unwrap();
    assert_eq!((staged.status, staged.integration, staged.node), (StagedStatus::Pending, integration, fixture.node));
    assert_eq!(staged.expires_at, fixture.now.plus_secs(3_600));
    assert_eq!(staged.preview.do_.len(), 2);
    assert!(orders(&fixture).await.is_empty());

    let before = fixture.audited().await;
    let decide = |decision| fixture.store.decide_staged(fixture.ws, 1, decision, "token/1", fixture.fact());
    let approved = decide(Decision::Approve).await.unwrap();
    assert_eq!((approved.status, approved.decided_by.as_str()), (StagedStatus::Approved, "token/1"));
    let ordered = orders(&fixture).await;
    assert_eq!(ordered.len(), 1);
    assert_eq!(Some(ordered[0].command_id), approved.command_id);
    let expected =
        Order::Apply { action: staged.action, incident: UUID.parse().unwrap(), undo_at_resolve: true, ttl_secs: 3_600 };
    assert_eq!(ordered[0].order, expected);
    assert_eq!(fixture.audited().await, before + 1);
    for decision in [Decision::Approve, Decision::Reject] {
        assert!(decide(decision).await.is_err_and(|e| is_taken(&e)));
    }
    assert_eq!(fixture.audited().await, before + 1, "a refused decision leaves no trace");
    assert_eq!(orders(&fixture).await.len(), 1);

    let ack = CommandAck {
        command_id: ordered[0].command_id,
        status: AckStatus::Failed,
        error: "unsupported".to_owned(),
        output: String::new(),
    };
    fixture.store.acknowledge(fixture.node, &ack, fixture.fact()).await.unwrap();
    let failed = fixture.store.staged_rule(fixture.ws, 1).await.unwrap();
    assert_eq!((failed.status, failed.error.as_str()), (StagedStatus::Failed, "unsupported"));
    let list = async |status| fixture.store.staged_rules(fixture.ws, status, None, PAGE).await.unwrap();
    assert_eq!(list(Some(StagedStatus::Failed)).await.entries, [failed]);
    assert_eq!(list(Some(StagedStatus::Approved)).await.total, 0);
    let other = controlplane::domain::WorkspaceId(fixture.ws.0 + 1);
    assert!(fixture.store.staged_rule(other, 1).await.is_err());
    assert_eq!(fixture.store.staged_rules(other, None, None, PAGE).await.unwrap().total, 0);
}

async fn of_two_decisions_at_once_one_counts(fixture: Fixture) {
    integrate(&fixture, Settings::new()).await;
    record(&fixture, sourced(1, "active", &["198.51.100.7"])).await;
    let decide = |decision| fixture.store.decide_staged(fixture.ws, 1, decision, "somebody", fixture.fact());
    let all = tokio::join!(
        decide(Decision::Approve),
        decide(Decision::Approve),
        decide(Decision::Reject),
        decide(Decision::Approve)
    );
    let all = [all.0, all.1, all.2, all.3];
    assert_eq!(all.iter().filter(|d| d.is_ok()).count(), 1, "{all:?}");
    assert_eq!(all.iter().filter(|d| d.as_ref().is_err_and(is_taken)).count(), 3, "{all:?}");
    let approved = all.iter().flatten().any(|rule| rule.status == StagedStatus::Approved);
    assert_eq!(orders(&fixture).await.len(), usize::from(approved));
}

async fn staged_rules_end_with_their_time_and_with_their_incident(fixture: Fixture) {
    let settings = Settings::from([("approve_within_minutes".to_owned(), Setting::Number(1))]);
    integrate(&fixture, settings).await;
    record(&fixture, sourced(1, "active", &["198.51.100.7"])).await;
    let late = fixture.now.plus_secs(60);
    let fact = controlplane::domain::Fact { at: late, ..fixture.fact() };
    let refused = fixture.store.decide_staged(fixture.ws, 1, Decision::Approve, "late", fact).await;
    assert!(refused.is_err_and(|e| is_taken(&e)), "it ended, though no job has noticed yet");
    assert_eq!(fixture.store.expire_staged(late.plus_secs(-1)).await.unwrap(), 0);
    let before = fixture.audited().await;
    assert_eq!(fixture.store.expire_staged(late).await.unwrap(), 1);
    assert_eq!(fixture.store.expire_staged(late).await.unwrap(), 0);
    assert_eq!(fixture.audited().await, before + 1);
    let ended = fixture.store.staged_rule(fixture.ws, 1).await.unwrap();
    assert_eq!((ended.status, ended.reason.as_str()), (StagedStatus::Expired, "nobody decided in time"));

    record(&fixture, sourced(2, "active", &["198.51.100.8"])).await;
    assert_eq!(fixture.store.staged_rule(fixture.ws, 2).await.unwrap().status, StagedStatus::Pending);
    let recorded = record(&fixture, sourced(3, "resolved", &["198.51.100.8"])).await;
    assert_eq!(recorded.staged, 1);
    let ended = fixture.store.staged_rule(fixture.ws, 2).await.unwrap();
    assert_eq!((ended.status, ended.reason.as_str()), (StagedStatus::Expired, "the incident ended"));
    let decided = fixture.store.decide_staged(fixture.ws, 2, Decision::Approve, "late", fixture.fact()).await;
    assert!(decided.is_err_and(|e| is_taken(&e)));
}

async fn new_sources_are_staged_after_the_answer_and_never_twice(fixture: Fixture) {
    integrate(&fixture, Settings::new()).await;
    let named = |rule: &controlplane::domain::StagedRule| {
        rule.action.sources().unwrap_or_default().iter().map(|s| s.addr().to_string()).collect::<Vec<_>>()
    };
    record(&fixture, sourced(1, "active", &["198.51.100.7"])).await;
    assert_eq!(record(&fixture, sourced(2, "active", &["198.51.100.7", "198.51.100.8"])).await.staged, 0);
    fixture.store.decide_staged(fixture.ws, 1, Decision::Reject, "me", fixture.fact()).await.unwrap();
    assert_eq!(record(&fixture, sourced(2, "active", &["198.51.100.9"])).await.staged, 0, "an old revision");
    let office = NewAllowlistEntry::parse("203.0.113.9", "office", AllowlistScope::Workspace, None).unwrap();
    fixture.store.allow(fixture.ws, office, fixture.fact()).await.unwrap();
    record(&fixture, sourced(3, "active", &["198.51.100.7", "198.51.100.8", "203.0.113.9"])).await;
    assert_eq!(named(&fixture.store.staged_rule(fixture.ws, 2).await.unwrap()), ["198.51.100.8"]);

    // What was allowed since is not blocked by an approval.
    let late = NewAllowlistEntry::parse("198.51.100.8", "partner", AllowlistScope::Workspace, None).unwrap();
    fixture.store.allow(fixture.ws, late, fixture.fact()).await.unwrap();
    let refused = fixture.store.decide_staged(fixture.ws, 2, Decision::Approve, "me", fixture.fact()).await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))), "{refused:?}");
    fixture.store.decide_staged(fixture.ws, 2, Decision::Reject, "me", fixture.fact()).await.unwrap();

    let mut forged = sourced(4, "active", &["198.51.100.10"]);
    forged.spoofed = true;
    assert_eq!(record(&fixture, forged).await.staged, 0);
    for revision in 5..40 {
        record(&fixture, sourced(revision, "active", &[&format!("198.51.100.{}", 100 + revision)])).await;
        let total = fixture.store.staged_rules(fixture.ws, None, None, PAGE).await.unwrap().total;
        let last = i64::try_from(total).unwrap();
        fixture.store.decide_staged(fixture.ws, last, Decision::Reject, "me", fixture.fact()).await.ok();
    }
    assert_eq!(fixture.store.staged_rules(fixture.ws, None, None, PAGE).await.unwrap().total, 8, "bounded");
}

async fn an_integration_that_asks_nobody_orders_at_once_unless_a_window_is_open(fixture: Fixture) {
    let settings = Settings::from([("auto_apply".to_owned(), Setting::Flag(true))]);
    integrate(&fixture, settings).await;
    let recorded = record(&fixture, sourced(1, "active", &["198.51.100.7"])).await;
    assert_eq!((recorded.staged, recorded.ordered), (1, true));
    let staged = fixture.store.staged_rule(fixture.ws, 1).await.unwrap();
    assert_eq!((staged.status, staged.decided_by.as_str()), (StagedStatus::Approved, "auto_apply"));
    assert_eq!(orders(&fixture).await.len(), 1);
    assert_eq!(record(&fixture, sourced(1, "active", &["198.51.100.7"])).await.staged, 0, "a repeated report");
    assert_eq!(orders(&fixture).await.len(), 1);

    let schedule = Schedule::Once { starts_at: fixture.now.plus_secs(-60), minutes: 60 };
    let window = NewWindow { name: "patches".to_owned(), node: None, schedule, enabled: true };
    fixture.store.create_window(fixture.ws, window, fixture.fact()).await.unwrap();
    let recorded = record(&fixture, sourced(2, "active", &["198.51.100.8"])).await;
    assert_eq!((recorded.staged, recorded.ordered), (1, false), "it waits for an operator");
    assert_eq!(orders(&fixture).await.len(), 1);
}
