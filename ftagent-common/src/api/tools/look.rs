//! How one sees whether the object of a step is there: by a command of the same tool that changes nothing.
//!
//! All tools stand in this file, since what is looked for follows from the words of the step alone.

use ipnet::IpNet;

use super::firewalld_drop_source::RichRule;
use super::step::ToolStep;
use super::tc_police_interface::IFB_PREFIX;
use super::ufw_look;
use super::xtables::CHAIN_PREFIX;
use crate::api::preview::argv;

/// Stands in an undoing command for the value that a step replaced.
pub const VALUE_BEFORE: &str = "<value before>";

/// A command, and what of its answer says that the object is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    pub argv: Vec<String>,
    pub there: There,
    /// The object bears our mark (a comment, a number, a name), so that nobody else made it.
    pub is_marked: bool,
    /// What is asked when this one has no answer, since it takes longer.
    pub otherwise: Option<Box<Look>>,
}

/// What says that an object is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum There {
    /// The command succeeds; where it is not, it exits with 1.
    Success,
    /// The command succeeds; when it does not, nothing is known.
    Proof,
    /// A line of what was found begins with one of these; exit 1: nothing was found.
    Found(Vec<String>),
    /// There is any output.
    Output,
    /// A line of the output, its words one space apart, is one of these.
    Line(Vec<String>),
    /// A line of the output begins with one of these.
    Start(Vec<String>),
    /// A word of the output.
    Word(String),
}

/// What tools say when the place itself is gone where an object would be.
const PLACE_GONE: &[&str] = &["Cannot find device", "does not exist", "doesn't exist", "Couldn't load target"];

impl Look {
    /// Whether the object is there, from how the command ended and everything that it said; none: it cannot be told.
    pub fn sees(&self, exit: Option<i32>, output: &str) -> Option<bool> {
        let mut lines = output.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        match (&self.there, exit?) {
            (There::Success | There::Proof, 0) => Some(true),
            (There::Proof, _) => None,
            (There::Found(any), 0) => Some(lines.any(|line| any.iter().any(|start| line.starts_with(start.as_str())))),
            (There::Found(_), 1) => Some(false),
            (There::Success, 1) => Some(false),
            (There::Output, 0) => Some(!output.trim().is_empty()),
            (There::Line(any), 0) => Some(lines.any(|line| any.contains(&line))),
            (There::Start(any), 0) => Some(lines.any(|line| any.iter().any(|start| line.starts_with(start.as_str())))),
            (There::Word(word), 0) => Some(output.split_ascii_whitespace().any(|w| w == word)),
            // A firewalld that died leaves its rules in the kernel: that it is away says nothing of them.
            _ if self.argv.first().is_some_and(|program| program == "busctl") => None,
            _ => PLACE_GONE.iter().any(|words| output.contains(words)).then_some(false),
        }
    }
}

impl Look {
    /// Whether anything is where the object would be, for objects that are known by their place alone.
    pub fn is_taken_up(exit: Option<i32>, output: &str) -> bool {
        exit == Some(0) && !output.trim().is_empty()
    }

    /// What was found in place of the object, which the tool would keep.
    pub fn taken<'a>(&self, exit: Option<i32>, output: &'a str) -> Option<&'a str> {
        let is_other =
            matches!(self.there, There::Found(_)) && exit == Some(0) && self.sees(exit, output) == Some(false);
        output.lines().next().filter(|_| is_other)
    }
}

impl ToolStep {
    /// How to see whether the step's object is there; none where only doing it tells, and for members of sets, which one
    /// [listing](super::SetListing) shows together.
    pub fn look(&self) -> Option<Look> {
        let words: Vec<&str> = self.run.iter().map(String::as_str).collect();
        let look = |argv: Vec<String>, there| Look { argv, there, is_marked: false, otherwise: None };
        let marked = |argv: Vec<String>, there| Look { argv, there, is_marked: true, otherwise: None };
        Some(match words.as_slice() {
            [program @ ("iptables" | "ip6tables"), "-w", secs, "-N", chain] => Look {
                is_marked: chain.starts_with(CHAIN_PREFIX),
                ..look(argv(&[program, "-w", secs, "-S", chain]), There::Success)
            },
            [program @ ("iptables" | "ip6tables"), "-w", secs, "-I" | "-A", rest @ ..] => {
                let question = argv(&[&[program, "-w", secs, "-C"], rest].concat());
                let is_marked = rest.windows(2).any(|pair| pair == ["--comment", "ftagent"]);
                Look { is_marked, ..look(question, There::Success) }
            }
            ["ipset", "create", set, ..] => look(argv(&["ipset", "list", "-t", set]), There::Success),
            ["ipset", "add", set, member, ..] => look(argv(&["ipset", "test", set, member]), There::Success),
            ["ufw", "prepend", rule @ ..] => ufw_look::look(rule),
            ["busctl" | "firewall-cmd", ..] => {
                let rule = RichRule::of(&self.run).filter(|rule| rule.is_added)?;
                let is_called = words[0] == "busctl";
                let there = if is_called { There::Line(vec!["b true".to_owned()]) } else { There::Success };
                look(rule.question(), there)
            }
            ["fail2ban-client", "set", jail, "banip", ip] => {
                look(argv(&["fail2ban-client", "get", jail, "banip"]), There::Word((*ip).to_owned()))
            }
            ["ip", family, "route", "add", "blackhole", prefix, "proto", number] => {
                let question = ["ip", family, "route", "show", "exact", prefix, "type", "blackhole", "proto", number];
                marked(argv(&question), There::Output)
            }
            ["ip", family, "rule", "add", "pref", number, "from", prefix, "blackhole"] => {
                let short = prefix.parse::<IpNet>().map_or_else(|_| (*prefix).to_owned(), |p| super::short(&p));
                let line = format!("{number}: from {short} blackhole");
                marked(argv(&["ip", family, "rule", "show", "pref", number]), There::Line(vec![line]))
            }
            ["sysctl", "-w", setting] => {
                let (name, value) = setting.split_once('=')?;
                let mut enough = vec![value.to_owned()];
                if name == "net.ipv4.tcp_syncookies" && value == "1" {
                    // Cookies for everybody, as the TCP gate has it, are more than cookies.
                    enough.push("2".to_owned());
                }
                look(argv(&["sysctl", "-n", name]), There::Line(enough))
            }
            ["ip", "link", "add", "name", device, "type", "ifb"] => {
                let is_marked = device.starts_with(IFB_PREFIX);
                Look { is_marked, ..look(argv(&["ip", "link", "show", "dev", device]), There::Output) }
            }
            ["ip", "link", "set", "dev", device, .., "up"] => {
                let is_marked = device.starts_with(IFB_PREFIX);
                Look { is_marked, ..look(argv(&["ip", "link", "show", "dev", device, "up"]), There::Output) }
            }
            ["tc", "qdisc", "add", "dev", device, "root", "tbf", ..] => {
                let is_marked = device.starts_with(IFB_PREFIX);
                let there = There::Start(vec!["qdisc tbf ".to_owned()]);
                Look { is_marked, ..look(argv(&["tc", "qdisc", "show", "dev", device]), there) }
            }
            ["tc", "qdisc", "add", "dev", interface, "clsact"] => {
                // `ingress` has the same place and takes the same filters.
                let any = ["qdisc clsact ", "qdisc ingress "].map(str::to_owned).into();
                look(argv(&["tc", "qdisc", "show", "dev", interface]), There::Start(any))
            }
            ["tc", "filter", "add", "dev", interface, "ingress", "pref", place, .., "redirect", "dev", device] => {
                // Where that device is gone, another of the same name is not the one that the filter means.
                let question = ["tc", "filter", "show", "dev", interface, "ingress", "pref", place];
                marked(argv(&question), There::Word(format!("{device})")))
            }
            ["tc", "filter", "add", "dev", interface, "ingress", "pref", place, ..]
            | ["ftagent", "tc-bucket", "--interface", interface, "--pref", place, ..] => {
                let question = ["tc", "filter", "show", "dev", interface, "ingress", "pref", place];
                marked(argv(&question), There::Output)
            }
            _ => return None,
        })
    }
}

impl ToolStep {
    /// What must be so for the tool to have any effect, where it says nothing when it has none.
    pub fn needs(&self) -> Option<Look> {
        (self.run.first()? == "ufw").then(ufw_look::is_active)
    }

    /// What shows that somebody else builds on the object, so that it must stay.
    pub fn users(&self) -> Vec<Look> {
        let words: Vec<&str> = self.run.iter().map(String::as_str).collect();
        let ["tc", "qdisc", "add", "dev", interface, "clsact"] = words.as_slice() else { return Vec::new() };
        let filters = |side| Look {
            argv: argv(&["tc", "filter", "show", "dev", interface, side]),
            there: There::Output,
            is_marked: false,
            otherwise: None,
        };
        vec![filters("ingress"), filters("egress")]
    }

    /// Whether the tool puts what is newest first, so that later steps of a plan stand before earlier ones.
    pub fn is_stacked(&self) -> bool {
        self.run.first().is_some_and(|program| program == "ufw")
    }

    /// Whether the step's object is known by its place alone, where something else of ours may stand: then that is undone
    /// first.
    pub fn is_by_place(&self) -> bool {
        self.filtered().is_some()
    }

    /// The interface that the step makes a filter of.
    fn filtered(&self) -> Option<&str> {
        let words: Vec<&str> = self.run.iter().map(String::as_str).collect();
        match *words {
            ["tc", "filter", "add", "dev", interface, ..] | ["ftagent", "tc-bucket", "--interface", interface, ..] => {
                Some(interface)
            }
            _ => None,
        }
    }

    /// Whether the step's object is a part of that of `other`, and goes with it.
    pub fn is_within(&self, other: &Self) -> bool {
        let words: Vec<&str> = other.run.iter().map(String::as_str).collect();
        matches!(*words, ["tc", "qdisc", "add", "dev", interface, "clsact"] if self.filtered() == Some(interface))
    }

    /// Whether the step leaves somebody alone whom another step of its plan would meet.
    pub fn spares(&self) -> bool {
        let words: Vec<&str> = self.run.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["ufw", "prepend", verb, ..] => *verb == "allow",
            ["iptables" | "ip6tables", .., "-j", target] => *target == "RETURN",
            // The first is that of agents before this one.
            ["tc", "filter", .., "action", "ok"] | ["tc", "filter", .., "flowid", _] => true,
            _ => false,
        }
    }

    /// Whether the step replaces a value, to which undoing goes back.
    pub fn has_value(&self) -> bool {
        self.undo.iter().any(|word| word.contains(VALUE_BEFORE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Action, NodeMeans, PreviewContext, preview};

    fn steps(json: &str) -> Vec<ToolStep> {
        let action: Action = serde_json::from_str(json).expect(json);
        let context = PreviewContext {
            target: "203.0.113.5/32".parse().expect("a prefix"),
            sources: vec!["198.51.100.7".parse().expect("an address")],
            spoofed: false,
            spared: vec!["192.0.2.0/24".parse().expect("a prefix")],
            node: NodeMeans::default(),
        };
        preview(&action, &context).steps()
    }

    fn looks(json: &str) -> Vec<Option<Look>> {
        steps(json).iter().map(ToolStep::look).collect()
    }

    #[test]
    fn every_step_of_a_local_tool_can_be_looked_for() {
        for json in super::super::tests::all() {
            let cloud = ["cloudflare", "digitalocean", "vultr"].iter().any(|c| json.contains(c));
            let (looks, steps) = (looks(&json), steps(&json));
            let is_seen = |(look, step): (&Option<Look>, &ToolStep)| look.is_some() != step.members.is_some();
            let all_seen = looks.iter().zip(&steps).all(is_seen);
            assert!(!looks.is_empty() && all_seen != cloud, "{json}: {looks:?}");
        }
    }

    #[test]
    fn an_answer_that_is_none_is_not_taken_for_one() {
        let look = |json| looks(json).pop().flatten().expect("a look");
        let rule = look(r#"{"type":"iptables_drop_source"}"#);
        assert!(rule.is_marked && rule.argv.contains(&"-C".to_owned()));
        for (exit, expected) in [(Some(0), Some(true)), (Some(1), Some(false)), (Some(4), None), (None, None)] {
            assert_eq!(rule.sees(exit, "Resource temporarily unavailable"), expected, "{exit:?}");
        }
        let rule = look(r#"{"type":"null_route_source"}"#);
        assert_eq!(rule.sees(Some(0), "187:\tfrom 198.51.100.7 blackhole\n"), Some(true));
        assert_eq!(rule.sees(Some(0), "187:\tfrom 198.51.100.77 blackhole\n"), Some(false));
        let ban = look(r#"{"type":"fail2ban_ban","jail":"a"}"#);
        assert!(!ban.is_marked);
        assert_eq!(ban.sees(Some(0), "198.51.100.70 198.51.100.7\n"), Some(true));
        assert_eq!(ban.sees(Some(0), "198.51.100.70"), Some(false));
        assert_eq!(ban.sees(Some(255), "Failed to access socket path"), None);
        assert_eq!(ban.sees(Some(255), "Sorry but the jail 'a' does not exist"), Some(false));
        let rich = look(r#"{"type":"firewalld_drop_source"}"#);
        assert_eq!(["b true\n", "b false\n"].map(|v| rich.sees(Some(0), v)), [Some(true), Some(false)]);
        assert_eq!(rich.sees(Some(1), "Call failed: Name \"org.fedoraproject.FirewallD1\" does not exist"), None);
        let cookies = look(r#"{"type":"syn_cookies"}"#);
        assert_eq!(["0\n", "1\n", "2\n"].map(|v| cookies.sees(Some(0), v)), [Some(false), Some(true), Some(true)]);
        let police = look(r#"{"type":"tc_police_interface","interface":"eth0","bps":8000}"#);
        assert_eq!(police.sees(Some(1), "Cannot find device \"eth0\""), Some(false));
    }
}
