//! Answers that nobody asked for: from the ports of reflectors, and to echo requests.
//!
//! A question leaves by an interface whose egress program remembers it for half a minute; who answers later, or was
//! never asked, is a reflector. Where a node serves a port itself, what comes to it is a question whatever its source
//! port (NTP servers ask each other from port 123), and is left to the later stages.

use ftagent_common::abi::{NO_RULE, QUERY_SETS, Reason, feature, has_port, stage};
use ftagent_common::packet::{Fragment, Packet, proto};

use super::{Hit, Judged};
use crate::flows::{self, Ends};
use crate::maps;

const ECHO_REPLY: u8 = 0;
const ECHO_REPLY6: u8 = 129;

/// Whether the packet is an answer without a question. Only asked for protected destinations.
#[inline(always)]
pub(super) fn hit(packet: &Packet, judged: &Judged<'_>) -> Option<Hit> {
    if maps::STAGES.load() & stage::REFLECTORS == 0 || judged.settings.features & feature::REFLECTORS == 0 {
        return None;
    }
    // What is inside a tunnel was asked for inside one, which nobody learns.
    if packet.tunnel.is_open() || !is_answer(packet) {
        return None;
    }
    let Packet { src, dst, protocol, src_port, dst_port, .. } = packet;
    of(&Ends { remote: src, local: dst, ports: [*src_port, *dst_port], protocol: *protocol }, judged)
}

/// Whether nobody asked for an answer.
#[inline(always)]
pub(crate) fn of(ends: &Ends<'_>, judged: &Judged<'_>) -> Option<Hit> {
    let now_ns = judged.now_ns;
    let gate = flows::GATE.get(0)?;
    if ends.protocol == proto::UDP
        && (!has_port(&gate.reflectors, ends.ports[0]) || has_port(&gate.served, ends.ports[1]))
    {
        return None;
    }
    if gate.queries_from_ns == 0 || now_ns < gate.queries_from_ns {
        return None;
    }
    let hash = ends.hash(gate, 0);
    if flows::set(&flows::QUERIES, QUERY_SETS, hash)?.knows(hash, now_ns) {
        return None;
    }
    Some((Reason::Reflection, NO_RULE))
}

/// Whether a whole packet's protocol and ports make it one that may be refused here.
#[inline(always)]
pub(crate) fn is_asked(protocol: u8, src_port: u16, icmp_type: u8) -> bool {
    match protocol {
        proto::UDP => flows::GATE.get(0).is_none_or(|gate| has_port(&gate.reflectors, src_port)),
        proto::ICMP => icmp_type == ECHO_REPLY,
        _ => false,
    }
}

/// Whether the packet can be an answer at all. Later fragments carry no ports: they go with the first or time out.
#[inline(always)]
fn is_answer(packet: &Packet) -> bool {
    if matches!(packet.fragment, Fragment::Middle | Fragment::Last) {
        return false;
    }
    match packet.protocol {
        proto::UDP => true,
        proto::ICMP => packet.icmp_type == ECHO_REPLY,
        proto::ICMPV6 => packet.icmp_type == ECHO_REPLY6,
        _ => false,
    }
}
