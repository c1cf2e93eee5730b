//! What tools' answers mean where their exit status does not say it.

use super::firewalld_drop_source::RichRule;
use super::ufw_look::user_chain;

/// Whether a command failed because all is already as it should be, in the tool's own words.
///
/// firewall-cmd warns of that and succeeds; the call below it is an error.
pub fn is_so_already(argv: &[String], exit: Option<i32>, output: &str) -> bool {
    let Some(rule) = RichRule::of(argv).filter(|_| exit == Some(1)) else { return false };
    let why = if rule.is_added { "ALREADY_ENABLED:" } else { "NOT_ENABLED:" };
    output.trim_start().strip_prefix("Call failed: ").is_some_and(|words| words.starts_with(why))
}

/// What the words of a command that failed mean, where they name a bus or a chain and not what is wrong.
pub fn meaning(argv: &[String], output: &str) -> Option<&'static str> {
    let (program, chain) = user_chain(true);
    if argv.first()? == program && argv.iter().any(|word| word == chain) {
        let is_missing = ["No chain", "does not exist"].iter().any(|words| output.contains(words));
        return is_missing.then_some("ufw does not filter IPv6 (IPV6 in /etc/default/ufw)");
    }
    if argv.first()? != "busctl" {
        return None;
    }
    // The words of dbus-daemon and of dbus-broker for a name that nobody has.
    let nobody = ["\" does not exist", "does not have an owner", "was not provided by any"];
    if nobody.iter().any(|words| output.contains(words)) {
        return Some("firewalld is not running");
    }
    output.contains("Failed to connect to bus").then_some("there is no system bus, by which firewalld is spoken to")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Action, NodeMeans, PreviewContext, preview};

    #[test]
    fn what_is_so_already_is_no_error_and_everything_else_is() {
        let action: Action = serde_json::from_str(r#"{"type":"firewalld_drop_source"}"#).expect("an action");
        let context = |lacks_busctl| PreviewContext {
            target: "203.0.113.5/32".parse().expect("a prefix"),
            sources: vec!["198.51.100.7".parse().expect("an address")],
            spoofed: false,
            spared: Vec::new(),
            node: NodeMeans { lacks_busctl, police: None },
        };
        let steps = preview(&action, &context(false)).steps();
        let (add, remove) = (&steps[0].run, &steps[0].undo);
        let (there, gone) = ("Call failed: ALREADY_ENABLED: 'rule' already in", "Call failed: NOT_ENABLED: 'rule' not");
        for (argv, exit, output, expected) in [
            (add, Some(1), there, true),
            (remove, Some(1), gone, true),
            (add, Some(1), gone, false),
            (remove, Some(1), there, false),
            (add, None, there, false),
            (add, Some(1), "Call failed: INVALID_RULE: ALREADY_ENABLED: not", false),
            (add, Some(1), "Call failed: Not Authorized(uid): org.fedoraproject.FirewallD1.config", false),
            (add, Some(1), "", false),
        ] {
            assert_eq!(is_so_already(argv, exit, output), expected, "{argv:?} {exit:?} {output}");
        }
        let by_script = preview(&action, &context(true)).steps();
        assert!(!is_so_already(&["iptables".to_owned()], Some(1), there));
        // One rule, whichever program makes it: a journal of the one is the other's.
        assert_eq!(by_script[0].object(), steps[0].object());
        assert_ne!(by_script[0].run, steps[0].run);
        let stopped = "Call failed: Name \"org.fedoraproject.FirewallD1\" does not exist";
        assert_eq!(meaning(add, stopped), Some("firewalld is not running"));
        assert_eq!((meaning(&by_script[0].run, stopped), meaning(add, "Call failed: INVALID_ZONE: a")), (None, None));
    }
}
