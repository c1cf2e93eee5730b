//! Who did what to what, when, with what result: an append-only chain of hashes.
//!
//! ```text
//! hash(n) = SHA-256(hash(n-1) · seq · at · actor · action · object · result · detail)      hash(0) = 32 zero bytes
//! ```
//! Every part is preceded by its length, so that no two records give the same bytes. An edited record breaks its own
//! hash, a removed one the sequence, and a cut-off tail the head that the database keeps apart.

use sha2::{Digest, Sha256};

use super::operator::hex;
use super::{Actor, Timestamp};

/// The hash before the first record.
pub const GENESIS: [u8; 32] = [0; 32];

/// Something worth a record, before the database gave it its place in the chain.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    pub at: Timestamp,
    pub actor: String,
    /// Such as `rule.create`.
    pub action: &'static str,
    /// Kind and id, such as `rule/7`.
    pub object: String,
    /// `ok`, `refused` or `failed`.
    pub result: &'static str,
    pub detail: serde_json::Value,
}

impl Fact {
    /// A successful `action` of `actor` on `object`.
    pub fn new(at: Timestamp, actor: &Actor, action: &'static str, object: impl Into<String>) -> Self {
        let actor = actor.to_string();
        Self { at, actor, action, object: object.into(), result: "ok", detail: serde_json::Value::Null }
    }

    /// With what was asked for; secrets must not be in it.
    pub fn with(mut self, detail: impl serde::Serialize) -> Self {
        self.detail = serde_json::to_value(detail).expect("wire types have string keys and always serialise");
        self
    }

    /// With another result than `ok`.
    pub fn result(mut self, result: &'static str) -> Self {
        self.result = result;
        self
    }

    /// For an object whose id the database just gave.
    pub fn on(mut self, id: impl std::fmt::Display) -> Self {
        self.object = format!("{}/{id}", self.object);
        self
    }

    /// The record that follows `previous` in the chain.
    pub fn chained(self, seq: i64, previous: [u8; 32]) -> AuditRecord {
        let mut record = AuditRecord {
            seq,
            at: self.at,
            actor: self.actor,
            action: self.action.to_owned(),
            object: self.object,
            result: self.result.to_owned(),
            detail: self.detail.to_string(),
            hash: GENESIS,
        };
        record.hash = record.hash_after(&previous);
        record
    }
}

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// From 1, without gaps, per workspace.
    pub seq: i64,
    pub at: Timestamp,
    pub actor: String,
    pub action: String,
    pub object: String,
    pub result: String,
    /// JSON text, exactly as hashed.
    pub detail: String,
    pub hash: [u8; 32],
}

impl AuditRecord {
    fn hash_after(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(previous);
        hasher.update(self.seq.to_be_bytes());
        hasher.update(self.at.micros().to_be_bytes());
        for part in [&self.actor, &self.action, &self.object, &self.result, &self.detail] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().into()
    }

    /// The hash as text.
    pub fn hash_hex(&self) -> String {
        hex(&self.hash)
    }
}

/// Where the chain breaks, and how.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
pub struct Broken {
    /// The first record that does not follow from the one before it.
    pub seq: i64,
    pub reason: String,
}

/// Walks the chain record by record.
#[derive(Clone, Debug)]
pub struct Verifier {
    seq: i64,
    hash: [u8; 32],
}

impl Default for Verifier {
    fn default() -> Self {
        Self { seq: 0, hash: GENESIS }
    }
}

impl Verifier {
    /// Takes the next record.
    ///
    /// # Errors
    /// The record is not the one that follows.
    pub fn observe(&mut self, record: &AuditRecord) -> Result<(), Broken> {
        let expected = self.seq + 1;
        if record.seq != expected {
            return Err(Broken { seq: expected, reason: format!("missing: record {} follows", record.seq) });
        }
        if record.hash_after(&self.hash) != record.hash {
            return Err(Broken { seq: expected, reason: "its hash does not cover its content".to_owned() });
        }
        self.seq = expected;
        self.hash = record.hash;
        Ok(())
    }

    /// How many records were taken.
    pub const fn seq(&self) -> i64 {
        self.seq
    }

    /// The last record's hash as text.
    pub fn hash_hex(&self) -> String {
        hex(&self.hash)
    }

    /// Compares with the head that the database keeps apart from the records.
    ///
    /// # Errors
    /// The tail is missing or was replaced.
    pub fn finish(&self, head_seq: i64, head_hash: [u8; 32]) -> Result<(), Broken> {
        if self.seq == head_seq && self.hash == head_hash {
            return Ok(());
        }
        Err(Broken { seq: self.seq + 1, reason: format!("the chain should end with record {head_seq}") })
    }
}

/// Which records are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    pub action: Option<String>,
    pub actor: Option<String>,
    pub object: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: i64) -> Vec<AuditRecord> {
        let mut previous = GENESIS;
        (1..=n)
            .map(|seq| {
                let fact = Fact {
                    at: Timestamp::from_secs(seq),
                    actor: "system".to_owned(),
                    action: "rule.create",
                    object: format!("rule/{seq}"),
                    result: "ok",
                    detail: serde_json::json!({"seq": seq}),
                };
                let record = fact.chained(seq, previous);
                previous = record.hash;
                record
            })
            .collect()
    }

    fn walk(records: &[AuditRecord], head: &AuditRecord) -> Result<(), Broken> {
        let mut verifier = Verifier::default();
        records.iter().try_for_each(|r| verifier.observe(r))?;
        verifier.finish(head.seq, head.hash)
    }

    #[test]
    fn an_untouched_chain_verifies() {
        let records = chain(5);
        assert_eq!(walk(&records, &records[4]), Ok(()));
    }

    #[test]
    fn an_edit_a_gap_a_swap_and_a_cut_show() {
        let good = chain(5);
        let head = good[4].clone();
        let mut edited = good.clone();
        edited[2].actor = "someone else".to_owned();
        let mut gap = good.clone();
        gap.remove(1);
        let mut swapped = good.clone();
        swapped.swap(1, 2);
        let cut = good[..4].to_vec();
        let mut moved = good.clone();
        // The border between two parts moves, the bytes stay the same.
        moved[3].actor = "systemr".to_owned();
        moved[3].action = "ule.create".to_owned();
        for (name, records, seq) in
            [("edit", edited, 3), ("gap", gap, 2), ("swap", swapped, 2), ("cut", cut, 5), ("border", moved, 4)]
        {
            assert_eq!(walk(&records, &head).map_err(|b| b.seq), Err(seq), "{name}");
        }
    }
}
