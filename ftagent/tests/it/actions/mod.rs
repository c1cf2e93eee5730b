//! The keeper of other tools: against a model of them, and against the tools themselves.

mod bench;
mod firewalls;
mod friends;
mod model;
mod order;
pub(crate) mod random;
mod real;
mod sessions;
mod sets;
mod sets_bench;

use std::path::Path;

use ftagent::actions::journal::Journal;
use ftagent::actions::keeper::Keeper;
use ftagent::actions::runner::{Ran, Runner};
use ftagent::engine::{Acted, Outcome, Wanted};
use ftagent_common::api::{Action, NodeMeans, PoliceMeans, PreviewContext, ToolStep, preview};
use uuid::Uuid;

/// So long after a start nothing of the process before can come late any more.
const LATER_NS: u64 = 1_000_000_000_000;

/// One action of each kind that the machine itself can carry out, some with a step in common. Before one that kernels
/// carry out in several ways stands the way.
const LOCAL: [&str; 16] = [
    r#"{"type":"iptables_drop_source","sources":["198.51.100.7/32"]}"#,
    r#"{"type":"iptables_drop_source","sources":["198.51.100.7/32","2001:db8::7/128"]}"#,
    r#"{"type":"iptables_drop_protocol","protocol":"udp"}"#,
    r#"{"type":"iptables_drop_port","protocol":"udp","port":53}"#,
    r#"{"type":"iptables_rate_limit_source","pps":100}"#,
    r#"{"type":"iptables_limit_connections","connections":20}"#,
    r#"{"type":"iptables_limit_syn","pps":1000}"#,
    r#"{"type":"iptables_reject_protocol","protocol":"tcp"}"#,
    r#"{"type":"ipset_ban","set":"banned","sources":["198.51.100.7/32","198.51.100.8/32"]}"#,
    r#"{"type":"ipset_ban","set":"banned","sources":["198.51.100.8/32","2001:db8::8/128"],"ttl_secs":60}"#,
    r#"{"type":"null_route_source","sources":["198.51.100.7/32","2001:db8::7/128"]}"#,
    r#"{"type":"null_route_source","sources":["198.51.100.7/32","10.0.0.0/16"]}"#,
    r#"{"type":"syn_cookies"}"#,
    r#"ifb {"type":"tc_police_interface","interface":"lo","bps":1000000000}"#,
    r#"program {"type":"tc_police_interface","interface":"lo","bps":1000000}"#,
    r#"program {"type":"tc_police_interface","interface":"lo","bps":2000000,"burst_bytes":4096}"#,
];

fn steps(json: &str) -> Vec<ToolStep> {
    let (police, json) = by_way(json);
    steps_where(json, NodeMeans { police, ..NodeMeans::default() })
}

/// The way before an action, and the action.
fn by_way(json: &str) -> (Option<PoliceMeans>, &str) {
    let (way, json) = json.split_at(json.find('{').expect("an action"));
    let way = serde_json::from_value(way.trim().into()).ok();
    (way.map(|way| PoliceMeans { ways: vec![way], lacking: Vec::new() }), json)
}

fn steps_where(json: &str, node: NodeMeans) -> Vec<ToolStep> {
    let action: Action = serde_json::from_str(json).expect(json);
    action.validate().expect(json);
    let net = |text: &str| text.parse().expect("a prefix");
    let context = PreviewContext {
        target: net("203.0.113.5/32"),
        sources: Vec::new(),
        spoofed: false,
        spared: vec![net("192.0.2.0/24"), net("192.0.2.77/32"), net("2001:db8:7::/48")],
        node,
    };
    preview(&action, &context).steps()
}

fn wanted(number: usize, steps: Vec<ToolStep>) -> Wanted {
    Wanted { task: Uuid::from_u128(number as u128), tool: "any", steps, cloud: None }
}

fn open<R: Runner>(runner: R, dir: &Path, now_ns: u64) -> Keeper<R> {
    Keeper::new(runner, Journal::open(&dir.join("journal")), "this boot", None, now_ns)
}

fn outcomes(acted: &[Acted]) -> Vec<&Outcome> {
    acted.iter().map(|a| &a.outcome).collect()
}

/// Does a step, as the keeper would where nothing of it is there.
fn do_step<R: Runner>(runner: &mut R, step: &ToolStep) -> Ran {
    match &step.members {
        Some(members) => runner.feed(&step.run, &members.to_add(&members.prefixes)),
        None => runner.run(&step.run),
    }
}

/// Undoes it, whosever it is.
fn undo_step<R: Runner>(runner: &mut R, step: &ToolStep) -> Ran {
    match &step.members {
        Some(members) => runner.feed(&step.undo, &members.to_delete(&members.prefixes)),
        None => runner.run(&step.undo.iter().map(|w| w.replace("<value before>", "0")).collect::<Vec<_>>()),
    }
}

/// How the agent dies: before a command, or when it has run and nobody knows it.
#[derive(Clone, Copy, Debug)]
struct Death {
    after: usize,
    has_run: bool,
}

/// What a death unwinds with, so that nothing is printed.
struct Dead;

/// A runner that dies.
struct Mortal<R> {
    inner: R,
    death: Option<Death>,
}

impl<R> Mortal<R> {
    /// Whether this command is the one before whose end the agent dies.
    fn is_last(&mut self) -> Option<Death> {
        let death = self.death.as_mut()?;
        if death.after == 0 {
            return Some(*death);
        }
        death.after -= 1;
        None
    }
}

impl<R: Runner> Runner for Mortal<R> {
    fn run(&mut self, argv: &[String]) -> Ran {
        let Some(death) = self.is_last() else { return self.inner.run(argv) };
        if death.has_run {
            self.inner.run(argv);
        }
        std::panic::resume_unwind(Box::new(Dead));
    }

    fn feed(&mut self, argv: &[String], input: &str) -> Ran {
        let Some(death) = self.is_last() else { return self.inner.feed(argv, input) };
        if death.has_run {
            // Somewhere in the middle.
            let lines = input.lines().count().div_ceil(2);
            let half: String = input.lines().take(lines).flat_map(|line| [line, "\n"]).collect();
            self.inner.feed(argv, &half);
        }
        std::panic::resume_unwind(Box::new(Dead));
    }

    fn list(&mut self, argv: &[String], hear: &mut dyn FnMut(&str)) -> Ran {
        if self.is_last().is_some() {
            std::panic::resume_unwind(Box::new(Dead));
        }
        self.inner.list(argv, hear)
    }
}
