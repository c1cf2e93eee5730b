//! The one feature of a device that the lab switches: generic receive offload. Needs kernel 5.8.
//!
//! A veth device polls for frames that XDP sent to it only while it has a native XDP program or this feature.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// `GENL_ID_CTRL` and `CTRL_CMD_GETFAMILY`, with the attributes of a family's name and number.
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// `ETHTOOL_MSG_FEATURES_SET` of linux/ethtool_netlink.h, and its attributes from the outside to the inside.
const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const HEADER_DEV_INDEX: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;
const NESTED: u16 = 1 << 15;

/// Lengths of the two headers before the attributes.
const NETLINK_HEADER: usize = 16;
const HEADERS: usize = NETLINK_HEADER + 4;

/// Switches generic receive offload of a device of the calling thread's network namespace on.
pub(crate) fn receive_offload_on(index: u32) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let answer = ask(&socket, &request(CONTROL, GET_FAMILY, 0, &attribute(FAMILY_NAME, b"ethtool\0")))?;
    let family = find(answer.get(HEADERS..).unwrap_or_default(), FAMILY_ID)
        .and_then(|value| value.first_chunk())
        .map(|value| u16::from_ne_bytes(*value))
        .ok_or_else(|| io::Error::other("the kernel gave no number for its ethtool messages"))?;

    let bit = [attribute(BIT_NAME, b"rx-gro\0"), attribute(BIT_VALUE, &[])].concat();
    let bits = attribute(BITSET_BITS | NESTED, &attribute(BITS_BIT | NESTED, &bit));
    let header = attribute(HEADER_DEV_INDEX, &index.to_ne_bytes());
    let body = [attribute(FEATURES_HEADER | NESTED, &header), attribute(FEATURES_WANTED | NESTED, &bits)].concat();
    ask(&socket, &request(family, FEATURES_SET, NLM_F_ACK, &body)).map(drop)
}

fn request(kind: u16, command: u8, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let mut message = ((HEADERS + attributes.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port, then the generic header: command, version, two bytes of nothing.
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    message
}

/// One attribute, padded to four bytes.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *attributes {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & !NESTED == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..)?;
    }
    None
}

/// Sends and reads one answer, or the error that it is.
fn ask(socket: &Socket, message: &[u8]) -> io::Result<Vec<u8>> {
    const ERROR: u16 = 2;
    socket.send(message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).map(|k| u16::from_ne_bytes([k[0], k[1]]));
    if kind == Some(ERROR) {
        let code = answer.get(NETLINK_HEADER..HEADERS).and_then(|code| code.first_chunk());
        match i32::from_ne_bytes(*code.ok_or(io::ErrorKind::UnexpectedEof)?) {
            0 => {}
            negative => return Err(io::Error::from_raw_os_error(-negative)),
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_is_found_among_others() {
        let attributes = [attribute(7, b"abc"), attribute(FAMILY_ID, &[1, 2]), attribute(9, &[])].concat();
        assert_eq!(attributes.len(), 8 + 8 + 4);
        assert_eq!(find(&attributes, FAMILY_ID), Some(&[1, 2][..]));
        assert_eq!(find(&attributes, 9), Some(&[][..]));
        assert_eq!(find(&attributes, 3), None);
        assert_eq!(find(&[200, 0, 1, 0], 1), None, "longer than the message");
    }
}
