//! What an action would do, before it does it: pure, and the same in agent and control plane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::tools::{Ground, Members, PoliceMeans, ToolStep};
use super::{Action, PortSide, Protocol};

/// What an action may take from the incident that fires it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PreviewContext {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub target: IpNet,
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub sources: Vec<IpAddr>,
    pub spoofed: bool,
    /// Whom an action that concerns everybody leaves alone: the allowlist and, on a node, what that depends on. Only the
    /// node knows all of it, and it is never sent.
    #[serde(skip)]
    pub spared: Vec<IpNet>,
    /// What the node has, as far as that is known.
    #[serde(skip)]
    pub node: NodeMeans,
}

impl PreviewContext {
    /// Of an action that names its sources, or of none, against `target`, on a node of which nothing is known.
    pub fn of(target: IpNet) -> Self {
        Self { target, sources: Vec::new(), spoofed: false, spared: Vec::new(), node: NodeMeans::default() }
    }
}

/// What a node has or lacks on which it depends how an action is done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeMeans {
    /// Whether it has no `busctl`, by which firewalld is spoken to where it is there.
    #[serde(default)]
    pub lacks_busctl: bool,
    /// How its kernel limits an interface. Absent: it has not been tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub police: Option<PoliceMeans>,
}

/// The commands of doing and undoing, the kernel objects, and what an operator should know first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Preview {
    /// Argument vectors, in order; for actions at cloud providers method, URL and JSON body of each request.
    #[serde(rename = "do")]
    pub do_: Vec<Vec<String>>,
    /// One for each of `do`, run from the last to the first. An empty one: nothing is to be undone.
    pub undo: Vec<Vec<String>>,
    /// One for each of `do`, or none at all: a command whose success says that the step's object is there already, so
    /// that neither the step nor its undo is run. An empty one: the step is always run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unless: Vec<Vec<String>>,
    /// One for each of `do`, or none at all: what the commands read. Without lines: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub input: Vec<StepInput>,
    /// The same in full, for who runs them.
    #[serde(skip)]
    pub members: Vec<Option<Members>>,
    /// What appears in the kernel.
    pub objects: Vec<String>,
    pub warnings: Vec<String>,
    /// Set when the action would not run at all, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// What the commands of a step read from standard input. Where that is long, its beginning is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StepInput {
    #[serde(rename = "do")]
    pub do_: String,
    pub undo: String,
    /// How many there are of each.
    pub lines: usize,
    /// The first so many are shown.
    pub shown: usize,
}

impl StepInput {
    /// Lines that are shown.
    pub(in crate::api) const SHOWN: usize = 16;

    /// The first lines of `lines`.
    pub(in crate::api) fn of(do_: &str, undo: &str, lines: usize) -> Self {
        Self { do_: do_.to_owned(), undo: undo.to_owned(), lines, shown: lines.min(Self::SHOWN) }
    }
}

/// Broad prefixes that are named one by one.
const MAX_WARNED: usize = 16;

pub(super) fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// Whether `prefix` reaches so many addresses that blocking it hurts bystanders: shorter than /16, or /32 for IPv6.
pub fn is_broad(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V4(v4) => v4.prefix_len() < 16,
        IpNet::V6(v6) => v6.prefix_len() < 32,
    }
}

/// The sources that `action` would act on in `context`.
pub fn effective_sources(action: &Action, context: &PreviewContext) -> Vec<IpNet> {
    match action.sources() {
        Some([]) => context.sources.iter().map(|ip| IpNet::from(*ip)).collect(),
        Some(named) => named.iter().map(IpNet::trunc).collect(),
        None => Vec::new(),
    }
}

/// Says what `action` would do in `context`.
pub fn preview(action: &Action, context: &PreviewContext) -> Preview {
    let mut shown = Preview::default();
    let target = action.target().unwrap_or(context.target).trunc();
    let sources = effective_sources(action, context);
    if let Some(named) = action.sources() {
        if named.is_empty() && context.spoofed {
            shown.refused = Some(
                "the sources are judged spoofed: blocking forged addresses fills maps and hurts bystanders; \
                 use a rule on the target instead"
                    .to_owned(),
            );
            return shown;
        }
        for broad in sources.iter().filter(|s| is_broad(s)).take(MAX_WARNED) {
            shown.warnings.push(format!("{broad} is a broad prefix: everyone in it is affected"));
        }
        let more = sources.iter().filter(|s| is_broad(s)).count().saturating_sub(MAX_WARNED);
        if more > 0 {
            shown.warnings.push(format!("and {more} more broad prefixes"));
        }
    }
    if let Some(parameters) = action.parameters() {
        let most = parameters.max_sources();
        if sources.len() > most {
            shown.warnings.push(format!(
                "of {} sources the first {most} are blocked: the tool has a rule for each",
                sources.len()
            ));
        }
        let sources = &sources[..sources.len().min(most)];
        parameters.show(&Ground { sources, target, spared: &context.spared, node: &context.node }, &mut shown);
        if shown.refused.is_some() {
            return Preview { refused: shown.refused, warnings: shown.warnings, ..Preview::default() };
        }
    }
    match action {
        Action::XdpDropSource { ttl_secs, .. } => {
            for source in &sources {
                shown.step(
                    argv(&["ftagent", "block", &source.to_string(), "--ttl", &format!("{ttl_secs}s")]),
                    argv(&["ftagent", "unblock", &source.to_string()]),
                    format!("XDP block {source}, ends by itself after {ttl_secs} s"),
                );
            }
        }
        Action::XdpRateLimitSource { pps, bps, ttl_secs, .. } => {
            let rate = rate_text(*pps, *bps);
            for source in &sources {
                shown.step(
                    argv(&["ftagent", "block", &source.to_string(), "--rate", &rate, "--ttl", &format!("{ttl_secs}s")]),
                    argv(&["ftagent", "unblock", &source.to_string()]),
                    format!("XDP limit {source} to {rate}, ends by itself after {ttl_secs} s"),
                );
            }
        }
        Action::XdpDropProtocol { protocol, ttl_secs, .. } => {
            shown.target_rule(&target, &format!("protocol {}", protocol.as_str()), "drop", *ttl_secs);
            shown.warn_protocol(*protocol, &target);
        }
        Action::XdpDropPort { protocol, port, side, ttl_secs, .. } => {
            let side_word = match side {
                PortSide::Source => "source-port",
                PortSide::Destination => "destination-port",
            };
            let matches = format!("protocol {} {side_word} {port}", protocol.protocol().as_str());
            shown.target_rule(&target, &matches, "drop", *ttl_secs);
            shown.warn_port(*port, *side, &target);
        }
        Action::XdpRateLimitTarget { protocol, pps, bps, ttl_secs, .. } => {
            let matches = protocol.map_or_else(|| "any protocol".to_owned(), |p| format!("protocol {}", p.as_str()));
            shown.target_rule(&target, &matches, &format!("limit {}", rate_text(*pps, *bps)), *ttl_secs);
        }
        Action::NftDropProtocol { protocol, .. } => {
            let family = nft_family(&target);
            let meta = nft_protocol(*protocol);
            shown.nft_rule(
                "network",
                &[family, "daddr", &target.to_string(), "meta", "l4proto", meta, "counter", "drop"],
            );
            shown.warn_protocol(*protocol, &target);
        }
        Action::NftDropPort { protocol, port, side, .. } => {
            let side_word = match side {
                PortSide::Source => "sport",
                PortSide::Destination => "dport",
            };
            shown.nft_rule(
                "transport",
                &[
                    nft_family(&target),
                    "daddr",
                    &target.to_string(),
                    protocol.protocol().as_str(),
                    side_word,
                    &port.to_string(),
                    "counter",
                    "drop",
                ],
            );
            shown.warn_port(*port, *side, &target);
        }
        Action::NftDropSource { ttl_secs, .. } => {
            shown.nft_elements(&sources, *ttl_secs);
        }
        Action::NftRateLimitSource { pps, burst, .. } => {
            let burst = burst.unwrap_or_else(|| pps.div_ceil(10).max(5));
            for source in &sources {
                shown.nft_rule(
                    "network",
                    &[
                        nft_family(source),
                        "saddr",
                        &source.to_string(),
                        "limit",
                        "rate",
                        "over",
                        &format!("{pps}/second"),
                        "burst",
                        &burst.to_string(),
                        "packets",
                        "counter",
                        "drop",
                    ],
                );
            }
        }
        _ => {}
    }
    if action.sources().is_some() && sources.is_empty() {
        shown.refused = Some("the incident has no sources and the rule names none".to_owned());
    }
    shown
}

/// A rate as an operator writes it.
fn rate_text(pps: Option<u64>, bps: Option<u64>) -> String {
    match (pps, bps) {
        (Some(pps), _) => format!("{pps}pps"),
        (None, Some(bps)) => format!("{bps}bps"),
        (None, None) => "0pps".to_owned(),
    }
}

const fn nft_family(prefix: &IpNet) -> &'static str {
    match prefix {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

/// nftables' name of a protocol in `meta l4proto`.
const fn nft_protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Icmpv6 => "ipv6-icmp",
        other => other.as_str(),
    }
}

impl Preview {
    /// The steps as one thing each.
    pub fn steps(&self) -> Vec<ToolStep> {
        let unless = |at: usize| self.unless.get(at).cloned().unwrap_or_default();
        let members = |at: usize| self.members.get(at).cloned().flatten();
        let pairs = self.do_.iter().zip(&self.undo).enumerate();
        let step = |(at, (run, undo)): (usize, (&Vec<String>, &Vec<String>))| ToolStep {
            run: run.clone(),
            undo: undo.clone(),
            unless: unless(at),
            members: members(at),
        };
        pairs.map(step).collect()
    }

    pub(super) fn step(&mut self, do_: Vec<String>, undo: Vec<String>, object: String) {
        self.do_.push(do_);
        self.undo.push(undo);
        self.objects.push(object);
    }

    /// A step whose command puts in what it reads, and that of its undo takes it out.
    pub(super) fn member_step(&mut self, command: Vec<String>, members: Members) {
        self.step(command.clone(), command, members.words());
        self.input.resize(self.do_.len() - 1, StepInput::default());
        self.input.push(members.shown());
        self.members.resize(self.do_.len() - 1, None);
        self.members.push(Some(members));
    }

    /// Elements of the sets of our table, by family and length, as one transaction has them.
    fn nft_elements(&mut self, sources: &[IpNet], ttl_secs: u32) {
        let mut sets: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
        for source in sources {
            let set = format!("blocked{}_{}", if source.addr().is_ipv4() { 4 } else { 6 }, source.prefix_len());
            sets.entry(set).or_default().push(source.network());
        }
        for (set, mut networks) in sets {
            networks.sort_unstable();
            networks.dedup();
            let many = networks.len();
            let some: Vec<IpAddr> = networks.into_iter().take(StepInput::SHOWN).collect();
            if let ([network], 1) = (&some[..], many) {
                let element = |verb, element: &str| argv(&["nft", verb, "element", "inet", "ftagent", &set, element]);
                self.step(
                    element("add", &format!("{{ {network} timeout {ttl_secs}s }}")),
                    element("delete", &format!("{{ {network} }}")),
                    format!("element {network} of set inet ftagent {set}, timeout {ttl_secs} s"),
                );
                continue;
            }
            let command = argv(&["nft", "-f", "-"]);
            let objects = format!("{many} elements of set inet ftagent {set}, timeout {ttl_secs} s");
            self.step(command.clone(), command, objects);
            let lines = |verb: &str, end: &str| -> String {
                some.iter().map(|n| format!("{verb} element inet ftagent {set} {{ {n}{end} }}\n")).collect()
            };
            let input = StepInput::of(&lines("add", &format!(" timeout {ttl_secs}s")), &lines("delete", ""), many);
            self.input.resize(self.do_.len() - 1, StepInput::default());
            self.input.push(input);
        }
        if !self.input.is_empty() {
            self.input.resize(self.do_.len(), StepInput::default());
        }
    }

    fn target_rule(&mut self, target: &IpNet, matches: &str, verdict: &str, ttl_secs: u32) {
        let mut words = argv(&["ftagent", "rules", "add", "--target", &target.to_string()]);
        words.push("--match".to_owned());
        words.push(matches.to_owned());
        words.push("--action".to_owned());
        words.push(verdict.to_owned());
        words.extend(argv(&["--ttl", &format!("{ttl_secs}s")]));
        let mut undo = argv(&["ftagent", "rules", "delete", "--target", &target.to_string(), "--match", matches]);
        undo.extend(argv(&["--action", verdict]));
        self.step(
            words,
            undo,
            format!("XDP rule of {target}: {matches}, {verdict}, ends by itself after {ttl_secs} s"),
        );
        if is_broad(target) {
            self.warnings.push(format!("{target} is a broad prefix: every host in it is affected"));
        }
    }

    /// A rule of one of the two chains of our table: `transport` is for what looks into ports.
    fn nft_rule(&mut self, chain: &str, rule: &[&str]) {
        let mut add = argv(&["nft", "add", "rule", "inet", "ftagent", chain]);
        add.extend(argv(rule));
        let mut delete = argv(&["nft", "delete", "rule", "inet", "ftagent", chain, "handle"]);
        delete.push("<handle of the rule>".to_owned());
        self.step(add, delete, format!("rule of chain inet ftagent {chain}: {}", rule.join(" ")));
    }

    fn warn_protocol(&mut self, protocol: Protocol, target: &IpNet) {
        self.warnings.push(format!("drops all {} towards {target}, wanted traffic included", protocol.as_str()));
    }

    fn warn_port(&mut self, port: u16, side: PortSide, target: &IpNet) {
        if side == PortSide::Destination {
            self.warnings.push(format!("nobody reaches port {port} of {target} while the rule is in force"));
        } else if port == 53 {
            self.warnings.push(format!("answers of DNS resolvers to {target} are dropped too"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(spoofed: bool) -> PreviewContext {
        PreviewContext {
            target: "203.0.113.5/32".parse().expect("a prefix"),
            sources: vec!["198.51.100.7".parse().expect("an address")],
            spoofed,
            spared: Vec::new(),
            node: NodeMeans::default(),
        }
    }

    #[test]
    fn spoofed_sources_are_never_blocked_by_address() {
        let action = Action::XdpDropSource { sources: vec![], ttl_secs: 60 };
        let shown = preview(&action, &context(true));
        assert!(shown.refused.is_some_and(|why| why.contains("spoofed")));
        assert!(shown.do_.is_empty());
        assert_eq!(preview(&action, &context(false)).do_.len(), 1);
    }

    #[test]
    fn every_step_has_its_undo() {
        for json in [
            r#"{"type":"xdp_drop_source"}"#,
            r#"{"type":"xdp_rate_limit_source","pps":100}"#,
            r#"{"type":"xdp_drop_protocol","protocol":"udp"}"#,
            r#"{"type":"xdp_drop_port","protocol":"udp","port":123,"side":"source"}"#,
            r#"{"type":"xdp_rate_limit_target","bps":1000000}"#,
            r#"{"type":"nft_drop_protocol","protocol":"icmpv6"}"#,
            r#"{"type":"nft_drop_port","protocol":"tcp","port":80}"#,
            r#"{"type":"nft_drop_source"}"#,
            r#"{"type":"nft_rate_limit_source","pps":100}"#,
        ] {
            let action: Action = serde_json::from_str(json).expect(json);
            let shown = preview(&action, &context(false));
            assert_eq!((shown.do_.len(), shown.undo.len(), shown.objects.len()), (1, 1, 1), "{json}");
            assert_eq!(shown.refused, None, "{json}");
        }
    }

    #[test]
    fn a_broad_prefix_carries_a_warning() {
        let action: Action =
            serde_json::from_str(r#"{"type":"xdp_drop_source","sources":["10.0.0.0/8"]}"#).expect("valid");
        assert!(preview(&action, &context(false)).warnings.iter().any(|w| w.contains("10.0.0.0/8")));
    }
}
