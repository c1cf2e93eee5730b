//! How one sees what ufw has, without starting it: it is a script whose start alone takes longer than a rule of the kernel.
//!
//! Its rules stand in its own files, a line for each above what it feeds to iptables; whether it is active shows in the
//! kernel. Where neither says anything, ufw itself is asked.

use super::look::{Look, There};
use crate::api::preview::argv;

/// Its rules, which an operator's `ufw` writes whole before it loads them.
const FILES: [&str; 2] = ["/etc/ufw/user.rules", "/etc/ufw/user6.rules"];

/// The program and the chain for rules about who comes in, of a family.
pub(super) const fn user_chain(is_v6: bool) -> (&'static str, &'static str) {
    if is_v6 { ("ip6tables", "ufw6-user-input") } else { ("iptables", "ufw-user-input") }
}

/// How to see whether ufw has a rule.
pub(super) fn look(rule: &[&str]) -> Look {
    let asked = by_itself(argv(&["ufw", "show", "added"]), There::Line(vec![line(rule)]));
    let (verb, protocol, source) = match rule {
        [verb, "proto", protocol, "from", source, "to", "any"] => (verb, *protocol, *source),
        [verb, "from", source, "to", "any"] => (verb, "any", *source),
        _ => return asked,
    };
    // What is said of nobody is a rule of each family.
    let families = [false, true].into_iter().filter(|v6| source == "any" || *v6 == source.contains(':'));
    let (mut question, mut exact, mut files) = (argv(&["grep", "-h", "-E"]), Vec::new(), Vec::new());
    for v6 in families {
        let anywhere = if v6 { "::/0" } else { "0.0.0.0/0" };
        let source = if source == "any" { anywhere } else { source };
        let what = format!("{protocol} any {anywhere} any {source} in");
        exact.push(format!("### tuple ### {verb} {what}"));
        question
            .extend(["-e".to_owned(), format!("^### tuple ### [a-z_-]+ {}( comment=|$)", what.replace('.', "\\."))]);
        files.push(FILES[usize::from(v6)].to_owned());
    }
    question.extend(files);
    Look { otherwise: Some(Box::new(asked)), ..by_itself(question, There::Found(exact)) }
}

/// How to see whether ufw is active: its chain is there, and packets come through it.
pub(super) fn is_active() -> Look {
    let asked = by_itself(argv(&["ufw", "status"]), There::Line(vec!["Status: active".to_owned()]));
    let (program, chain) = user_chain(false);
    let question = argv(&[program, "-w", "5", "-C", "ufw-before-input", "-j", chain]);
    Look { otherwise: Some(Box::new(asked)), ..by_itself(question, There::Proof) }
}

fn by_itself(argv: Vec<String>, there: There) -> Look {
    Look { argv, there, is_marked: false, otherwise: None }
}

/// How `ufw show added` writes a rule: in another order, and without what goes without saying.
fn line(rule: &[&str]) -> String {
    match rule {
        [verb, "proto", protocol, "from", "any", "to", "any"] => format!("ufw {verb} to any proto {protocol}"),
        [verb, "proto", protocol, "from", source, "to", "any"] => format!("ufw {verb} from {source} proto {protocol}"),
        [verb, "from", source, "to", "any"] => format!("ufw {verb} from {source}"),
        other => format!("ufw {}", other.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_known_by_its_line_and_what_stands_in_its_place_is_told() {
        let deny = look(&["deny", "from", "198.51.100.7", "to", "any"]);
        assert_eq!(
            deny.argv,
            [
                "grep",
                "-h",
                "-E",
                "-e",
                r"^### tuple ### [a-z_-]+ any any 0\.0\.0\.0/0 any 198\.51\.100\.7 in( comment=|$)",
                "/etc/ufw/user.rules"
            ]
        );
        let tuple =
            |verb: &str, end: &str| format!("### tuple ### {verb} any any 0.0.0.0/0 any 198.51.100.7 in{end}\n");
        for (exit, output, there, taken) in [
            (Some(0), tuple("deny", ""), Some(true), false),
            (Some(0), tuple("deny", " comment=6974"), Some(true), false),
            (Some(0), tuple("allow", ""), Some(false), true),
            (Some(0), tuple("deny_log", ""), Some(false), true),
            (Some(1), String::new(), Some(false), false),
            (Some(2), "grep: /etc/ufw/user.rules: No such file or directory".to_owned(), None, false),
            (None, "grep is not installed".to_owned(), None, false),
        ] {
            assert_eq!(deny.sees(exit, &output), there, "{exit:?} {output}");
            assert_eq!(deny.taken(exit, &output).is_some(), taken, "{exit:?} {output}");
        }
        let ufw = deny.otherwise.expect("ufw itself");
        assert_eq!(ufw.sees(Some(0), "ufw deny from 198.51.100.7\n"), Some(true));
        assert_eq!(ufw.sees(Some(0), "ufw deny from 198.51.100.77\n"), Some(false));
    }

    #[test]
    fn both_families_are_looked_for_where_nobody_is_named_and_one_where_somebody_is() {
        let both = look(&["deny", "proto", "udp", "from", "any", "to", "any"]);
        assert_eq!(both.argv[both.argv.len() - 2..], FILES.map(str::to_owned));
        for line in ["deny udp any 0.0.0.0/0 any 0.0.0.0/0 in", "deny udp any ::/0 any ::/0 in"] {
            assert_eq!(both.sees(Some(0), &format!("### tuple ### {line}\n")), Some(true), "{line}");
        }
        let six = look(&["allow", "proto", "udp", "from", "2001:db8::/48", "to", "any"]);
        assert_eq!(six.argv.last().map(String::as_str), Some(FILES[1]));
        assert_eq!(six.there, There::Found(vec!["### tuple ### allow udp any ::/0 any 2001:db8::/48 in".to_owned()]));
    }

    #[test]
    fn only_the_chain_itself_shows_that_ufw_is_active() {
        let active = is_active();
        for (exit, output) in [(Some(1), "Bad rule"), (Some(2), "Chain 'ufw-user-input' does not exist"), (None, "")] {
            assert_eq!(active.sees(exit, output), None, "ufw itself is asked then");
        }
        assert_eq!(active.sees(Some(0), ""), Some(true));
        let ufw = active.otherwise.expect("ufw itself");
        assert_eq!(
            ["Status: active\n", "Status: inactive\n"].map(|said| ufw.sees(Some(0), said)),
            [Some(true), Some(false)]
        );
    }
}
