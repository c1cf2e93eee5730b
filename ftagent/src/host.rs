//! What the node is: its interfaces, addresses, gateways and resolvers.
//!
//! The guard protects all of them from automated blocks, so that an answer that cannot be had is an error and never
//! an empty list.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
use rtnetlink::{IpVersion, RouteMessageBuilder};

use crate::netlink::Routing;

/// The most of `resolv.conf` that is read; resolvers themselves look at three lines.
const RESOLV_CONF_BYTES: u64 = 64 << 10;
/// The most resolvers that are believed.
const MAX_RESOLVERS: usize = 16;

/// Everything about the node that the guard and the datapath have to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// By index.
    pub interfaces: Vec<Interface>,
    /// Next hops of the default routes, with the interface's index.
    pub gateways: Vec<(IpAddr, u32)>,
    /// Name servers of `/etc/resolv.conf`; empty where the file does not exist.
    pub resolvers: Vec<IpAddr>,
}

/// One network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    /// Absent where the link has no Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Administratively up.
    pub up: bool,
    /// Largest datagram in bytes.
    pub mtu: u32,
    /// With the prefix length of the link.
    pub addresses: Vec<IpNet>,
    /// Index of the link that it is a part of: the bond or bridge above, else the link a VLAN lies on.
    pub parent: Option<u32>,
    /// One end of a pair of virtual links.
    pub is_veth: bool,
    pub kind: LinkKind,
    /// Index of the link that it lies on, as a VLAN does; none where that is in another network namespace.
    pub below: Option<u32>,
    /// Index of the bond, team or bridge that it is a port of.
    pub controller: Option<u32>,
}

/// What an interface is made of, as far as that decides where a program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkKind {
    /// Takes a program itself.
    #[default]
    Other,
    Vlan,
    Bond,
    Team,
}

/// Why the node's own facts are not known.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("cannot open a netlink socket: {0}; check the limit of open files and that AF_NETLINK is allowed")]
    Socket(io::Error),
    #[error(
        "the kernel did not list the {what}: {source}; the next look may succeed, until then nothing is blocked automatically"
    )]
    List { what: &'static str, source: rtnetlink::Error },
    #[error("{path}: cannot be read: {source}; make it readable, or list the resolvers in the agent's configuration")]
    Resolvers { path: String, source: io::Error },
}

impl HostFacts {
    /// The interface of this name.
    pub fn interface(&self, name: &str) -> Option<&Interface> {
        self.interfaces.iter().find(|i| i.name == name)
    }

    /// Every address of the node itself, as a whole address.
    pub fn own_addresses(&self) -> Vec<IpNet> {
        self.interfaces.iter().flat_map(|i| &i.addresses).map(|net| IpNet::from(net.addr())).collect()
    }
}

/// Asks the kernel of the calling thread's network namespace, and `/etc/resolv.conf`.
///
/// # Errors
/// The first question that had no answer.
pub async fn host_facts() -> Result<HostFacts, HostError> {
    let routing = Routing::open().map_err(HostError::Socket)?;
    let list = |what| move |source| HostError::List { what, source };

    let links: Vec<LinkMessage> =
        routing.handle.link().get().execute().try_collect().await.map_err(list("interfaces"))?;
    let mut interfaces: BTreeMap<u32, Interface> = links.iter().map(interface).map(|i| (i.index, i)).collect();

    let addresses: Vec<AddressMessage> =
        routing.handle.address().get().execute().try_collect().await.map_err(list("addresses"))?;
    for message in &addresses {
        if let (Some(net), Some(owner)) = (address(message), interfaces.get_mut(&message.header.index)) {
            owner.addresses.push(net);
        }
    }

    let mut gateways = Vec::new();
    for version in [IpVersion::V4, IpVersion::V6] {
        let question = match version {
            IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        let mut routes = routing.handle.route().get(question).execute();
        while let Some(route) = routes.try_next().await.map_err(list("routes"))? {
            gateways.extend(default_gateways(&route));
        }
    }
    gateways.sort_unstable();
    gateways.dedup();

    let resolvers = read_resolvers(Path::new("/etc/resolv.conf"))?;
    Ok(HostFacts { interfaces: interfaces.into_values().collect(), gateways, resolvers })
}

fn interface(link: &LinkMessage) -> Interface {
    let mut out =
        Interface { index: link.header.index, up: link.header.flags.contains(LinkFlags::Up), ..Interface::default() };
    let mut below = None;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => out.name.clone_from(name),
            LinkAttribute::Address(mac) => out.mac = mac.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => out.mtu = *mtu,
            LinkAttribute::Controller(index) => out.parent = Some(*index),
            LinkAttribute::Link(index) => below = Some(*index),
            // A veth's peer is named by the same attribute, in a namespace of its own or as a pair: not a parent.
            LinkAttribute::LinkInfo(infos) if is_veth(infos) => below = None,
            _ => {}
        }
    }
    out.is_veth = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkInfo(infos) if is_veth(infos)));
    let elsewhere = link.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
    out.controller = out.parent;
    if !out.is_veth && !elsewhere {
        out.below = below.filter(|&index| index != 0 && index != out.index);
    }
    out.parent = out.parent.or(out.below);
    out.kind = link.attributes.iter().find_map(kind).unwrap_or_default();
    out
}

fn kind(attribute: &LinkAttribute) -> Option<LinkKind> {
    use rtnetlink::packet_route::link::{InfoKind, LinkInfo};
    let LinkAttribute::LinkInfo(infos) = attribute else { return None };
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Vlan) => Some(LinkKind::Vlan),
        LinkInfo::Kind(InfoKind::Bond) => Some(LinkKind::Bond),
        LinkInfo::Kind(InfoKind::Team) => Some(LinkKind::Team),
        _ => None,
    })
}

fn is_veth(infos: &[rtnetlink::packet_route::link::LinkInfo]) -> bool {
    use rtnetlink::packet_route::link::{InfoKind, LinkInfo};
    infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth)))
}

/// The local address: on a point-to-point link `Address` is the other side's.
fn address(message: &AddressMessage) -> Option<IpNet> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let remote = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    IpNet::new(local.or(remote)?, message.header.prefix_len).ok()
}

/// The next hops of a default route in any table; nothing for other routes.
fn default_gateways(route: &RouteMessage) -> Vec<(IpAddr, u32)> {
    if route.header.destination_prefix_length != 0 || route.header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut found = Vec::new();
    let index = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
    };
    found.extend(next_hop(&route.attributes).zip(index(&route.attributes)));
    for attribute in &route.attributes {
        if let RouteAttribute::MultiPath(hops) = attribute {
            found.extend(hops.iter().filter_map(|hop| Some((next_hop(&hop.attributes)?, hop.interface_index))));
        }
    }
    found
}

fn next_hop(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
            Some((*ip).into())
        }
        _ => None,
    })
}

fn read_resolvers(path: &Path) -> Result<Vec<IpAddr>, HostError> {
    let failed = |source| HostError::Resolvers { path: path.display().to_string(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(RESOLV_CONF_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(parse_resolvers(&String::from_utf8_lossy(&bytes)))
}

/// The addresses on `nameserver` lines (resolv.conf(5)), in order and once each; a zone after `%` is left out.
fn parse_resolvers(text: &str) -> Vec<IpAddr> {
    let mut resolvers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some("nameserver"), Some(word)) = (words.next(), words.next()) else { continue };
        let Ok(ip) = word.split('%').next().unwrap_or(word).parse::<IpAddr>() else { continue };
        if !resolvers.contains(&ip) && resolvers.len() < MAX_RESOLVERS {
            resolvers.push(ip);
        }
    }
    resolvers
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::netlink::Changes;
    use crate::test_ground::{in_an_empty_network, run};

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(future)
    }

    #[test]
    fn resolvers_are_the_addresses_on_nameserver_lines() {
        let text = "# nameserver 192.0.2.9\nsearch example.org\nnameserver 192.0.2.1 # first\n  nameserver\t2001:db8::1\n\
                    nameserver fe80::1%eth0\nnameserver bogus\nnameserver\nnameserver 192.0.2.1\nnameservers 192.0.2.8";
        let expected: Vec<IpAddr> = ["192.0.2.1", "2001:db8::1", "fe80::1"].map(|ip| ip.parse().unwrap()).into();
        assert_eq!(parse_resolvers(text), expected);
        let many: String = (0..100).map(|n| format!("nameserver 192.0.2.{n}\n")).collect();
        assert_eq!(parse_resolvers(&many).len(), MAX_RESOLVERS);
    }

    #[test]
    fn a_missing_resolv_conf_is_no_resolver_and_an_unreadable_one_an_error() {
        assert_eq!(read_resolvers(Path::new("/nonexistent/resolv.conf")).unwrap(), Vec::<IpAddr>::new());
        let error = read_resolvers(Path::new("/")).unwrap_err().to_string();
        assert!(error.contains("/: cannot be read"), "{error}");
    }

    #[test]
    fn addresses_gateways_and_parents_are_those_of_the_kernel() {
        in_an_empty_network(|| {
            run("ip", &["link", "add", "ft0", "address", "02:00:00:00:00:01", "type", "veth", "peer", "name", "ft1"]);
            run("ip", &["link", "add", "br0", "type", "bridge"]);
            run("ip", &["link", "set", "ft1", "master", "br0"]);
            run("ip", &["link", "add", "link", "ft0", "name", "mv0", "type", "macvlan"]);
            run("ip", &["addr", "add", "192.0.2.10/24", "dev", "ft0"]);
            run("ip", &["addr", "add", "2001:db8::10/64", "dev", "ft0", "nodad"]);
            run("ip", &["link", "set", "ft0", "mtu", "1400", "up"]);
            run("ip", &["link", "set", "ft1", "up"]);
            run("ip", &["route", "add", "default", "via", "192.0.2.1"]);
            run("ip", &["route", "add", "198.51.100.0/24", "via", "192.0.2.77"]);
            run("ip", &["-6", "route", "add", "default", "via", "2001:db8::1"]);
            let facts = block_on(host_facts()).unwrap();
            let ft0 = facts.interface("ft0").expect("ft0");
            assert_eq!((ft0.mac, ft0.up, ft0.mtu), (Some([2, 0, 0, 0, 0, 1]), true, 1400));
            assert!(ft0.addresses.contains(&"192.0.2.10/24".parse().unwrap()), "{ft0:?}");
            assert!(ft0.addresses.contains(&"2001:db8::10/64".parse().unwrap()), "{ft0:?}");
            assert_eq!((ft0.parent, ft0.below), (None, None), "a veth's peer is not a parent");
            assert_eq!(facts.interface("mv0").unwrap().parent, Some(ft0.index));
            assert_eq!(facts.interface("mv0").unwrap().below, Some(ft0.index));
            let ft1 = facts.interface("ft1").unwrap();
            assert_eq!(ft1.parent, Some(facts.interface("br0").unwrap().index));
            assert_eq!((ft1.controller, ft1.below), (ft1.parent, None));
            let gateways = ["192.0.2.1", "2001:db8::1"].map(|ip| (ip.parse().unwrap(), ft0.index));
            assert_eq!(facts.gateways, gateways);
            assert!(facts.own_addresses().contains(&"192.0.2.10/32".parse().unwrap()));
        });
    }

    #[test]
    fn all_hops_of_a_multipath_default_route_are_gateways() {
        in_an_empty_network(|| {
            run("ip", &["link", "add", "ft0", "type", "veth", "peer", "name", "ft1"]);
            run("ip", &["addr", "add", "192.0.2.10/24", "dev", "ft0"]);
            run("ip", &["link", "set", "ft0", "up"]);
            run("ip", &["route", "add", "default", "nexthop", "via", "192.0.2.1", "nexthop", "via", "192.0.2.2"]);
            let facts = block_on(host_facts()).unwrap();
            let hops: Vec<IpAddr> = facts.gateways.iter().map(|(ip, _)| *ip).collect();
            assert_eq!(hops, ["192.0.2.1", "192.0.2.2"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        });
    }

    #[test]
    fn a_new_address_is_told_once() {
        in_an_empty_network(|| {
            run("ip", &["link", "add", "ft0", "type", "veth", "peer", "name", "ft1"]);
            block_on(async {
                let mut changes = Changes::subscribe().unwrap();
                let quiet = tokio::time::timeout(Duration::from_millis(300), changes.changed()).await;
                assert!(quiet.is_err(), "nothing changed yet");
                run("ip", &["addr", "add", "192.0.2.10/24", "dev", "ft0"]);
                run("ip", &["link", "set", "ft0", "up"]);
                let told = tokio::time::timeout(Duration::from_secs(5), changes.changed()).await;
                assert_eq!(told, Ok(true));
                let facts = host_facts().await.unwrap();
                assert!(facts.own_addresses().contains(&"192.0.2.10/32".parse().unwrap()));
            });
        });
    }
}
