//! Which of the two XDP programs an interface gets: the one for frames that lie in one buffer, or the one for frames in
//! several.
//!
//! Drivers refuse the first natively once a frame may be larger than a page, less the kernel's own parts; the second
//! asks a helper for the length of every frame, so that it is the choice only where it has to be.

use std::os::fd::AsRawFd as _;

use ftagent_common::vocab::AttachMode;

use super::kernel::{Feature, Support};

/// For frames in one buffer.
pub const LINEAR: &str = "ftagent_xdp";
/// For frames in several buffers.
pub const FRAGS: &str = "ftagent_xdp_frags";

/// The program at the tc hook, which sees socket buffers of any make.
pub const TC: &str = "ftagent_tc";

/// `XDP_PACKET_HEADROOM`, `struct skb_shared_info`, and an Ethernet header with two VLAN tags.
const NOT_FOR_DATA: u32 = 256 + 320 + 22;

/// The programs that are tried on an interface, the better one first.
pub(super) fn candidates(mode: AttachMode, interface: &str) -> &'static [&'static str] {
    order(mode, mtu(interface), single_buffer(), Support::here().has(Feature::LoadBytes))
}

/// What the driver thinks of the interface's MTU is known to the driver alone: a veth goes by its peer's, others by
/// their receive buffers. So the MTU decides the order, and a refusal leads on to the other program.
fn order(mode: AttachMode, mtu: Option<u32>, single_buffer: u32, has_frags: bool) -> &'static [&'static str] {
    // In generic mode the kernel copies such frames into one buffer first.
    if mode != AttachMode::Native || !has_frags {
        return &[LINEAR];
    }
    if mtu.is_some_and(|mtu| mtu > single_buffer) { &[FRAGS, LINEAR] } else { &[LINEAR, FRAGS] }
}

/// The largest MTU whose frames fit into a page.
fn single_buffer() -> u32 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    page.and_then(|page| u32::try_from(page).ok()).unwrap_or(4_096).saturating_sub(NOT_FOR_DATA)
}

/// The interface's MTU in bytes, in the network namespace of the caller; none if it cannot be asked for.
fn mtu(interface: &str) -> Option<u32> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // SAFETY: integers and arrays of integers alone, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    if interface.len() >= request.ifr_name.len() {
        return None;
    }
    for (to, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = byte as libc::c_char;
    }
    // SAFETY: the request is the structure of this call, and lives until it is over.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if result < 0 {
        return None;
    }
    // SAFETY: the member that a successful call of this kind fills in.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mtu_decides_which_program_is_tried_first() {
        const PAGE: u32 = 3_498;
        type Row = (&'static str, AttachMode, Option<u32>, bool, &'static [&'static str]);
        let rows: [Row; 6] = [
            ("an ordinary one", AttachMode::Native, Some(1_500), true, &[LINEAR, FRAGS]),
            ("the largest that fits", AttachMode::Native, Some(PAGE), true, &[LINEAR, FRAGS]),
            ("jumbo frames", AttachMode::Native, Some(9_000), true, &[FRAGS, LINEAR]),
            ("jumbo frames on an old kernel", AttachMode::Native, Some(9_000), false, &[LINEAR]),
            ("jumbo frames in generic mode", AttachMode::Generic, Some(9_000), true, &[LINEAR]),
            ("nobody knows", AttachMode::Native, None, true, &[LINEAR, FRAGS]),
        ];
        for (name, mode, mtu, has_frags, expected) in rows {
            assert_eq!(order(mode, mtu, PAGE, has_frags), expected, "{name}");
        }
    }

    #[test]
    fn the_loopback_device_has_an_mtu_and_nothing_has_none() {
        assert!(mtu("lo").is_some_and(|mtu| mtu >= 1_500));
        assert_eq!(mtu("no-such-device"), None);
        assert_eq!(mtu("a-name-that-is-longer-than-any"), None);
        assert!(single_buffer() >= 3_498);
    }
}
