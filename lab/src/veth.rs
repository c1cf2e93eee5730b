//! One wire between two namespaces: addresses, static neighbours, nothing that talks by itself.
//!
//! Link-local addresses, router solicitations, duplicate address detection, address resolution and with it multicast
//! listener reports are off, and neighbours are permanent: every frame on the wire was sent by the test.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

use crate::netns::{Netns, NetnsError};
use crate::rtnl::{End, Rtnl};

/// What one end shall be.
#[derive(Clone, Debug)]
pub struct EndSpec {
    /// Device name, at most 15 bytes.
    pub name: String,
    pub mac: [u8; 6],
    /// Addresses with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Receive and transmit queues, each; at least 1.
    pub queues: u32,
    /// The device's default routes lead to the other end's first address of each family.
    pub default_route: bool,
}

/// One end as it was made.
#[derive(Clone, Debug)]
pub struct Device {
    pub name: String,
    /// Valid in the end's own namespace.
    pub index: u32,
    pub mac: [u8; 6],
}

/// Frames that the kernel counted at a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// Why a wire could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VethError {
    #[error("cannot {action} on {device}")]
    Setup {
        device: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Makes a veth pair, one end in each namespace, configures both ends and sets them up.
///
/// The pair goes with either namespace.
///
/// # Errors
/// Names the device and the step that failed.
pub fn connect(near: (&Netns, &EndSpec), far: (&Netns, &EndSpec)) -> Result<(Device, Device), VethError> {
    let far_file = far.0.open()?;
    near.0.run(|| {
        prepare_defaults()
            .and_then(|()| Rtnl::open()?.add_veth(&end(near.1), &end(far.1), far_file.as_fd()))
            .map_err(|source| VethError::Setup { device: near.1.name.clone(), action: "make the pair", source })
    })??;
    let a = near.0.run(|| configure(near.1, far.1))??;
    let b = far.0.run(|| configure(far.1, near.1))??;
    for (netns, spec) in [near, far] {
        netns.run(|| add_routes(spec, if std::ptr::eq(spec, near.1) { far.1 } else { near.1 }))??;
    }
    Ok((a, b))
}

/// Reads the kernel's counters of a device.
///
/// # Errors
/// The namespace or the device is gone.
pub fn stats(netns: &Netns, device: &Device) -> Result<DeviceStats, VethError> {
    let read = netns.run(|| Rtnl::open()?.stats(device.index))?;
    let s =
        read.map_err(|source| VethError::Setup { device: device.name.clone(), action: "read the statistics", source })?;
    Ok(DeviceStats {
        rx_packets: s.rx_packets,
        tx_packets: s.tx_packets,
        rx_dropped: s.rx_dropped,
        tx_dropped: s.tx_dropped,
    })
}

fn end(spec: &EndSpec) -> End<'_> {
    End { name: &spec.name, mac: spec.mac, queues: spec.queues }
}

/// What devices made later in this namespace begin with.
fn prepare_defaults() -> io::Result<()> {
    quiet_ipv6("default")
}

fn quiet_ipv6(device: &str) -> io::Result<()> {
    let folder = format!("/proc/sys/net/ipv6/conf/{device}");
    if !Path::new("/proc/sys/net/ipv6").exists() {
        // A machine that was started without IPv6 is quiet already.
        return Ok(());
    }
    // 1 = no link-local address is made up.
    for (key, value) in [("addr_gen_mode", "1"), ("accept_dad", "0"), ("accept_ra", "0"), ("router_solicitations", "0")]
    {
        fs::write(format!("{folder}/{key}"), value)?;
    }
    Ok(())
}

fn configure(own: &EndSpec, other: &EndSpec) -> Result<Device, VethError> {
    let fail = |action: &'static str| {
        let device = own.name.clone();
        move |source| VethError::Setup { device: device.clone(), action, source }
    };
    let rtnl = Rtnl::open().map_err(fail("open netlink"))?;
    let index =
        nix::net::if_::if_nametoindex(own.name.as_str()).map_err(io::Error::from).map_err(fail("find the device"))?;
    quiet_ipv6(&own.name).map_err(fail("silence IPv6"))?;
    // Forged sources have no route back by this device; they must still reach the socket layer.
    for key in ["all", &own.name] {
        fs::write(format!("/proc/sys/net/ipv4/conf/{key}/rp_filter"), "0").map_err(fail("switch off rp_filter"))?;
    }
    rtnl.set_silent(&own.name).map_err(fail("switch off address resolution"))?;
    rtnl.set_up(&own.name).map_err(fail("set the device up"))?;
    for &(address, prefix_len) in &own.addresses {
        rtnl.add_address(index, address, prefix_len).map_err(fail("add an address"))?;
    }
    for &(address, _) in &other.addresses {
        rtnl.add_neighbour(index, address, other.mac).map_err(fail("add a neighbour"))?;
    }
    Ok(Device { name: own.name.clone(), index, mac: own.mac })
}

/// After both ends are up: a route needs a carrier.
fn add_routes(own: &EndSpec, other: &EndSpec) -> Result<(), VethError> {
    if !own.default_route {
        return Ok(());
    }
    let fail = |source| VethError::Setup { device: own.name.clone(), action: "add the default route", source };
    let rtnl = Rtnl::open().map_err(fail)?;
    let index = nix::net::if_::if_nametoindex(own.name.as_str()).map_err(io::Error::from).map_err(fail)?;
    let first = |v4: bool| other.addresses.iter().map(|&(a, _)| a).find(|a| a.is_ipv4() == v4);
    for gateway in [first(true), first(false)].into_iter().flatten() {
        rtnl.add_default_route(index, gateway).map_err(fail)?;
    }
    Ok(())
}
