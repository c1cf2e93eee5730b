//! Names of things that tools know, each of a grammar of its own, so that none is read as an option or as something else.

use serde::{Deserialize, Serialize};

/// A text that is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {grammar}")]
pub struct NameError {
    what: &'static str,
    grammar: &'static str,
}

macro_rules! names {
    ($($(#[$meta:meta])* $name:ident: $what:literal, $grammar:literal, |$text:ident| $holds:expr;)+) => {
        $($(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from($text: String) -> Result<Self, NameError> {
                if $holds { Ok(Self($text)) } else { Err(NameError { what: $what, grammar: $grammar }) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        })+
    };
}

names! {
    /// The name of an ipset. That of IPv6 gets a `6` behind it, and the kernel's names end at 31 bytes.
    SetName: "set", "1 to 30 of A-Z a-z 0-9 _ . -, the first a letter", |text| word(&text, 30, b"_.-");
    /// The name of a network interface (the kernel's end at 15 bytes).
    InterfaceName: "interface", "1 to 15 of A-Z a-z 0-9 _ . -, the first a letter", |text| word(&text, 15, b"_.-");
    /// The name of a jail of fail2ban.
    JailName: "jail", "1 to 64 of A-Z a-z 0-9 _ . -, the first a letter", |text| word(&text, 64, b"_.-");
    /// How Cloudflare names zones, accounts and lists.
    CloudId: "zone, account and list", "32 lower-case hex digits",
        |text| text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    /// How DigitalOcean and Vultr name firewalls and groups.
    FirewallId: "firewall_id and group_id", "a UUID in lower case", |text| is_uuid(&text);
}

fn word(text: &str, most: usize, others: &[u8]) -> bool {
    text.len() <= most
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, b)| match at {
            8 | 13 | 18 | 23 => b == b'-',
            _ => matches!(b, b'0'..=b'9' | b'a'..=b'f'),
        })
}
