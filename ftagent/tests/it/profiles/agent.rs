//! The agent's part for profiles, driven as the daemon drives it.

use std::path::Path;
use std::time::Duration;

use ftagent::profile::{Event, Friends, Options, ProfileOrder, ProfileStatus, Profiles, Tools};
use ftagent_common::api::{
    AckStatus, CommandAck, CustomRule, Kept, NodeCommand, Order, ProfileReport, ProfileRule, Suite,
};
use serde::Deserialize;
use uuid::Uuid;

use super::site::CONTROL_PLANE;

pub(super) const PROFILES: [&str; 11] = [
    "game_server",
    "hosting_provider",
    "isp",
    "saas",
    "ecommerce",
    "fintech",
    "small_operator",
    "msp",
    "edge_node",
    "router",
    "game_studio",
];

/// The control plane's file of a profile.
pub(super) fn rules(profile: &str) -> Vec<ProfileRule> {
    #[derive(Deserialize)]
    struct Told {
        rules: Vec<ProfileRule>,
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../controlplane/src/domain/profile/profiles");
    let text = std::fs::read_to_string(folder.join(format!("{profile}.toml"))).unwrap();
    toml::from_str::<Told>(&text).unwrap().rules
}

/// Whom the node keeps: ports and addresses, and who is connected.
pub(super) fn friends(ports: &[u16], sources: &[&str], in_use: &[&str]) -> Friends {
    let nets = |ips: &[&str]| ips.iter().map(|ip| format!("{ip}/32").parse().unwrap()).collect();
    let kept = Kept { ports: ports.to_vec(), sources: nets(sources) };
    Friends { kept, allow: vec![], in_use: Kept { ports: vec![], sources: nets(in_use) } }
}

/// The node's state on disk, and which boot it is.
pub(super) struct Agent {
    runtime: tokio::runtime::Runtime,
    pub(super) profiles: Profiles,
}

impl Agent {
    pub(super) fn start(state: &Path, boot: &str) -> Self {
        Self::with(state, boot, Tools::default())
    }

    pub(super) fn with(state: &Path, boot: &str, tools: Tools) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let friends = friends(&[], &[CONTROL_PLANE], &[]);
        let options =
            Options { state_dir: state.into(), boot: boot.to_owned(), friends, ssh: "/nonexistent".into(), tools };
        let profiles = Profiles::start(options).unwrap();
        Self { runtime, profiles }
    }

    pub(super) fn event(&mut self) -> Event {
        let next = async { tokio::time::timeout(Duration::from_secs(180), self.profiles.next()).await };
        self.runtime.block_on(next).expect("an event in time").expect("the thread lives")
    }

    pub(super) fn order(&mut self, order: Order) -> CommandAck {
        let command_id = Uuid::new_v4();
        assert!(self.profiles.take_command(&NodeCommand { command_id, order }));
        loop {
            // What an agent before it left half done may be told first.
            if let Event::Ack(ack) = self.event() {
                assert_eq!(ack.command_id, command_id);
                return ack;
            }
        }
    }

    pub(super) fn report(&mut self) -> ProfileReport {
        match self.event() {
            Event::Report(report) => report,
            Event::Ack(ack) => panic!("{ack:?} instead of a report"),
        }
    }

    pub(super) fn confirm(&mut self, application: u128) -> CommandAck {
        self.order(Order::ConfirmProfile { application: Uuid::from_u128(application) })
    }

    pub(super) fn roll_back(&mut self, application: u128) {
        let ack = self.order(Order::RollBackProfile { application: Uuid::from_u128(application) });
        assert_eq!(ack.status, AckStatus::Applied, "{ack:?}");
        assert_eq!(self.profiles.status(), None);
    }

    pub(super) fn by_hand(&mut self, order: ProfileOrder) -> ftagent::engine::OrderOutcome {
        let outcome = self.profiles.order(order);
        self.runtime.block_on(outcome).unwrap()
    }

    pub(super) fn status(&self) -> ProfileStatus {
        self.profiles.status().expect("a profile")
    }

    /// Waits until nothing is under way, and answers whether there is a profile then.
    pub(super) fn settles(&self) -> bool {
        let settled = || self.profiles.status().is_none_or(|s| s.phase == "trial" || s.phase == "confirmed");
        super::site::wait("it settles", Duration::from_secs(180), settled);
        self.profiles.status().is_some()
    }
}

pub(super) fn apply(application: u128, profile: &str, suite: Suite, custom: &[&str]) -> Order {
    let custom = custom.iter().map(|cmd| CustomRule { cmd: (*cmd).to_owned(), title: "mine".to_owned() });
    Order::ApplyProfile {
        application: Uuid::from_u128(application),
        profile: profile.to_owned(),
        suite,
        rules: rules(profile),
        custom: custom.collect(),
        keep: Kept::default(),
        confirm_secs: 600,
    }
}

/// An operator's own rules in each suite.
pub(super) fn own(suite: Suite) -> &'static [&'static str] {
    match suite {
        Suite::Iptables => &[
            "iptables -A INPUT -p udp -m multiport --dports 19,1900 -j DROP",
            "ip6tables -A INPUT -s 2001:db8:1::/48 -j REJECT --reject-with icmp6-port-unreachable",
            "iptables -A FORWARD -p tcp --syn -m hashlimit --hashlimit-above 10/sec --hashlimit-burst 20 --hashlimit-mode \
             srcip --hashlimit-name mine -j DROP",
        ],
        Suite::Nftables => &[
            "nft add rule inet ftagent_profile input udp dport { 19, 1900 } counter drop",
            "nft add rule inet ftagent_profile forward ip saddr 198.51.100.0/24 limit rate over 10/second drop",
        ],
        Suite::Ufw => &["ufw deny proto udp from any to any port 19", "ufw deny from 2001:db8:1::/48 to any"],
        Suite::Firewalld => &["firewall-cmd --direct --add-rule ipv4 filter INPUT 0 -p udp --dport 19 -j DROP"],
    }
}
