//! Attack profiles on nodes, on each backend.

use controlplane::domain::{Application, ApplicationStatus, Fact, NewApplication, Problem, ProfileId, Verdict};
use controlplane::store::StoreError;
use ftagent_common::api::{AckStatus, CommandAck, NodeCommand, Order, ProfileReport, ProfileState, Suite};
use uuid::Uuid;

use super::PAGE;
use crate::fixture::{Fixture, contract};

contract! {
    a_profile_is_tried_confirmed_and_taken_back,
    a_call_reaches_every_node_or_none,
    what_nobody_confirms_lapses_and_makes_room,
    of_two_verdicts_at_once_one_counts,
    what_a_node_does_by_itself_counts,
}

fn new(nodes: &[Uuid]) -> NewApplication {
    let ids: Vec<_> = nodes.iter().map(ToString::to_string).collect();
    NewApplication::parse(ProfileId::Saas, Suite::Nftables, &ids, vec![], 60).unwrap()
}

fn all() -> NewApplication {
    NewApplication::parse(ProfileId::Router, Suite::Ufw, &["all".to_owned()], vec![], 60).unwrap()
}

async fn orders(fixture: &Fixture, node: Uuid) -> Vec<NodeCommand> {
    fixture.store.pending_commands(node, 0).await.unwrap().into_iter().map(|(_, command)| command).collect()
}

/// The node's word on its only order.
async fn acknowledge(fixture: &Fixture, node: Uuid, status: AckStatus, error: &str) -> Order {
    let mut pending = orders(fixture, node).await;
    assert_eq!(pending.len(), 1);
    let NodeCommand { command_id, order } = pending.remove(0);
    let ack = CommandAck { command_id, status, error: error.to_owned(), output: String::new() };
    fixture.store.acknowledge(node, &ack, fixture.fact()).await.unwrap();
    order
}

async fn status(fixture: &Fixture, id: i64) -> ApplicationStatus {
    fixture.store.application(fixture.ws, id, fixture.now).await.unwrap().status
}

async fn decide(fixture: &Fixture, id: i64, verdict: Verdict) -> Result<Application, StoreError> {
    fixture.store.decide_application(fixture.ws, id, verdict, fixture.fact()).await
}

fn is_taken<T>(done: Result<T, StoreError>) -> bool {
    matches!(done, Err(StoreError::Problem(Problem::AlreadyExists(_))))
}

async fn a_profile_is_tried_confirmed_and_taken_back(fixture: Fixture) {
    let before = fixture.audited().await;
    let made = fixture.store.apply_profile(fixture.ws, &new(&[fixture.node]), fixture.fact()).await.unwrap();
    assert_eq!((made.len(), made[0].status), (1, ApplicationStatus::Pending));
    assert_eq!(fixture.audited().await, before + 1);
    assert!(is_taken(decide(&fixture, 1, Verdict::Confirm).await), "nothing is in force yet");
    let order = acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    let Order::ApplyProfile { application, suite, rules, confirm_secs, .. } = order else { panic!("{order:?}") };
    assert_eq!((application, suite, confirm_secs), (made[0].uuid, Suite::Nftables, 60));
    assert_eq!(rules, ProfileId::Saas.profile().rules);
    assert_eq!(status(&fixture, 1).await, ApplicationStatus::Trial);

    assert_eq!(decide(&fixture, 1, Verdict::Confirm).await.unwrap().status, ApplicationStatus::Confirming);
    assert!(is_taken(decide(&fixture, 1, Verdict::Confirm).await));
    let order = acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    assert_eq!(order, Order::ConfirmProfile { application });
    assert_eq!(status(&fixture, 1).await, ApplicationStatus::Confirmed);
    let again = fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await;
    assert!(is_taken(again), "a node has one profile at a time");

    assert_eq!(decide(&fixture, 1, Verdict::RollBack).await.unwrap().status, ApplicationStatus::RollingBack);
    let order = acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    assert_eq!(order, Order::RollBackProfile { application });
    assert_eq!(status(&fixture, 1).await, ApplicationStatus::RolledBack);
    assert!(is_taken(decide(&fixture, 1, Verdict::RollBack).await));

    fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap();
    acknowledge(&fixture, fixture.node, AckStatus::Failed, "unsupported").await;
    let failed = fixture.store.application(fixture.ws, 2, fixture.now).await.unwrap();
    assert_eq!((failed.status, failed.error.as_str()), (ApplicationStatus::Failed, "unsupported"));
    let listed = fixture.store.applications(fixture.ws, Some(fixture.node), PAGE, fixture.now).await.unwrap();
    assert_eq!(listed.entries.iter().map(|a| a.id).collect::<Vec<_>>(), [2, 1]);
    let stranger = controlplane::domain::WorkspaceId(fixture.ws.0 + 1);
    assert!(fixture.store.application(stranger, 1, fixture.now).await.is_err());
    assert_eq!(fixture.store.applications(stranger, None, PAGE, fixture.now).await.unwrap().total, 0);
}

async fn a_call_reaches_every_node_or_none(fixture: Fixture) {
    let second = fixture.deploy("edge-2").await.unwrap();
    let unknown = new(&[fixture.node, Uuid::from_u128(7)]);
    let refused = fixture.store.apply_profile(fixture.ws, &unknown, fixture.fact()).await;
    assert!(matches!(refused, Err(StoreError::Problem(Problem::Invalid(_)))), "{refused:?}");
    fixture.store.apply_profile(fixture.ws, &new(&[second]), fixture.fact()).await.unwrap();
    assert!(is_taken(fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await));
    assert!(orders(&fixture, fixture.node).await.is_empty());
    decide(&fixture, 1, Verdict::RollBack).await.unwrap();
    assert_eq!(orders(&fixture, second).await.len(), 2, "in order: applied, then taken back");
    for command in orders(&fixture, second).await {
        let ack = CommandAck {
            command_id: command.command_id,
            status: AckStatus::Applied,
            error: String::new(),
            output: String::new(),
        };
        fixture.store.acknowledge(second, &ack, fixture.fact()).await.unwrap();
    }
    let made = fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap();
    assert_eq!(made.len(), 2);
}

async fn what_nobody_confirms_lapses_and_makes_room(fixture: Fixture) {
    fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap();
    acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    let late = Fact { at: fixture.now.plus_secs(60), ..fixture.fact() };
    let seen = fixture.store.application(fixture.ws, 1, late.at).await.unwrap();
    assert_eq!(seen.status, ApplicationStatus::Lapsed);
    assert!(is_taken(fixture.store.decide_application(fixture.ws, 1, Verdict::Confirm, late.clone()).await));
    assert_eq!(fixture.store.apply_profile(fixture.ws, &all(), late).await.unwrap()[0].id, 2);

    // What nobody acknowledged for a day is given up.
    fixture.store.expire_commands(fixture.now.plus_secs(61)).await.unwrap();
    let lost = fixture.store.application(fixture.ws, 2, fixture.now).await.unwrap();
    assert_eq!((lost.status, lost.error.as_str()), (ApplicationStatus::Failed, "the node did not answer within a day"));
}

async fn of_two_verdicts_at_once_one_counts(fixture: Fixture) {
    fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap();
    acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    let (first, second) = tokio::join!(decide(&fixture, 1, Verdict::Confirm), decide(&fixture, 1, Verdict::Confirm));
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|ok| **ok).count(), 1);
    assert_eq!(orders(&fixture, fixture.node).await.len(), 1);
}

async fn what_a_node_does_by_itself_counts(fixture: Fixture) {
    let made = fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap();
    acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    let report = |state, reason: &str| ProfileReport { application: made[0].uuid, state, reason: reason.to_owned() };
    let before = fixture.audited().await;
    let confirmed = report(ProfileState::Confirmed, "an operator confirmed it at the node");
    assert!(fixture.store.note_profile(fixture.node, &confirmed, fixture.fact()).await.unwrap());
    assert!(!fixture.store.note_profile(fixture.node, &confirmed, fixture.fact()).await.unwrap(), "twice is once");
    assert_eq!(fixture.audited().await, before + 1);
    // Long after the time to confirm it.
    let late = fixture.now.plus_secs(9_000);
    let seen = fixture.store.application(fixture.ws, 1, late).await.unwrap();
    assert_eq!(seen.status, ApplicationStatus::Confirmed);
    assert!(is_taken(fixture.store.apply_profile(fixture.ws, &all(), Fact { at: late, ..fixture.fact() }).await));

    let gone = report(ProfileState::RolledBack, "rolled back: an operator took it back at the node");
    assert!(fixture.store.note_profile(fixture.node, &gone, fixture.fact()).await.unwrap());
    let seen = fixture.store.application(fixture.ws, 1, fixture.now).await.unwrap();
    assert_eq!((seen.status, seen.error.as_str()), (ApplicationStatus::RolledBack, gone.reason.as_str()));
    assert!(is_taken(decide(&fixture, 1, Verdict::RollBack).await));
    assert_eq!(fixture.store.apply_profile(fixture.ws, &all(), fixture.fact()).await.unwrap()[0].id, 2);

    // Sooner than by the control plane's own clock, and with the reason.
    let second = fixture.store.application(fixture.ws, 2, fixture.now).await.unwrap();
    acknowledge(&fixture, fixture.node, AckStatus::Applied, "").await;
    let lapsed = ProfileReport { application: second.uuid, ..report(ProfileState::Lapsed, "lapsed: it was stopped") };
    let stranger = fixture.deploy("edge-2").await.unwrap();
    assert!(fixture.store.note_profile(stranger, &lapsed, fixture.fact()).await.is_err(), "it is not that node's");
    assert!(fixture.store.note_profile(fixture.node, &lapsed, fixture.fact()).await.unwrap());
    let seen = fixture.store.application(fixture.ws, 2, fixture.now).await.unwrap();
    assert_eq!((seen.status, seen.error.as_str()), (ApplicationStatus::Lapsed, "lapsed: it was stopped"));
}
