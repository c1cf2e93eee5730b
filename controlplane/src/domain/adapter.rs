//! Adapters: how a mitigation rule reaches a BGP speaker, a cloud or an appliance.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mitigation::{Intent, words};
use super::problem::Check;
use super::{Problem, Timestamp, parse_url};

/// What an adapter speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum AdapterType {
    Exabgp,
    Gobgp,
    Cloudflare,
    Webhook,
    Bird2,
    Frr,
    Radware,
    F5,
}
words!(AdapterType {
    Exabgp = "exabgp", Gobgp = "gobgp", Cloudflare = "cloudflare", Webhook = "webhook", Bird2 = "bird2", Frr = "frr",
    Radware = "radware", F5 = "f5",
});

impl AdapterType {
    /// Whether this program can speak to it; it stores and checks the others.
    pub const fn is_built(self) -> bool {
        matches!(self, Self::Webhook)
    }

    /// What it can be asked for.
    pub const fn capabilities(self) -> &'static [Intent] {
        match self {
            Self::Webhook => &[Intent::Blackhole, Intent::Flowspec, Intent::Scrubbing],
            Self::Exabgp | Self::Gobgp | Self::Bird2 => &[Intent::Blackhole, Intent::Flowspec],
            // FRR takes FlowSpec rules from others and cannot originate them.
            Self::Frr | Self::F5 => &[Intent::Blackhole],
            Self::Cloudflare | Self::Radware => &[Intent::Scrubbing],
        }
    }

    /// Whether its endpoint must be a URL; others may have an address with port.
    const fn needs_url(self) -> bool {
        matches!(self, Self::Webhook | Self::Cloudflare | Self::Radware | Self::F5)
    }
}

/// What an adapter is told with every rule, and what it may announce.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// The autonomous system that announces, 1 to 4,294,967,295.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub local_as: Option<u32>,
    /// BGP communities such as `65535:666`, or large ones such as `64500:1:666`; at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 32)]
    pub communities: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub next_hop: Option<IpAddr>,
    /// The workspace's own prefixes: they and parts of them may be announced, and nothing else. At most 256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 256)]
    pub prefixes: Vec<IpNet>,
}

impl AdapterConfig {
    /// Whether `target` is the workspace's own, as far as is configured.
    pub fn may_announce(&self, target: &IpNet) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(target))
    }
}

/// An adapter to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAdapter {
    pub adapter_type: AdapterType,
    pub name: String,
    pub endpoint: String,
    pub config: AdapterConfig,
    /// All that its type can do if there are none.
    pub capabilities: Option<Vec<Intent>>,
}

/// An adapter within bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedAdapter {
    pub adapter_type: AdapterType,
    pub name: String,
    pub endpoint: String,
    pub config: AdapterConfig,
    /// Sorted, without repeats.
    pub capabilities: Vec<Intent>,
}

impl NewAdapter {
    /// `allow_private`: whether the endpoint may be an address that is not public.
    ///
    /// # Errors
    /// A name of other than 1 to 128 characters, an endpoint or a configuration out of bounds, a capability that the
    /// type does not have.
    pub fn check(self, allow_private: bool) -> Result<CheckedAdapter, Problem> {
        let Self { adapter_type, name, endpoint, config, capabilities } = self;
        let mut check = Check::default();
        check.line("name", &name, 1, 128);
        if let Err(why) = check_endpoint(&endpoint, adapter_type.needs_url(), allow_private) {
            check.that(false, "endpoint", || why);
        }
        check.that(config.local_as != Some(0), "config.local_as", || "must be 1 to 4294967295".to_owned());
        check.that(config.communities.len() <= 32, "config.communities", || "must be at most 32".to_owned());
        check.that(config.communities.iter().all(|c| is_community(c)), "config.communities", || {
            "must be like 65535:666 or 64500:1:666".to_owned()
        });
        check.that(config.prefixes.len() <= 256, "config.prefixes", || "must be at most 256".to_owned());
        let mut capabilities = capabilities.unwrap_or_else(|| adapter_type.capabilities().to_vec());
        capabilities.sort();
        capabilities.dedup();
        check.that(!capabilities.is_empty(), "capabilities", || "must name at least one".to_owned());
        for capability in capabilities.iter().filter(|c| !adapter_type.capabilities().contains(c)) {
            check.that(false, "capabilities", || {
                format!("{} is nothing that {} can do", capability.as_str(), adapter_type.as_str())
            });
        }
        check.done()?;
        Ok(CheckedAdapter { adapter_type, name, endpoint, config, capabilities })
    }
}

/// The most bytes of a token.
const MAX_AUTH_TOKEN: usize = 4_096;

/// Says what a token must be.
///
/// # Errors
/// It is empty, longer than 4,096 bytes, or holds other than printable ASCII characters.
pub fn check_auth_token(token: &str) -> Result<(), Problem> {
    let fits = (1..=MAX_AUTH_TOKEN).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    // Never the token itself.
    if fits { Ok(()) } else { Err(Problem::field("auth_token", "must be 1 to 4096 printable ASCII characters")) }
}

/// Two or three numbers that fit a community (RFC 1997) or a large one (RFC 8092).
fn is_community(text: &str) -> bool {
    let parts: Vec<_> = text.split(':').collect();
    let digits = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    parts.iter().all(digits)
        && match parts.len() {
            2 => parts.iter().all(|part| part.parse::<u16>().is_ok()),
            3 => parts.iter().all(|part| part.parse::<u32>().is_ok()),
            _ => false,
        }
}

/// A URL as destinations have it; or, where none is needed, an address with port. Speakers of BGP are where they are:
/// whether that may be private is not asked of them.
fn check_endpoint(endpoint: &str, needs_url: bool, allow_private: bool) -> Result<(), String> {
    if !needs_url && !endpoint.contains("://") {
        let fits = endpoint.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0);
        return if fits { Ok(()) } else { Err("must be a URL, or an IP address with port".to_owned()) };
    }
    parse_url(endpoint, allow_private).map(drop)
}

/// Whether an adapter can be used, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterStatus {
    /// It is stored and was not called yet.
    Configured,
    /// The last call succeeded.
    Connected,
    /// The last call failed: `last_error` says why.
    Unreachable,
    /// This program has no driver for the type: it is stored, and no rule can use it.
    NotConnected,
    /// It goes as soon as its rules are withdrawn.
    Deleting,
}

/// An adapter as it is kept; its token is never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Adapter {
    pub id: i64,
    pub adapter_type: AdapterType,
    pub name: String,
    pub endpoint: String,
    pub has_auth_token: bool,
    pub config: AdapterConfig,
    pub capabilities: Vec<Intent>,
    pub status: AdapterStatus,
    /// When it was last called.
    pub checked_at: Option<Timestamp>,
    /// Why the last call failed; empty if it did not.
    pub last_error: String,
    /// Milliseconds that the last call took, if it succeeded.
    pub latency_ms: Option<u32>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// What a call of an adapter told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub at: Timestamp,
    /// Empty: it succeeded.
    pub error: String,
    pub latency_ms: u32,
}

impl AdapterStatus {
    /// What is known of an adapter of this type, whose last call failed for this reason.
    pub fn of(adapter_type: AdapterType, deleting: bool, checked: bool, error: &str) -> Self {
        match (deleting, adapter_type.is_built(), checked, error) {
            (true, ..) => Self::Deleting,
            (_, false, ..) => Self::NotConnected,
            (_, _, false, _) => Self::Configured,
            (_, _, true, "") => Self::Connected,
            (_, _, true, _) => Self::Unreachable,
        }
    }
}

impl Adapter {
    /// Why a rule of this intent for this target cannot use the adapter, as a field and what is wrong with it.
    ///
    /// # Errors
    /// The type has no driver here, the adapter is about to go, does not have the capability, or may not announce the
    /// target.
    pub fn check_use(&self, intent: Intent, target: &IpNet) -> Result<(), Problem> {
        match self.status {
            AdapterStatus::NotConnected => {
                let kind = self.adapter_type.as_str();
                let why =
                    format!("the adapter is not connected: this version has no driver for {kind}, only for webhook");
                return Err(Problem::field("adapter_id", why));
            }
            AdapterStatus::Deleting => return Err(Problem::field("adapter_id", "the adapter is being deleted")),
            _ => {}
        }
        if !self.capabilities.contains(&intent) {
            let why = format!("is none of the adapter's capabilities: {}", intent.as_str());
            return Err(Problem::field("intent_type", why));
        }
        if self.config.prefixes.is_empty() {
            let why = "the adapter may announce nothing: name the workspace's own prefixes in its config.prefixes";
            return Err(Problem::field("adapter_id", why));
        }
        if !self.config.may_announce(target) {
            let why = "is in none of the prefixes that the adapter may announce (config.prefixes)";
            return Err(Problem::field("target_ip", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(adapter_type: AdapterType, endpoint: &str, config: AdapterConfig) -> NewAdapter {
        let (name, endpoint) = ("edge".to_owned(), endpoint.to_owned());
        NewAdapter { adapter_type, name, endpoint, config, capabilities: None }
    }

    fn parsed(kind: AdapterType, endpoint: &str, config: &str) -> Result<CheckedAdapter, String> {
        let config = serde_json::from_str(config).map_err(|e| e.to_string())?;
        new(kind, endpoint, config).check(false).map_err(|e| match e {
            Problem::Invalid(fields) => fields[0].field.clone(),
            other => other.to_string(),
        })
    }

    #[test]
    fn endpoints_are_urls_or_addresses_with_ports() {
        use AdapterType::{Exabgp, F5, Webhook};
        for (kind, endpoint, fine) in [
            (Webhook, "https://bgp.example/hook", true),
            (Webhook, "http://[2606:4700::1]:8080/hook?team=a", true),
            (Webhook, "http://[2001:db8::1]:8080/", false),
            (Webhook, "http://127.0.0.1/", false),
            (Webhook, "203.0.113.1:179", false),
            (Exabgp, "203.0.113.1:179", true),
            (Exabgp, "[2001:db8::1]:179", true),
            (Exabgp, "https://bgp.example", true),
            (Exabgp, "203.0.113.1", false),
            (Exabgp, "203.0.113.1:0", false),
            (F5, "203.0.113.1:443", false),
            (Webhook, "", false),
            (Webhook, "ftp://bgp.example", false),
            (Webhook, "file:///etc/passwd", false),
            (Webhook, "https://user:sesame@bgp.example", false),
            (Webhook, "https://sesame@bgp.example", false),
            (Webhook, "https://", false),
            (Webhook, "https://bgp.example:0/", false),
            (Webhook, "https://bgp.example:x/", false),
            (Webhook, "https://bgp.example/#a", false),
            (Webhook, "https://bgp.example/a b", false),
            (Webhook, "https://bgp.example/\r\nX: y", false),
        ] {
            let got = parsed(kind, endpoint, "{}");
            assert_eq!(got.is_ok(), fine, "{endpoint}: {got:?}");
            if let Err(field) = got {
                assert_eq!(field, "endpoint", "{endpoint}");
            }
        }
        assert!(parsed(Webhook, &format!("https://a/{}", "x".repeat(2_048)), "{}").is_err());
    }

    #[test]
    fn configurations_are_checked() {
        let check = |config: &str, expected: Result<(), &str>| {
            let got = parsed(AdapterType::Webhook, "https://a", config).map(|_| ());
            match (got, expected) {
                (Ok(()), Ok(())) => {}
                (Err(got), Err(part)) => assert!(got.contains(part), "{config}: {got}"),
                (got, _) => panic!("{config}: {got:?}"),
            }
        };
        check(r#"{"local_as":64500,"communities":["65535:666","64500:1:666"],"next_hop":"192.0.2.1"}"#, Ok(()));
        check(r#"{"prefixes":["203.0.113.0/24"]}"#, Ok(()));
        check(r#"{"local_as":0}"#, Err("config.local_as"));
        check(r#"{"communities":["65536:1"]}"#, Err("config.communities"));
        check(r#"{"communities":["+1:1"]}"#, Err("config.communities"));
        check(r#"{"communities":["1"]}"#, Err("config.communities"));
        check(r#"{"password":"sesame"}"#, Err("unknown field"));
        check(r#"{"prefixes":["everything"]}"#, Err("invalid"));
    }

    #[test]
    fn a_type_has_the_capabilities_that_it_can_have() {
        let parse = |kind, capabilities: Option<Vec<Intent>>| {
            let new = NewAdapter { capabilities, ..new(kind, "https://a", AdapterConfig::default()) };
            new.check(false).map(|new| new.capabilities)
        };
        use Intent::{Blackhole, Flowspec, Scrubbing};
        assert_eq!(parse(AdapterType::Frr, None), Ok(vec![Blackhole]));
        assert_eq!(
            parse(AdapterType::Webhook, Some(vec![Scrubbing, Blackhole, Scrubbing])),
            Ok(vec![Blackhole, Scrubbing])
        );
        assert!(parse(AdapterType::Frr, Some(vec![Flowspec])).is_err());
        assert!(parse(AdapterType::Webhook, Some(vec![])).is_err());
    }

    #[test]
    fn only_what_is_built_is_ever_connected() {
        use AdapterStatus::{Configured, Connected, Deleting, NotConnected, Unreachable};
        for (kind, deleting, checked, error, expected) in [
            (AdapterType::Webhook, false, false, "", Configured),
            (AdapterType::Webhook, false, true, "", Connected),
            (AdapterType::Webhook, false, true, "timeout", Unreachable),
            (AdapterType::Webhook, true, true, "", Deleting),
            (AdapterType::Gobgp, false, false, "", NotConnected),
            (AdapterType::Gobgp, false, true, "", NotConnected),
        ] {
            assert_eq!(AdapterStatus::of(kind, deleting, checked, error), expected, "{kind:?} {deleting} {checked}");
        }
    }
}
