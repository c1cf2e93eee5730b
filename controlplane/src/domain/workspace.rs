//! A tenant: everything else belongs to one.

use ftagent_common::api::DetectionOverrides;
use serde::{Deserialize, Serialize};

use super::problem::Check;
use super::{Problem, Timestamp};

/// The database's number of a workspace; never leaves the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WorkspaceId(pub i64);

/// Whether a workspace may be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Subscription {
    Active,
    /// Reads go on, writes answer 402; agents go on reporting.
    Inactive,
}

impl Subscription {
    /// The spelling on the wire and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Inactive => "inactive",
        }
    }
}

/// A tenant's settings.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Workspace {
    #[serde(skip)]
    pub id: WorkspaceId,
    pub name: String,
    pub subscription: Subscription,
    /// Detection settings that override the file of every node.
    pub detection: DetectionOverrides,
    pub created_at: Timestamp,
}

impl utoipa::PartialSchema for WorkspaceId {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        i64::schema()
    }
}

impl utoipa::ToSchema for WorkspaceId {}

/// What to change of a workspace; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkspacePatch {
    pub name: Option<String>,
    /// Replaces the overrides as a whole.
    pub detection: Option<DetectionOverrides>,
}

impl WorkspacePatch {
    /// # Errors
    /// A name of other than 1 to 128 characters, or overrides out of bounds.
    pub fn check(self) -> Result<Self, Problem> {
        let mut check = Check::default();
        if let Some(name) = &self.name {
            check.line("name", name, 1, 128);
        }
        if let Some(detection) = &self.detection {
            let rate = 1..=1_000_000_000_000;
            check.that(detection.floor_pps.is_none_or(|v| rate.contains(&v)), "detection.floor_pps", || {
                "must be 1 to 1000000000000 packets/s".to_owned()
            });
            check.that(detection.floor_bps.is_none_or(|v| rate.contains(&v)), "detection.floor_bps", || {
                "must be 1 to 1000000000000 bits/s".to_owned()
            });
            check.that(detection.multiplier.is_none_or(|v| (1.1..=100.0).contains(&v)), "detection.multiplier", || {
                "must be 1.1 to 100".to_owned()
            });
        }
        check.done().map(|()| self)
    }
}
