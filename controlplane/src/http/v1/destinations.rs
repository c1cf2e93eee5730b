//! What channels and integrations share: bodies of requests.

use std::collections::BTreeMap;

use ftagent_common::vocab::Severity;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::domain::{DestinationKind, DestinationPatch, NewDestination, Secrets, Setting};
use crate::http::answers;

answers! {
    DeliveryAnswer { delivery: crate::domain::Delivery }
    DeliveryList { deliveries: Vec<crate::domain::Delivery>, total: u64 }
}

const fn yes() -> bool {
    true
}

const fn low() -> Severity {
    Severity::Low
}

/// A channel or integration to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DestinationBody {
    kind: DestinationKind,
    /// 1 to 128 characters; unique among the workspace's channels, or integrations.
    #[schema(min_length = 1, max_length = 128)]
    name: String,
    #[serde(default = "yes")]
    enabled: bool,
    /// Incidents of at least this severity are told; `low` by default.
    #[serde(default = "low")]
    #[schema(default = "low")]
    min_severity: Severity,
    /// By kind. Of `webhook`: `url`, and `timeout_secs`, 1 to 30, 10 by default. Of `iptables`: `auto_apply` (false),
    /// `remove_on_resolve` (true), `ttl_secs` (60 to 86,400; 3,600), `approve_within_minutes` (1 to 1,440; 60).
    #[serde(default)]
    settings: BTreeMap<String, Setting>,
    /// By kind, never shown again. Of `webhook`: `secret`, which signs; one is made if it is not given.
    #[serde(default)]
    secrets: BTreeMap<String, String>,
    /// Of `webhook`: at most 16 headers that are sent along; their values are never shown again.
    #[serde(default)]
    headers: BTreeMap<String, String>,
}

impl DestinationBody {
    pub(super) fn into_new(self) -> NewDestination {
        let Self { kind, name, enabled, min_severity, settings, secrets: given, headers } = self;
        let mut secrets = Secrets::default();
        secrets.take(given.into_iter().map(|(name, value)| (name, Some(value))).collect());
        secrets.replace_headers(headers);
        NewDestination { kind, name, enabled, min_severity, settings, secrets }
    }
}

/// What to change of a channel or integration; absent fields stay.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DestinationChange {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    enabled: Option<bool>,
    min_severity: Option<Severity>,
    /// Replaces all settings.
    settings: Option<BTreeMap<String, Setting>>,
    /// Those that change; null takes one away.
    #[serde(default)]
    secrets: BTreeMap<String, Option<String>>,
    /// Replaces all headers.
    headers: Option<BTreeMap<String, String>>,
}

impl DestinationChange {
    pub(super) fn into_patch(self) -> DestinationPatch {
        let Self { name, enabled, min_severity, settings, secrets, headers } = self;
        DestinationPatch { name, enabled, min_severity, settings, secrets, headers }
    }
}
