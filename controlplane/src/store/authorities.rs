//! The built-in certificate authority: the trait, and what goes in and out of it.

use async_trait::async_trait;
use ftagent_common::api::Trust;
use uuid::Uuid;

use super::{Changed, Known, Result};
use crate::domain::{CertificateStanding, Fact, Fingerprint, NodeCertificate, Root, RootState, Timestamp, WorkspaceId};

/// A node that is known, and what it may do about certificates.
#[derive(Clone, Debug)]
pub struct NodeAccess {
    pub known: Known,
    /// Of the certificate that was shown, if it is one of this node.
    pub standing: Option<CertificateStanding>,
    /// Until when it may get a certificate with its key alone.
    pub enroll_until: Option<Timestamp>,
}

/// A root to be kept.
#[derive(Clone, Debug)]
pub struct NewRoot {
    pub name: String,
    /// DER.
    pub certificate: Vec<u8>,
    pub fingerprint: Fingerprint,
    pub sealed_key: Vec<u8>,
    pub not_after: Timestamp,
}

/// A certificate to be noted.
#[derive(Clone, Debug)]
pub struct NewCertificate {
    pub root: i64,
    /// Hexadecimal.
    pub serial: String,
    pub fingerprint: Fingerprint,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

/// Roots and certificates.
#[async_trait]
pub trait Authorities {
    /// Another one when a root changes or a certificate is revoked.
    async fn trust_revision(&self) -> Result<(i64, i64)>;
    /// The roots of a workspace, newest first.
    async fn roots(&self, ws: WorkspaceId) -> Result<Vec<Root>>;
    /// The roots of every workspace that are trusted, newest first.
    async fn trusted_roots(&self) -> Result<Vec<Root>>;
    /// What the node should trust, if there are roots.
    async fn trust_of(&self, node: Uuid) -> Result<Option<Trust>>;
    /// Keeps the first root, which signs at once, or the next one, which nodes first have to learn of.
    async fn add_root(&self, ws: WorkspaceId, new: &NewRoot, fact: Fact) -> Result<(RootState, Changed)>;
    /// Makes the next root sign, and tells nodes to renew. Refuses while a node that was seen since `seen` does not know
    /// the root yet, unless `force`.
    async fn promote_root(&self, ws: WorkspaceId, seen: Timestamp, force: bool, fact: Fact) -> Result<Changed>;
    /// Ends the trust in every old root. Refuses while a node that was seen since `seen` has no certificate of another,
    /// unless `force`.
    async fn retire_roots(&self, ws: WorkspaceId, seen: Timestamp, force: bool, fact: Fact) -> Result<Changed>;
    /// Notes a certificate that is about to be handed out; `day` is when the day began whose certificates count.
    async fn keep_certificate(&self, node: Uuid, new: &NewCertificate, day: Timestamp, fact: Fact) -> Result<()>;
    /// Lets a node get a certificate with its key alone.
    async fn let_enroll(&self, ws: WorkspaceId, node: Uuid, until: Timestamp, fact: Fact) -> Result<()>;
    /// Tells one node, or all, that certificates issued before the fact are to be renewed.
    async fn ask_to_renew(&self, ws: WorkspaceId, node: Option<Uuid>, fact: Fact) -> Result<Changed>;
    /// The certificates of a workspace that hold or held, newest first, at most 10,000.
    async fn certificates(&self, ws: WorkspaceId) -> Result<Vec<NodeCertificate>>;
    async fn revoke_certificate(&self, ws: WorkspaceId, id: i64, fact: Fact) -> Result<NodeCertificate>;
    /// Revokes every certificate of a node that holds, and ends its leave to enrol; how many there were.
    async fn revoke_node(&self, ws: WorkspaceId, node: Uuid, fact: Fact) -> Result<u64>;
    /// Forgets certificates that ended before `before`.
    async fn forget_certificates(&self, before: Timestamp) -> Result<u64>;
}
