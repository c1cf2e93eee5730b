//! Why the store did not do what was asked.

use crate::domain::Problem;

/// `app` passes these on; `http/error.rs` gives each its status.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The rules of the domain, or what is in the database, stand against it.
    #[error(transparent)]
    Problem(#[from] Problem),
    /// The database is locked, full, broken or gone, and a later try may succeed. Nothing was written, unless the
    /// connection broke at the very commit: then nobody knows.
    #[error("the database cannot answer: {reason}")]
    Unavailable {
        reason: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The folder of captures takes or gives nothing: nothing was kept, and a later try may succeed.
    #[error("the folder of captures cannot be used: {reason}")]
    Disk {
        reason: &'static str,
        #[source]
        source: std::io::Error,
    },
    /// A row that this program did not write, or a defect of this program.
    #[error("the database answered what was not expected: {what}")]
    Unexpected {
        what: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What every call of the store answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;
