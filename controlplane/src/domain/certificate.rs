//! The built-in certificate authority: roots, certificates of nodes, and who is let in with which.
//!
//! ```text
//! root:   next ----promote----> active ----promote of another----> old ----retire----> retired
//!         trusted               trusted, signs                     trusted              not trusted
//! ```
//! Nodes are told of a root while it is `next`, long before anything signed by it is shown to them: so that no moment
//! of a rotation has a certificate that somebody does not trust yet, or a root that somebody still needs.

use serde::Serialize;
use uuid::Uuid;

use super::Timestamp;
use super::operator::hex;

/// How long a certificate of a node holds, unless configured otherwise: 90 days.
pub const NODE_SECS: i64 = 90 * 86_400;
/// How long a certificate holds that the server makes for itself: 30 days.
pub const SERVER_SECS: i64 = 30 * 86_400;
/// How long a root holds: ten years.
pub const ROOT_SECS: i64 = 3_650 * 86_400;
/// Certificates begin a day before they are made: clocks of nodes are wrong by hours.
pub const BACKDATE_SECS: i64 = 86_400;
/// How long a new node may get its first certificate with its key alone: an hour.
pub const ENROLL_SECS: i64 = 3_600;
/// Certificates that a node may get within a day.
pub const CERTIFICATES_A_DAY: u32 = 20;
/// Roots of a workspace that are trusted at a time.
pub const TRUSTED_ROOTS: usize = 4;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl std::fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// What a root is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RootState {
    /// Trusted, and nodes learn of it; it signs nothing yet.
    Next,
    /// Signs.
    Active,
    /// Trusted, and signs no more.
    Old,
    /// Not trusted.
    Retired,
}

impl RootState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Old => "old",
            Self::Retired => "retired",
        }
    }

    /// Whether certificates of the root are accepted.
    pub const fn is_trusted(self) -> bool {
        !matches!(self, Self::Retired)
    }
}

impl std::str::FromStr for RootState {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Next, Self::Active, Self::Old, Self::Retired].into_iter().find(|s| s.as_str() == word).ok_or(())
    }
}

/// A root of the built-in authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    pub id: i64,
    pub name: String,
    pub state: RootState,
    /// DER.
    pub certificate: Vec<u8>,
    pub fingerprint: Fingerprint,
    /// Its private key, sealed.
    pub sealed_key: Vec<u8>,
    pub created_at: Timestamp,
    pub not_after: Timestamp,
}

/// A certificate that a node got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCertificate {
    pub id: i64,
    pub node: Uuid,
    pub node_name: String,
    pub root: String,
    pub root_state: RootState,
    /// Hexadecimal.
    pub serial: String,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    pub issued_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// Seconds after which a certificate that holds for `lifetime` is to be replaced: a third of its life is left for tries.
pub const fn renew_after(lifetime: i64) -> i64 {
    lifetime / 3 * 2
}

/// What is known of a certificate that a caller showed, if it is one of the node that the caller says to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub not_after: Timestamp,
    pub revoked: bool,
    pub root: RootState,
}

/// Why a caller is not let in with, or without, a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    #[error(
        "this control plane requires a client certificate of the node: let it enrol with `controlplane ca issue NODE`"
    )]
    Missing,
    #[error("the client certificate is not one of this node: it belongs to another, or its node was deleted")]
    NotThisNodes,
    #[error("the client certificate is revoked")]
    Revoked,
    #[error("the client certificate has expired")]
    Expired,
    #[error("the client certificate is of an authority that was retired: renew it")]
    Retired,
}

/// Whether a node may come in: `shown` if it showed a certificate, `standing` what is known of that as this node's.
pub fn admit(required: bool, shown: bool, standing: Option<Standing>, now: Timestamp) -> Result<(), NotAdmitted> {
    match (shown, standing) {
        (false, _) if required => Err(NotAdmitted::Missing),
        (false, _) => Ok(()),
        // A certificate that is shown has to be right, required or not.
        (true, None) => Err(NotAdmitted::NotThisNodes),
        (true, Some(standing)) if standing.revoked => Err(NotAdmitted::Revoked),
        (true, Some(standing)) if standing.not_after <= now => Err(NotAdmitted::Expired),
        (true, Some(standing)) if !standing.root.is_trusted() => Err(NotAdmitted::Retired),
        (true, Some(_)) => Ok(()),
    }
}

/// Whether a node may get a certificate: by one that holds, or with its key alone where none is required or an operator
/// lets it until `enroll_until`.
pub fn may_enroll(
    required: bool,
    shown: bool,
    standing: Option<Standing>,
    enroll_until: Option<Timestamp>,
    now: Timestamp,
) -> Result<(), NotAdmitted> {
    let open = enroll_until.is_some_and(|until| now < until);
    admit(required && !open, shown, standing, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000;

    fn standing(revoked: bool, ends: i64, root: RootState) -> Standing {
        Standing { not_after: Timestamp::from_secs(ends), revoked, root }
    }

    #[test]
    fn a_certificate_that_is_shown_must_be_right_and_one_that_is_required_must_be_shown() {
        use NotAdmitted::{Expired, Missing, NotThisNodes, Retired, Revoked};
        use RootState::{Active, Next, Old, Retired as Gone};
        let good = standing(false, NOW + 1, Active);
        let table = [
            ("none, not required", false, false, None, None),
            ("none, required", true, false, None, Some(Missing)),
            ("of the node", true, true, Some(good), None),
            ("of the node, not required", false, true, Some(good), None),
            ("of another node", true, true, None, Some(NotThisNodes)),
            ("of another node, not required", false, true, None, Some(NotThisNodes)),
            ("revoked", false, true, Some(standing(true, NOW + 1, Active)), Some(Revoked)),
            ("at its end", false, true, Some(standing(false, NOW, Active)), Some(Expired)),
            ("of the next root", true, true, Some(standing(false, NOW + 1, Next)), None),
            ("of the old root", true, true, Some(standing(false, NOW + 1, Old)), None),
            ("of a retired root", false, true, Some(standing(false, NOW + 1, Gone)), Some(Retired)),
        ];
        for (name, required, shown, standing, expected) in table {
            let got = admit(required, shown, standing, Timestamp::from_secs(NOW)).err();
            assert_eq!(got, expected, "{name}");
        }
    }

    #[test]
    fn a_key_alone_gets_a_certificate_only_while_it_may() {
        let may = |required, until: Option<i64>| {
            let until = until.map(Timestamp::from_secs);
            may_enroll(required, false, None, until, Timestamp::from_secs(NOW)).is_ok()
        };
        assert!(may(false, None) && may(true, Some(NOW + 1)));
        assert!(!may(true, None) && !may(true, Some(NOW)));
        // A wrong certificate is no key alone.
        let revoked = Some(standing(true, NOW + 1, RootState::Active));
        let refused = may_enroll(true, true, revoked, Some(Timestamp::from_secs(NOW + 9)), Timestamp::from_secs(NOW));
        assert_eq!(refused, Err(NotAdmitted::Revoked));
    }

    #[test]
    fn a_third_of_its_life_is_left_when_a_certificate_is_renewed() {
        assert_eq!(renew_after(NODE_SECS), 60 * 86_400);
    }
}
