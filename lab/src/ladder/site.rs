//! Where one peer stands: a namespace at the end of a wire.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;

use crate::bpffs::LabDir;
use crate::ethtool;
use crate::netns::Netns;
use crate::veth::{self, Device, EndSpec};

/// The same at every site, so that one template serves all.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const WAN: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// A namespace with one device that is flooded, and a directory with a BPF file system.
pub struct Site {
    pub edge: Netns,
    /// `edge0`, in `edge`.
    pub device: Device,
    /// The other end, in the generator's namespace.
    pub wan: Device,
    dir: LabDir,
}

impl Site {
    /// Makes it, with its wire from `wan`; `number` is its own.
    ///
    /// # Errors
    /// Namespace, directory or wire cannot be made.
    pub fn build(wan: &Netns, number: u32) -> anyhow::Result<Self> {
        let edge = Netns::create("edge")?;
        let dir = LabDir::create("ladder").context("cannot make a directory with a BPF file system")?;
        let end = |name: String, mac, address: Ipv4Addr, default_route| EndSpec {
            name,
            mac,
            addresses: vec![(IpAddr::V4(address), 24)],
            queues: 1,
            default_route,
        };
        let near = end("edge0".into(), MAC, ADDRESS, true);
        let far = end(format!("wan{number}"), [0x02, 0, 0, 0, 0, 0x02], WAN, false);
        let (device, wan) = veth::connect((&edge, &near), (wan, &far))?;
        Ok(Self { edge, device, wan, dir })
    }

    /// Lets the device take the generator's frames although it has no native XDP program.
    ///
    /// # Errors
    /// The kernel has no netlink interface to device features (5.8).
    pub fn receive_without_xdp(&self) -> anyhow::Result<()> {
        let on = self.edge.run(|| ethtool::receive_offload_on(self.device.index))?;
        on.context("receive offload cannot be switched on, without which the device takes no frames")
    }

    /// A directory for files of the peer.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Where this site's own BPF file system is mounted.
    pub fn bpf(&self) -> std::path::PathBuf {
        self.dir.bpf()
    }

    /// UDP packets that came as far as the UDP layer since the namespace was made.
    pub(super) fn leaked(&self) -> anyhow::Result<u64> {
        let text = self.edge.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
        udp_received(&text).context("the kernel's UDP counters have another form")
    }
}

/// Every packet that UDP saw, delivered or not, of /proc/net/snmp.
fn udp_received(snmp: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?.split_whitespace(), lines.next()?.split_whitespace());
    let wanted = names.zip(values).filter(|(name, _)| matches!(*name, "InDatagrams" | "NoPorts" | "InErrors"));
    wanted.map(|(_, value)| value.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_packet_of_udp_counts_wherever_it_ended() {
        let text = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts InErrors OutDatagrams\nUdp: 5 70 2 9\nUdpLite: NoPorts\nUdpLite: 4\n";
        assert_eq!(udp_received(text), Some(77));
        assert_eq!(udp_received("Ip: 1\n"), None);
    }
}
