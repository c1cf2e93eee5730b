//! Two namespaces and one wire, as most tests want them.

use std::net::IpAddr;

use bpf_tests::netns::Netns;
use bpf_tests::veth::{self, Device, EndSpec};

pub(crate) struct Lab {
    pub(crate) edge: Netns,
    pub(crate) wan: Netns,
    pub(crate) edge0: Device,
    pub(crate) wan0: Device,
}

pub(crate) const EDGE_V4: [u8; 4] = [10, 99, 0, 1];
pub(crate) const WAN_V4: [u8; 4] = [10, 99, 0, 2];
pub(crate) const EDGE_V6: [u16; 8] = [0xfd99, 0, 0, 0, 0, 0, 0, 1];
pub(crate) const WAN_V6: [u16; 8] = [0xfd99, 0, 0, 0, 0, 0, 0, 2];
pub(crate) const EDGE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_queues(1)
    }

    /// As many queues at either end: a device takes frames of as many CPUs at once.
    pub(crate) fn with_queues(queues: u32) -> Self {
        let edge = Netns::create("edge").expect("a namespace");
        let wan = Netns::create("wan").expect("a namespace");
        let spec = |name: &str, mac, v4: [u8; 4], v6: [u16; 8]| EndSpec {
            name: name.to_owned(),
            mac,
            addresses: vec![(IpAddr::from(v4), 24), (IpAddr::from(v6), 64)],
            queues,
            default_route: true,
        };
        let edge_end = spec("edge0", EDGE_MAC, EDGE_V4, EDGE_V6);
        let wan_end = spec("wan0", WAN_MAC, WAN_V4, WAN_V6);
        let (edge0, wan0) = veth::connect((&edge, &edge_end), (&wan, &wan_end)).expect("a wire");
        Self { edge, wan, edge0, wan0 }
    }
}
