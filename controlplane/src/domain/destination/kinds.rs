//! The kinds of destinations and what each of them is told at its making.

use serde::{Deserialize, Serialize};

use super::Duty;

macro_rules! kinds {
    ($($(#[$meta:meta])* $kind:ident = $word:tt: $($duty:ident)|+ { $($field:expr),* $(,)? })+) => {
        /// What a destination is. Only `webhook` is sent to yet, and `iptables` acted on by nodes; the others are kept
        /// and answer `not_connected`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
        pub enum DestinationKind {
            $($(#[$meta])* #[serde(rename = $word)] $kind),+
        }

        impl DestinationKind {
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The spelling on the wire and in the database.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $word),+ }
            }

            /// What it can be.
            pub const fn duties(self) -> &'static [Duty] {
                match self { $(Self::$kind => &[$(Duty::$duty),+]),+ }
            }

            /// What it is told.
            pub(super) const fn fields(self) -> &'static [Field] {
                match self { $(Self::$kind => const { &[$($field),*] as &[Field] }),+ }
            }
        }
    };
}

impl DestinationKind {
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|k| k.as_str() == word)
    }

    /// Whether this program can send to it.
    pub const fn is_connected(self) -> bool {
        matches!(self, Self::Webhook)
    }

    /// Whether it is no server at all, but what nodes are told to do.
    pub const fn is_local(self) -> bool {
        matches!(self, Self::Iptables)
    }
}

/// One setting or secret of a kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) form: Form,
    pub(super) required: bool,
}

/// What a field holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Url,
    /// One line of at most this many characters.
    Line(usize),
    Word(&'static [&'static str]),
    /// From, to, and what it is if it is not given.
    Number(i64, i64, i64),
    /// What it is if it is not given.
    Switch(bool),
    /// 1 to this many lines of at most 320 characters.
    List(usize),
    /// Never shown again.
    Secret,
    /// The same, and an `https` URL.
    SecretUrl,
}

impl Form {
    pub(super) const fn is_secret(self) -> bool {
        matches!(self, Self::Secret | Self::SecretUrl)
    }
}

const fn must(name: &'static str, form: Form) -> Field {
    Field { name, form, required: true }
}

const fn may(name: &'static str, form: Form) -> Field {
    Field { name, form, required: false }
}

kinds! {
    Webhook = "webhook": Channel | Integration {
        must("url", Form::Url), may("timeout_secs", Form::Number(1, 30, 10)), must("secret", Form::Secret),
    }
    Slack = "slack": Channel { must("webhook_url", Form::SecretUrl) }
    Discord = "discord": Channel { must("webhook_url", Form::SecretUrl) }
    Teams = "teams": Channel { must("webhook_url", Form::SecretUrl) }
    Pagerduty = "pagerduty": Channel { must("routing_key", Form::Secret) }
    Opsgenie = "opsgenie": Channel { must("api_key", Form::Secret), may("region", Form::Word(&["us", "eu"])) }
    Telegram = "telegram": Channel { must("chat_id", Form::Line(64)), must("bot_token", Form::Secret) }
    Email = "email": Channel {
        must("host", Form::Line(253)), may("port", Form::Number(1, 65_535, 587)), must("from", Form::Line(320)),
        must("to", Form::List(50)), may("username", Form::Line(320)), may("password", Form::Secret),
    }
    /// By Twilio.
    Sms = "sms": Channel {
        must("account_sid", Form::Line(64)), must("from", Form::Line(32)), must("to", Form::List(50)),
        must("auth_token", Form::Secret),
    }
    Alertmanager = "alertmanager": Channel { must("url", Form::Url), may("token", Form::Secret) }
    Grafana = "grafana": Channel { must("url", Form::Url), must("token", Form::Secret) }
    Datadog = "datadog": Channel { may("site", Form::Line(253)), must("api_key", Form::Secret) }
    SplunkHec = "splunk_hec": Integration {
        must("url", Form::Url), may("index", Form::Line(255)), may("sourcetype", Form::Line(255)),
        must("token", Form::Secret),
    }
    Elasticsearch = "elasticsearch": Integration {
        may("url", Form::Url), may("cloud_id", Form::Line(1_024)), may("index", Form::Line(255)),
        may("username", Form::Line(255)), may("password", Form::Secret), may("api_key", Form::Secret),
    }
    /// Microsoft Sentinel.
    Sentinel = "sentinel": Integration {
        must("dce_url", Form::Url), must("dcr_id", Form::Line(255)), must("stream", Form::Line(255)),
        must("tenant_id", Form::Line(64)), must("client_id", Form::Line(64)), must("client_secret", Form::Secret),
    }
    SyslogCef = "syslog_cef": Integration {
        must("host", Form::Line(253)), may("port", Form::Number(1, 65_535, 514)),
        may("transport", Form::Word(&["udp", "tcp", "tls"])), may("format", Form::Word(&["rfc5424", "rfc3164"])),
    }
    Wazuh = "wazuh": Integration {
        must("url", Form::Url), may("username", Form::Line(255)), may("password", Form::Secret),
    }
    Misp = "misp": Integration { must("url", Form::Url), must("api_key", Form::Secret) }
    /// Rules that drop the sources of incidents at the nodes that reported them.
    Iptables = "iptables": Integration {
        may("auto_apply", Form::Switch(false)), may("remove_on_resolve", Form::Switch(true)),
        may("ttl_secs", Form::Number(60, 86_400, 3_600)), may("approve_within_minutes", Form::Number(1, 1_440, 60)),
    }
    Abuseipdb = "abuseipdb": Integration { must("api_key", Form::Secret) }
    Crowdsec = "crowdsec": Integration {
        must("url", Form::Url), may("machine_id", Form::Line(255)), may("password", Form::Secret),
        may("api_key", Form::Secret), may("duration", Form::Word(&["1h", "4h", "12h", "24h", "3d", "7d"])),
    }
}
