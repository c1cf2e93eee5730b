//! Scrubbing integrations: providers that clean traffic upstream. They are kept and checked; none is connected yet.

use std::collections::BTreeMap;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::mitigation::words;
use super::problem::Check;
use super::{Problem, Timestamp};

/// Who cleans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    CloudflareMagicTransit,
    OvhMitigation,
    HetznerMitigation,
    CloudflareWaf,
    Digitalocean,
    Vultr,
    AwsShield,
    Linode,
}
words!(Provider {
    CloudflareMagicTransit = "cloudflare_magic_transit", OvhMitigation = "ovh_mitigation",
    HetznerMitigation = "hetzner_mitigation", CloudflareWaf = "cloudflare_waf", Digitalocean = "digitalocean",
    Vultr = "vultr", AwsShield = "aws_shield", Linode = "linode",
});

impl Provider {
    /// The names of the credentials that its interface takes; all of them are needed.
    pub const fn credentials(self) -> &'static [&'static str] {
        match self {
            Self::CloudflareMagicTransit => &["account_id", "api_token"],
            Self::OvhMitigation => &["application_key", "application_secret", "consumer_key"],
            Self::HetznerMitigation => &["password", "user"],
            Self::CloudflareWaf => &["api_token", "zone_id"],
            Self::Digitalocean | Self::Linode => &["api_token"],
            Self::Vultr => &["api_key"],
            Self::AwsShield => &["access_key_id", "region", "secret_access_key"],
        }
    }

    /// Why a call cannot be made, for answers.
    pub fn not_connected(self) -> String {
        format!(
            "{} is not connected: this version has no driver for it, so nothing was called or changed",
            self.as_str()
        )
    }
}

/// Whether traffic is diverted, as far as this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubbingStatus {
    /// There is no driver for the provider: it is stored, and nothing is known or done.
    NotConnected,
}

/// An integration to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewScrubbing {
    pub name: String,
    pub provider: Provider,
    /// What is diverted.
    pub prefixes: Vec<IpNet>,
}

impl NewScrubbing {
    /// # Errors
    /// A name of other than 1 to 128 characters, more than 256 prefixes, a prefix that is everybody.
    pub fn check(self) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &self.name, 1, 128);
        check.that(self.prefixes.len() <= 256, "prefixes", || "must be at most 256".to_owned());
        check.that(self.prefixes.iter().all(|p| p.prefix_len() > 0), "prefixes", || {
            "must not hold a prefix that is everybody".to_owned()
        });
        check.done().map(|()| self)
    }
}

/// Checks credentials by their names; values never show.
///
/// # Errors
/// One is missing or unknown, or is not 1 to 4,096 printable ASCII characters.
pub fn check_credentials(provider: Provider, credentials: &BTreeMap<String, String>) -> Result<(), Problem> {
    let needed = provider.credentials();
    let mut check = Check::default();
    for name in needed {
        check.that(credentials.contains_key(*name), &format!("credentials.{name}"), || "is required".to_owned());
    }
    check.that(credentials.keys().all(|name| needed.contains(&name.as_str())), "credentials", || {
        format!("{} has {}", provider.as_str(), needed.join(", "))
    });
    for name in needed {
        let fits = credentials
            .get(*name)
            .is_none_or(|v| (1..=4_096).contains(&v.len()) && v.bytes().all(|b| b.is_ascii_graphic() || b == b' '));
        check.that(fits, &format!("credentials.{name}"), || "must be 1 to 4096 printable ASCII characters".to_owned());
    }
    check.done()
}

/// What to change of an integration; absent fields stay. The provider does not change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubbingPatch {
    pub name: Option<String>,
    pub prefixes: Option<Vec<IpNet>>,
}

impl ScrubbingPatch {
    /// The integration as it would be afterwards, not yet checked.
    pub fn applied_to(self, kept: &Scrubbing) -> NewScrubbing {
        NewScrubbing {
            name: self.name.unwrap_or_else(|| kept.name.clone()),
            provider: kept.provider,
            prefixes: self.prefixes.unwrap_or_else(|| kept.prefixes.clone()),
        }
    }
}

/// An integration as it is kept; its credentials are never shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Scrubbing {
    pub id: i64,
    pub name: String,
    pub provider: Provider,
    #[schema(value_type = Vec<String>)]
    pub prefixes: Vec<IpNet>,
    pub has_credentials: bool,
    pub status: ScrubbingStatus,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_those_of_the_provider() {
        let check = |provider, pairs: &[(&str, &str)], expected: Option<&str>| {
            let given = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            match (check_credentials(provider, &given), expected) {
                (Ok(()), None) => {}
                (Err(Problem::Invalid(fields)), Some(field)) => {
                    assert_eq!(fields[0].field, field, "{pairs:?}");
                    assert!(fields.iter().all(|f| !f.message.contains("sesame")), "values never show");
                }
                (got, _) => panic!("{provider:?} {pairs:?}: {got:?}"),
            }
        };
        check(Provider::Vultr, &[("api_key", "sesame")], None);
        check(Provider::Vultr, &[], Some("credentials.api_key"));
        check(Provider::Vultr, &[("api_key", "sesame"), ("other", "sesame")], Some("credentials"));
        check(Provider::Vultr, &[("api_key", "sesame\n")], Some("credentials.api_key"));
        check(
            Provider::AwsShield,
            &[("access_key_id", "sesame"), ("region", "eu-west-1")],
            Some("credentials.secret_access_key"),
        );
    }
}
