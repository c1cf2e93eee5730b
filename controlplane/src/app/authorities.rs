//! The built-in certificate authority: roots and their rotation, certificates of nodes, who is trusted.

use ftagent_common::api::{CertificateRequest, IssuedCertificate};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use uuid::Uuid;

use super::App;
use super::vault::Purpose;
use crate::domain::{
    Actor, ENROLL_SECS, Fingerprint, NodeCertificate, Problem, Root, RootState, Timestamp, hex, renew_after,
};
use crate::pki::{self, PkiError, PublicKey, Signer};
use crate::store::{NewCertificate, NewRoot, Result, StoreError};

/// A node that was silent for a day is not waited for: it gets roots and certificate when it is back.
const SEEN_SECS: i64 = 86_400;

/// The roots that are trusted now, and the newest change of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trusted {
    pub revision: (i64, i64),
    /// DER.
    pub roots: Vec<CertificateDer<'static>>,
    /// The root that signs.
    pub active: Option<Fingerprint>,
}

/// A certificate that the server made for itself.
pub struct ServerIdentity {
    pub certificate: CertificateDer<'static>,
    pub key: PrivateKeyDer<'static>,
    pub not_after: Timestamp,
    /// When it should make the next one.
    pub renew_at: Timestamp,
}

fn unmade(source: PkiError) -> StoreError {
    match source {
        PkiError::Random => {
            StoreError::Unavailable { reason: "the operating system gives no random numbers", source: Box::new(source) }
        }
        PkiError::Name(_) => Problem::field("tls_names", source.to_string()).into(),
        PkiError::Made(_) => StoreError::Unexpected { what: "a certificate", source: Box::new(source) },
    }
}

impl App {
    /// Makes the first root, which signs at once, or the next one, which nodes learn of first.
    async fn make_root(&self, actor: &Actor, action: &'static str) -> Result<(String, RootState)> {
        let made = pki::make_root(self.now()).map_err(unmade)?;
        let sealed_key = self.sending.vault().seal(Purpose::Authority, &made.key)?;
        let new = NewRoot {
            name: made.name.clone(),
            fingerprint: pki::fingerprint(&made.certificate),
            certificate: made.certificate.to_vec(),
            sealed_key,
            not_after: made.not_after,
        };
        let fact = self.fact(actor, action, "authority").with(json!({
            "name": new.name, "fingerprint": new.fingerprint.to_string(), "not_after": new.not_after,
        }));
        let (state, changed) = self.store.add_root(actor.workspace(), &new, fact).await?;
        self.wake(&changed);
        Ok((made.name, state))
    }

    /// Makes the authority.
    ///
    /// # Errors
    /// There is one.
    pub async fn init_authority(&self, actor: &Actor) -> Result<String> {
        if self.roots(actor).await?.iter().any(|root| root.state != RootState::Retired) {
            return Err(Problem::AlreadyExists("an authority".to_owned()).into());
        }
        Ok(self.make_root(actor, "ca.init").await?.0)
    }

    /// The first step of a rotation: a next root, which nodes learn of by their configuration.
    ///
    /// # Errors
    /// There is no authority, or a next root already.
    pub async fn rotate_authority(&self, actor: &Actor) -> Result<String> {
        if !self.roots(actor).await?.iter().any(|root| root.state == RootState::Active) {
            return Err(Problem::NotFound("authority: make it with `controlplane ca init`").into());
        }
        Ok(self.make_root(actor, "ca.rotate").await?.0)
    }

    /// The second step: the next root signs, and nodes renew their certificates.
    ///
    /// # Errors
    /// There is no next root; a node does not know it yet, unless `force`.
    pub async fn promote_authority(&self, actor: &Actor, force: bool) -> Result<()> {
        let seen = self.now().plus_secs(-SEEN_SECS);
        let fact = self.fact(actor, "ca.promote", "authority").with(json!({ "force": force }));
        let changed = self.store.promote_root(actor.workspace(), seen, force, fact).await?;
        self.wake(&changed);
        Ok(())
    }

    /// The last step: old roots are trusted no more.
    ///
    /// # Errors
    /// There is none; a node has no certificate of the new root yet, unless `force`.
    pub async fn retire_authority(&self, actor: &Actor, force: bool) -> Result<()> {
        let seen = self.now().plus_secs(-SEEN_SECS);
        let fact = self.fact(actor, "ca.retire", "authority").with(json!({ "force": force }));
        let changed = self.store.retire_roots(actor.workspace(), seen, force, fact).await?;
        self.wake(&changed);
        Ok(())
    }

    pub async fn roots(&self, actor: &Actor) -> Result<Vec<Root>> {
        self.store.roots(actor.workspace()).await
    }

    pub async fn certificates(&self, actor: &Actor) -> Result<Vec<NodeCertificate>> {
        self.store.certificates(actor.workspace()).await
    }

    /// Lets a node get a certificate with its key alone, for an hour.
    pub async fn let_enroll(&self, actor: &Actor, node: Uuid) -> Result<Timestamp> {
        let until = self.now().plus_secs(ENROLL_SECS);
        let fact = self.fact(actor, "certificate.allow", format!("node/{node}")).with(json!({ "until": until }));
        self.store.let_enroll(actor.workspace(), node, until, fact).await?;
        Ok(until)
    }

    /// Tells one node, or all, to renew now.
    pub async fn ask_to_renew(&self, actor: &Actor, node: Option<Uuid>) -> Result<()> {
        let object = node.map_or_else(|| "nodes".to_owned(), |node| format!("node/{node}"));
        let fact = self.fact(actor, "certificate.renew", object);
        let changed = self.store.ask_to_renew(actor.workspace(), node, fact).await?;
        self.wake(&changed);
        Ok(())
    }

    pub async fn revoke_certificate(&self, actor: &Actor, id: i64) -> Result<NodeCertificate> {
        let fact = self.fact(actor, "certificate.revoke", format!("certificate/{id}"));
        let revoked = self.store.revoke_certificate(actor.workspace(), id, fact).await?;
        self.pushes.wake(&[revoked.node]);
        Ok(revoked)
    }

    /// Revokes every certificate of a node; how many there were.
    pub async fn revoke_node(&self, actor: &Actor, node: Uuid) -> Result<u64> {
        let fact = self.fact(actor, "certificate.revoke", format!("node/{node}"));
        let revoked = self.store.revoke_node(actor.workspace(), node, fact).await?;
        self.pushes.wake(&[node]);
        Ok(revoked)
    }

    /// Signs a node's request; who may ask is decided before.
    pub async fn issue(&self, actor: &Actor, node: Uuid, request: &CertificateRequest) -> Result<IssuedCertificate> {
        let key = PublicKey::of(request)?;
        let roots = self.roots(actor).await?;
        let Some(active) = roots.iter().find(|root| root.state == RootState::Active) else {
            return Err(Problem::NotFound("certificate authority at this control plane").into());
        };
        let now = self.now();
        let made = self.signer(active)?.node(&key, node, now, self.node_certificate_secs).map_err(unmade)?;
        let new = NewCertificate {
            root: active.id,
            serial: made.serial.clone(),
            fingerprint: pki::fingerprint(&made.certificate),
            not_before: made.not_before,
            not_after: made.not_after,
        };
        let fact = self.fact(actor, "certificate.issue", "certificate").with(json!({
            "node": node, "serial": new.serial, "fingerprint": new.fingerprint.to_string(), "root": active.name,
            "not_after": new.not_after, "key": hex(key.bytes()),
        }));
        self.store.keep_certificate(node, &new, now.plus_secs(-86_400), fact).await?;
        Ok(IssuedCertificate {
            certificate: pki::pem(&made.certificate),
            serial: made.serial,
            issued_at: now.into(),
            renew_at: now.plus_secs(renew_after(self.node_certificate_secs)).into(),
            not_after: made.not_after.into(),
            roots: roots.iter().filter(|r| r.state.is_trusted()).map(|r| pki::pem(&r.certificate)).collect(),
        })
    }

    /// Who is trusted now, for the listeners.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn trusted(&self) -> Result<Trusted> {
        let revision = self.store.trust_revision().await?;
        let roots = self.store.trusted_roots().await?;
        let active = roots.iter().find(|root| root.state == RootState::Active).map(|root| root.fingerprint);
        Ok(Trusted {
            revision,
            roots: roots.into_iter().map(|r| CertificateDer::from(r.certificate)).collect(),
            active,
        })
    }

    /// The newest change of roots and revocations, cheaply.
    ///
    /// # Errors
    /// The database cannot answer.
    pub async fn trust_revision(&self) -> Result<(i64, i64)> {
        self.store.trust_revision().await
    }

    /// Streams look again whether they are admitted, and at their configuration: another process changed who is.
    pub fn look_at_streams(&self) {
        self.pushes.wake_all_here();
    }

    /// A certificate for this server, signed by the authority; none if there is none.
    ///
    /// # Errors
    /// A name that no certificate can have, a key sealed with another key, a database that cannot answer.
    pub async fn server_identity(&self, names: &[String]) -> Result<Option<ServerIdentity>> {
        let roots = self.store.trusted_roots().await?;
        let Some(active) = roots.iter().find(|root| root.state == RootState::Active) else { return Ok(None) };
        let now = self.now();
        let (made, key) = self.signer(active)?.server(names, now).map_err(unmade)?;
        let lifetime = made.not_after.secs_since(now);
        Ok(Some(ServerIdentity {
            certificate: made.certificate,
            key,
            not_after: made.not_after,
            renew_at: now.plus_secs(renew_after(lifetime)),
        }))
    }

    fn signer(&self, root: &Root) -> Result<Signer> {
        let opened = self.sending.vault().open::<Vec<u8>>(Purpose::Authority, &root.sealed_key);
        let key = opened.ok_or_else(|| StoreError::Unexpected {
            what: "the authority's key cannot be opened: secrets_key_file holds another key than where it was made",
            source: Box::new(std::io::Error::from(std::io::ErrorKind::InvalidData)),
        })?;
        Signer::new(&root.certificate, &key).map_err(unmade)
    }
}
