//! Peers that are set up with the tools of an administrator, in one transaction each where the tool has them.

use std::fmt::Write as _;
use std::fs;

use anyhow::Context;

use super::peer::{Holds, Peer, Standing};
use super::site::Site;
use super::tool;
use crate::generator::Listed;

/// More rules than that one after the other are not worth anybody's time.
const MOST_RULES: u32 = 1_000;
const NETWORKS: Holds = Holds::Networks { at_most: Listed::MAX };
const ADDRESSES: Holds = Holds::Addresses { at_most: Listed::MAX };

struct Row {
    name: &'static str,
    title: &'static str,
    holds: Holds,
    set_up: fn(&Site, Listed) -> anyhow::Result<()>,
}

pub(super) fn all() -> Vec<Box<dyn Peer>> {
    let rows = [
        Row { name: "blackhole", title: "blackhole routes + rp_filter", holds: NETWORKS, set_up: blackhole },
        Row {
            name: "iptables",
            title: "iptables raw, a rule each",
            holds: Holds::Networks { at_most: MOST_RULES },
            set_up: iptables,
        },
        Row {
            name: "ipset-net",
            title: "iptables raw + ipset hash:net",
            holds: NETWORKS,
            set_up: |s, l| ipset(s, l, "net"),
        },
        Row {
            name: "ipset-ip",
            title: "iptables raw + ipset hash:ip",
            holds: ADDRESSES,
            set_up: |s, l| ipset(s, l, "ip"),
        },
        Row {
            name: "nft-raw",
            title: "nftables raw, set of networks",
            holds: NETWORKS,
            set_up: |s, l| nft(s, l, RAW, true),
        },
        Row {
            name: "nft-netdev",
            title: "nftables netdev, set of networks",
            holds: NETWORKS,
            set_up: |s, l| nft(s, l, NETDEV, true),
        },
        Row {
            name: "nft-netdev-ip",
            title: "nftables netdev, set of addresses",
            holds: ADDRESSES,
            set_up: |s, l| nft(s, l, NETDEV, false),
        },
    ];
    rows.into_iter().map(|row| Box::new(row) as Box<dyn Peer>).collect()
}

impl Peer for Row {
    fn name(&self) -> &str {
        self.name
    }

    fn title(&self) -> &str {
        self.title
    }

    fn holds(&self) -> Holds {
        self.holds
    }

    fn set_up(&self, site: &Site, blocked: Listed) -> anyhow::Result<Standing> {
        site.receive_without_xdp()?;
        (self.set_up)(site, blocked)?;
        Ok(Box::new(()))
    }
}

/// Routes of the sources lead nowhere, and a packet whose source has no way back is dropped.
fn blackhole(site: &Site, blocked: Listed) -> anyhow::Result<()> {
    let ip = tool::find("ip", "iproute2")?;
    let routes = lines(blocked, |line, network| writeln!(line, "route add blackhole {network}"));
    tool::run(site, &ip, &["-batch", "-"], &routes)?;
    let set = site.edge.run(|| fs::write(format!("/proc/sys/net/ipv4/conf/{}/rp_filter", site.device.name), "1"))?;
    set.context("rp_filter cannot be switched on")
}

fn iptables(site: &Site, blocked: Listed) -> anyhow::Result<()> {
    let restore = tool::find("iptables-restore", "iptables")?;
    let rules = lines(blocked, |line, network| writeln!(line, "-A PREROUTING -s {network} -j DROP"));
    tool::run(site, &restore, &[], &format!("*raw\n{rules}COMMIT\n"))
}

fn ipset(site: &Site, blocked: Listed, kind: &str) -> anyhow::Result<()> {
    let restore = tool::find("iptables-restore", "iptables")?;
    let ipset = tool::find("ipset", "ipset")?;
    let count = blocked.count();
    let mut input = format!("create blocked hash:{kind} family inet hashsize {} maxelem {count}\n", count.max(64));
    input += &lines(blocked, |line, network| writeln!(line, "add blocked {network}"));
    tool::run(site, &ipset, &["restore"], &input)?;
    let rule = "*raw\n-A PREROUTING -m set --match-set blocked src -j DROP\nCOMMIT\n";
    tool::run(site, &restore, &[], rule)
}

/// A family of tables and where its chain hooks in.
type Place = (&'static str, &'static str);
const RAW: Place = ("ip", "type filter hook prerouting priority raw;");
const NETDEV: Place = ("netdev", "type filter hook ingress device \"edge0\" priority 0;");

fn nft(site: &Site, blocked: Listed, (family, hook): Place, are_networks: bool) -> anyhow::Result<()> {
    let nft = tool::find("nft", "nftables")?;
    let flags = if are_networks { "flags interval; " } else { "" };
    let mut elements =
        lines(
            blocked,
            |line, network| {
                if are_networks { writeln!(line, "{network},") } else { writeln!(line, "{},", network.addr()) }
            },
        );
    elements.truncate(elements.trim_end_matches(",\n").len());
    let ruleset = format!(
        "table {family} lab {{
            set blocked {{ type ipv4_addr; {flags}elements = {{ {elements} }}; }}
            chain incoming {{ {hook} policy accept; ip saddr @blocked drop; }}
        }}
"
    );
    tool::run(site, &nft, &["-f", "-"], &ruleset)
}

/// A line for each entry.
fn lines(blocked: Listed, write: impl Fn(&mut String, ipnet::Ipv4Net) -> std::fmt::Result) -> String {
    let mut text = String::new();
    for network in blocked.networks() {
        write(&mut text, network).expect("a string takes any text");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generator::Entries;

    #[test]
    fn a_list_has_a_line_for_each_entry() {
        let text = lines(Listed::new(Entries::Networks, 2), |line, network| writeln!(line, "add {network}"));
        let expected: Vec<String> = Listed::new(Entries::Networks, 2).networks().map(|n| format!("add {n}")).collect();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }
}
