//! Destinations and what is to be delivered to them: the trait, and what goes in and out of it.
//!
//! Messages about incidents are not written here but with the incident, in its transaction ([`super::Incidents`]).

use std::collections::BTreeSet;

use async_trait::async_trait;
use ftagent_common::vocab::Severity;
use uuid::Uuid;

use super::Result;
use crate::domain::{
    Attempt, Delivery, Destination, DestinationKind, Duty, Fact, Health, Listed, Page, Settings, Timestamp, WorkspaceId,
};

/// A destination to be kept.
#[derive(Clone, Debug)]
pub struct Draft {
    pub kind: DestinationKind,
    pub name: String,
    pub enabled: bool,
    pub min_severity: Severity,
    pub settings: Settings,
    pub secret_names: BTreeSet<String>,
    /// The secrets; the store cannot read them.
    pub sealed: Vec<u8>,
}

/// A destination with its sealed secrets.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub destination: Destination,
    pub sealed: Vec<u8>,
}

/// What to make of a destination.
pub type DestinationEdit<'a> = Box<dyn FnOnce(&Sealed) -> Result<Draft> + Send + 'a>;

/// A sample that was sent.
#[derive(Clone, Debug)]
pub struct TestMade {
    pub uuid: Uuid,
    pub body: String,
    pub sent_at: Timestamp,
    pub attempt: Attempt,
}

/// A delivery that is due.
#[derive(Clone, Debug)]
pub struct Waiting {
    pub id: i64,
    pub uuid: Uuid,
    pub event: String,
    pub body: String,
    /// Tries so far.
    pub attempts: u32,
    pub created_at: Timestamp,
}

/// A destination that is ours to send to until the claim ends, and what is due: one delivery of each incident.
#[derive(Clone, Debug)]
pub struct Claimed {
    pub id: i64,
    pub lease: Uuid,
    pub kind: DestinationKind,
    pub settings: Settings,
    pub sealed: Vec<u8>,
    pub health: Health,
    pub waiting: Vec<Waiting>,
}

/// What became of one delivery.
#[derive(Clone, Debug)]
pub struct Settled {
    pub id: i64,
    pub attempt: Attempt,
    /// When it is tried again, if it failed and is not given up.
    pub next_at: Option<Timestamp>,
}

/// Destinations and the outbox.
#[async_trait]
pub trait Outbox {
    async fn destinations(
        &self,
        ws: WorkspaceId,
        duty: Duty,
        page: Page,
        now: Timestamp,
    ) -> Result<Listed<Destination>>;
    async fn destination(&self, ws: WorkspaceId, duty: Duty, id: i64, now: Timestamp) -> Result<Sealed>;
    async fn create_destination(&self, ws: WorkspaceId, duty: Duty, new: Draft, fact: Fact) -> Result<Destination>;
    /// Replaces the destination by what `edit` makes of it, read and written in one transaction. What was known of its
    /// health is forgotten: it is tried again at once.
    async fn edit_destination(
        &self,
        ws: WorkspaceId,
        duty: Duty,
        id: i64,
        edit: DestinationEdit<'_>,
        fact: Fact,
    ) -> Result<Destination>;
    /// Deletes the destination with what waits for it and its history.
    async fn delete_destination(&self, ws: WorkspaceId, duty: Duty, id: i64, fact: Fact) -> Result<()>;
    async fn deliveries(&self, ws: WorkspaceId, duty: Duty, id: i64, page: Page) -> Result<Listed<Delivery>>;
    /// Keeps a sample in the history. One that was taken closes the circuit.
    async fn keep_test(&self, ws: WorkspaceId, duty: Duty, id: i64, test: TestMade, fact: Fact) -> Result<Delivery>;
    /// Claims up to `most` destinations that something is due for and nobody sends to, with up to `width` deliveries
    /// each, until `until`.
    async fn claim_deliveries(&self, most: u32, width: u32, now: Timestamp, until: Timestamp) -> Result<Vec<Claimed>>;
    /// Keeps what became of claimed deliveries, and gives the destination free. Where the claim had ended, only
    /// successes count: another process tries the rest.
    async fn settle(&self, claimed: &Claimed, settled: &[Settled], health: Health, now: Timestamp) -> Result<()>;
    /// Gives up what waits since before `waiting_since`; forgets what ended before `ended_before`, and the oldest of
    /// what ended beyond `most` for each destination.
    async fn prune_deliveries(
        &self,
        waiting_since: Timestamp,
        ended_before: Timestamp,
        most: i64,
        now: Timestamp,
    ) -> Result<u64>;
}
