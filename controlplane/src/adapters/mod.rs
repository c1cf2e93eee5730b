//! Drivers of adapters: one trait, one file per type. They send and read; what follows from it is decided elsewhere.

mod webhook;

use std::sync::Arc;

use async_trait::async_trait;
use ipnet::IpNet;
use uuid::Uuid;

use crate::domain::{AdapterConfig, AdapterType, Intent, Outcome, Timestamp};
use crate::outbound::Outbound;

/// What is to be announced or withdrawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub rule_id: i64,
    pub rule_uuid: Uuid,
    pub target: IpNet,
    pub intent: Intent,
    /// Seconds from the rule's creation; 0: until it is withdrawn.
    pub ttl_secs: u32,
    pub expires_at: Option<Timestamp>,
    pub reason: String,
}

/// What a test found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tested {
    /// Why it failed; none if all is well.
    pub error: Option<String>,
    /// The status of the answer, if there was one.
    pub http_status: Option<u16>,
}

/// Speaks to one adapter. Every call is safe to repeat and bounded in time.
#[async_trait]
pub trait Adapter: Send + Sync {
    /// Announces; `now` is when it is sent.
    async fn announce(&self, announcement: &Announcement, now: Timestamp) -> Outcome;
    /// Withdraws; what is gone already is done.
    async fn withdraw(&self, announcement: &Announcement, now: Timestamp) -> Outcome;
    /// Reaches the other side and proves who calls, and changes nothing there.
    async fn test(&self, now: Timestamp) -> Tested;
}

/// What a driver needs to know of the adapter that it is for.
pub struct Settings {
    pub id: i64,
    pub name: String,
    pub endpoint: String,
    /// In clear; never shown.
    pub auth_token: Option<String>,
    pub config: AdapterConfig,
}

/// The driver of this type; none where there is none yet.
pub fn driver(kind: AdapterType, settings: Settings, outbound: Arc<Outbound>) -> Option<Box<dyn Adapter>> {
    match kind {
        AdapterType::Webhook => Some(Box::new(webhook::Webhook::new(settings, outbound))),
        AdapterType::Exabgp
        | AdapterType::Gobgp
        | AdapterType::Cloudflare
        | AdapterType::Bird2
        | AdapterType::Frr
        | AdapterType::Radware
        | AdapterType::F5 => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_driver_for_what_is_said_to_be_built() {
        use AdapterType::{Bird2, Cloudflare, Exabgp, F5, Frr, Gobgp, Radware, Webhook};
        for kind in [Exabgp, Gobgp, Cloudflare, Webhook, Bird2, Frr, Radware, F5] {
            let settings = Settings {
                id: 1,
                name: String::new(),
                endpoint: "https://a".to_owned(),
                auth_token: None,
                config: AdapterConfig::default(),
            };
            let driver = driver(kind, settings, Arc::new(Outbound::new(false)));
            assert_eq!(driver.is_some(), kind.is_built(), "{kind:?}");
        }
    }
}
