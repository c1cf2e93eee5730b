//! What a request with an `Idempotency-Key` has done, kept in the transaction that does it.
//!
//! The answer to a request is kept after its change was committed. A process that dies between the two leaves a change
//! without an answer, and the same request again must not do it twice: so the change itself leaves a mark.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Key;

tokio::task_local! {
    static INTENT: Intent;
}

/// The request that is being answered.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Who asks, as in the claim of the key.
    pub actor: String,
    pub key: Key,
    marked: Arc<AtomicBool>,
}

impl Intent {
    pub fn new(actor: String, key: Key) -> Self {
        Self { actor, key, marked: Arc::default() }
    }

    /// Whether this is the request's first change: one mark is enough.
    pub(super) fn is_first(&self) -> bool {
        !self.marked.swap(true, Ordering::Relaxed)
    }
}

/// Runs `work` as what the request does.
pub async fn with_intent<T>(intent: Intent, work: impl Future<Output = T>) -> T {
    INTENT.scope(intent, work).await
}

/// The request that the running task answers, if it has a key.
pub(super) fn current() -> Option<Intent> {
    INTENT.try_with(Clone::clone).ok()
}
