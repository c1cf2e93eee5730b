//! Machines that run the agent.

use ftagent_common::api::{DeployRequest, Heartbeat};
use ftagent_common::vocab::NodeStatus;
use serde::Serialize;
use uuid::Uuid;

use super::problem::Check;
use super::{Problem, Timestamp};

/// Three heartbeats of 30 s: a node that was not heard for this long is offline.
pub const HEARTBEAT_GRACE_SECS: i64 = 90;

/// Above this share of a threshold a node is elevated.
const ELEVATED_RATIO: f64 = 0.7;

/// How a node is at `now`. One that is not heard of is offline even with an incident open: nobody knows better.
pub fn node_status(now: Timestamp, last_seen: Option<Timestamp>, active_incidents: u32, ratio: f64) -> NodeStatus {
    match last_seen {
        None => NodeStatus::Offline,
        Some(seen) if now.secs_since(seen) >= HEARTBEAT_GRACE_SECS => NodeStatus::Offline,
        Some(_) if active_incidents > 0 => NodeStatus::Attack,
        Some(_) if ratio > ELEVATED_RATIO => NodeStatus::Elevated,
        Some(_) => NodeStatus::Online,
    }
}

/// A machine that becomes a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployment(DeployRequest);

impl Deployment {
    /// # Errors
    /// A name of other than 1 to 128 characters, other texts over 128 (`ip`, `interface`: 64), an `ip` that is no
    /// address.
    pub fn check(request: DeployRequest) -> Result<Self, Problem> {
        let mut check = Check::default();
        check.line("name", &request.name, 1, 128);
        check.line("location", &request.location, 0, 128);
        check.line("os", &request.os, 0, 128);
        check.line("interface", &request.interface, 0, 64);
        check_ip(&mut check, &request.ip);
        check.done().map(|()| Self(request))
    }

    pub const fn request(&self) -> &DeployRequest {
        &self.0
    }
}

fn check_ip(check: &mut Check, ip: &str) {
    check.that(ip.is_empty() || ip.parse::<std::net::IpAddr>().is_ok(), "ip", || {
        "must be an IPv4 or IPv6 address".to_owned()
    });
}

/// What to change of a node; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePatch {
    pub name: Option<String>,
    pub ip: Option<String>,
    pub location: Option<String>,
    pub os: Option<String>,
    pub interface: Option<String>,
}

impl NodePatch {
    /// # Errors
    /// As [`Deployment::check`].
    pub fn check(self) -> Result<Self, Problem> {
        let mut check = Check::default();
        for (field, text, min, max) in [
            ("name", &self.name, 1, 128),
            ("location", &self.location, 0, 128),
            ("os", &self.os, 0, 128),
            ("interface", &self.interface, 0, 64),
        ] {
            if let Some(text) = text {
                check.line(field, text, min, max);
            }
        }
        if let Some(ip) = &self.ip {
            check_ip(&mut check, ip);
        }
        check.done().map(|()| self)
    }
}

/// A node as it is kept, with its status at the time of reading.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct Node {
    pub uuid: Uuid,
    pub name: String,
    pub ip: String,
    pub location: String,
    pub os: String,
    pub interface: String,
    pub status: NodeStatus,
    pub created_at: Timestamp,
    /// The last heartbeat; absent before the first.
    pub last_seen: Option<Timestamp>,
    pub agent_version: Option<String>,
    pub active_incidents: u32,
    /// The configuration version that the node should have.
    pub config_version: u64,
    /// The one it said it has.
    pub applied_version: u64,
    /// What it said last: attach mode per interface, baseline, map occupancy, queue, warnings.
    #[schema(value_type = Option<Object>)]
    pub heartbeat: Option<Heartbeat>,
}

/// Which nodes are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFilter {
    pub status: Option<NodeStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_offline_after_three_missed_heartbeats() {
        let now = Timestamp::from_secs(1_000);
        let seen = |ago: i64| Some(now.plus_secs(-ago));
        let table = [
            ("never heard", None, 0, 0.0, NodeStatus::Offline),
            ("just heard", seen(0), 0, 0.0, NodeStatus::Online),
            ("89 s ago", seen(89), 0, 0.0, NodeStatus::Online),
            ("90 s ago", seen(90), 0, 0.0, NodeStatus::Offline),
            ("a clock ahead", seen(-500), 0, 0.0, NodeStatus::Online),
            ("under attack", seen(1), 1, 0.9, NodeStatus::Attack),
            ("attacked, then silent", seen(90), 1, 0.9, NodeStatus::Offline),
            ("at 70 %", seen(1), 0, 0.7, NodeStatus::Online),
            ("above 70 %", seen(1), 0, 0.71, NodeStatus::Elevated),
        ];
        for (name, last_seen, incidents, ratio, expected) in table {
            assert_eq!(node_status(now, last_seen, incidents, ratio), expected, "{name}");
        }
    }
}
