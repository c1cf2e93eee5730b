//! Who calls: tokens with roles, node keys, and the secrets behind them.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp, WorkspaceId};

/// What a token may do; a later word includes the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything but the audit records and the tokens.
    Readonly,
    /// Also acknowledges, notes and resolves incidents.
    Analyst,
    /// Also changes nodes, rules, allowlist and thresholds, deploys nodes and reads the audit records.
    Admin,
    /// Also changes the workspace and its tokens.
    Owner,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Readonly, Self::Analyst, Self::Admin, Self::Owner];

    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Readonly => "readonly",
            Self::Analyst => "analyst",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }

    /// The role with this spelling.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == word)
    }
}

/// A token's or node key's value: 32 random bytes, shown once as 64 hex characters, never logged.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The secret made of `bytes`, which must come from the operating system's generator.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(hex(&bytes))
    }

    /// Reads a presented credential; anything but 64 hex characters cannot be one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let valid = text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        valid.then(|| Self(text.to_ascii_lowercase()))
    }

    /// The value, for the one answer that shows it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored instead of the value.
    pub fn hash(&self) -> SecretHash {
        SecretHash(Sha256::digest(self.0.as_bytes()).into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// SHA-256 of a secret; enough for values of 256 random bits. Compared in constant time.
#[derive(Clone, Copy, Debug)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The eight bytes by which the database finds candidates; the rest is compared here, in constant time.
    pub fn lookup(&self) -> &[u8] {
        &self.0[..8]
    }

    /// Whether both are the hash of the same secret.
    pub fn matches(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// A deploy token without its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Token {
    pub id: i64,
    pub name: String,
    pub role: Role,
    /// Requests a minute; the workspace's limit if absent.
    pub rate_limit: Option<u32>,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

/// A token to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewToken {
    pub name: String,
    pub role: Role,
    pub rate_limit: Option<u32>,
    pub expires_at: Option<Timestamp>,
}

impl NewToken {
    /// # Errors
    /// A name of other than 1 to 128 characters, a limit of other than 1 to 1,000,000 a minute, an end in the past.
    pub fn check(self, now: Timestamp) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        check.that(self.rate_limit.is_none_or(|l| (1..=1_000_000).contains(&l)), "rate_limit", || {
            "must be 1 to 1000000 requests a minute".to_owned()
        });
        check.that(self.expires_at.is_none_or(|at| at > now), "expires_at", || "must be in the future".to_owned());
        check.done().map(|()| self)
    }
}

/// Who does something: shown in audit records, and the owner of rate limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    Token {
        id: i64,
        name: String,
        role: Role,
        workspace: WorkspaceId,
        rate_limit: Option<u32>,
    },
    Node {
        uuid: Uuid,
        workspace: WorkspaceId,
    },
    /// The server's own jobs and its command line.
    System {
        workspace: WorkspaceId,
    },
}

impl Actor {
    pub const fn workspace(&self) -> WorkspaceId {
        match self {
            Self::Token { workspace, .. } | Self::Node { workspace, .. } | Self::System { workspace } => *workspace,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token { id, name, role, .. } => write!(f, "token/{id} {name} ({})", role.as_str()),
            Self::Node { uuid, .. } => write!(f, "node/{uuid}"),
            Self::System { .. } => f.write_str("system"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_hex_characters_can_be_a_secret() {
        let good = "0123456789abcdef".repeat(4);
        assert!(Secret::parse(&good).is_some());
        for bad in ["", "abc", &good[1..], &format!("{good}0"), &good.replace('0', "g"), &good.replace('0', "é")] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_secret_is_known_by_its_hash_and_never_printed() {
        let secret = Secret::from_random([7; 32]);
        let again = Secret::parse(&secret.reveal().to_uppercase()).expect("64 hex characters");
        assert!(secret.hash().matches(&again.hash()));
        assert!(!secret.hash().matches(&Secret::from_random([8; 32]).hash()));
        assert!(!format!("{secret:?}").contains("0707"));
    }

    #[test]
    fn a_higher_role_includes_the_lower_ones() {
        assert!(Role::Owner > Role::Admin && Role::Admin > Role::Analyst && Role::Analyst > Role::Readonly);
        for role in Role::ALL {
            assert_eq!(Role::from_word(role.as_str()), Some(role));
        }
    }
}
