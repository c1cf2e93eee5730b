//! `firewalld_drop_source`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Ground, Parameters, is_v6, short};
use crate::api::action::default_ttl;
use crate::api::preview::{Preview, argv};

/// What a call to firewalld begins with. Its own program is a script that takes longer to start than firewalld takes to
/// act. Nobody starts firewalld by asking it: where it does not run, it is not wanted.
const CALL: [&str; 7] = [
    "busctl",
    "--system",
    "--auto-start=no",
    "call",
    "org.fedoraproject.FirewallD1",
    "/org/fedoraproject/FirewallD1",
    "org.fedoraproject.FirewallD1.zone",
];

/// Drops the sources, a rich rule each in the default zone, which firewalld takes back by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FirewalldDropSource {
    /// Addresses or prefixes, at most 256; empty: the incident's sources.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpNet>,
    /// Seconds until firewalld takes the rule back, 1 to 86,400; 3,600 by default.
    #[serde(default = "default_ttl")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 86_400))]
    pub ttl_secs: u32,
}

impl Parameters for FirewalldDropSource {
    fn kind(&self) -> &'static str {
        "firewalld_drop_source"
    }

    fn tool(&self) -> &'static str {
        "firewalld"
    }

    fn sources(&self) -> Option<&[IpNet]> {
        Some(&self.sources)
    }

    fn ttl_secs(&self) -> Option<u32> {
        Some(self.ttl_secs)
    }

    fn show(&self, on: &Ground<'_>, shown: &mut Preview) {
        for source in on.sources {
            let family = if is_v6(source) { "ipv6" } else { "ipv4" };
            let rich = format!("rule family=\"{family}\" source address=\"{}\" drop", short(source));
            let secs = self.ttl_secs.to_string();
            let (run, undo) = if on.node.lacks_busctl {
                let add = format!("--add-rich-rule={rich}");
                let run = argv(&["firewall-cmd", &add, &format!("--timeout={secs}")]);
                (run, argv(&["firewall-cmd", &format!("--remove-rich-rule={rich}")]))
            } else {
                // The zone without a name is the default one, as for firewall-cmd without an option.
                (call(&["addRichRule", "ssi", "", &rich, &secs]), call(&["removeRichRule", "ss", "", &rich]))
            };
            shown.step(run, undo, format!("rich rule of the default zone, timeout {secs} s: {rich}"));
        }
        if !on.node.lacks_busctl {
            shown.warnings.push(format!(
                "a node without busctl, which comes with systemd, runs instead for each: \
                 firewall-cmd --add-rich-rule=<rule> --timeout={}",
                self.ttl_secs
            ));
        }
        shown.warnings.push("interfaces in other zones than the default one are not covered".to_owned());
    }
}

fn call(words: &[&str]) -> Vec<String> {
    argv(&[&CALL[..], words].concat())
}

/// A rich rule that a command adds, removes or asks for, by either program.
pub(super) struct RichRule<'a> {
    pub(super) is_added: bool,
    pub(super) words: &'a str,
    is_called: bool,
}

impl<'a> RichRule<'a> {
    pub(super) fn of(command: &'a [String]) -> Option<Self> {
        let rule = |is_added, words, is_called| Some(Self { is_added, words, is_called });
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        match words.strip_prefix(&CALL[..]) {
            Some(["addRichRule", _, _, words, ..]) => return rule(true, words, true),
            Some(["removeRichRule", _, _, words]) => return rule(false, words, true),
            Some(_) => return None,
            None => {}
        }
        let ["firewall-cmd", option, ..] = words.as_slice() else { return None };
        match option.split_once('=')? {
            ("--add-rich-rule", words) => rule(true, words, false),
            ("--remove-rich-rule", words) => rule(false, words, false),
            _ => None,
        }
    }

    /// What asks for it, in the same way.
    pub(super) fn question(&self) -> Vec<String> {
        if self.is_called {
            return call(&["queryRichRule", "ss", "", self.words]);
        }
        argv(&["firewall-cmd", &format!("--query-rich-rule={}", self.words)])
    }

    /// What it is known by, whichever program makes it.
    pub(super) fn object(&self) -> String {
        ["firewall-cmd", &format!("--remove-rich-rule={}", self.words)].join("\u{1f}")
    }
}
