//! Floods of tunnels: packets in GRE or in IP from more addresses than anybody has tunnels with. Those of few peers are
//! judged by what is inside.

use ftagent_common::packet::{Tunnel, proto};
use ftagent_common::vocab::AttackFamily;

use super::features::Ranking;
use super::{Claims, Part};

/// No node keeps tunnels to so many.
const PEERS: usize = 24;

/// Claims what came in tunnels, if it is a flood of them.
pub(super) fn claim(claims: &mut Claims<'_>) {
    let members = claims.select(|s| s.tunnel.is_open());
    if members.is_empty() {
        return;
    }
    let samples = claims.samples_of(&members);
    let peers = Ranking::of(&samples, |s| s.outer_src);
    let kinds = Ranking::of(&samples, |s| match s.tunnel {
        Tunnel::Gre => proto::GRE,
        _ => proto::IPIP,
    });
    let is_gre = kinds.top() == Some(proto::GRE);
    let family = if is_gre { AttackFamily::GreFlood } else { AttackFamily::ProtocolFlood };
    if peers.needed_for(0.9) < PEERS {
        claims
            .reject(family, format!("{} peers have tunnels to this node: judged by what is inside", peers.distinct()));
        return;
    }
    let why = vec![format!("{} addresses send packets in tunnels: no node keeps that many", peers.distinct())];
    let subtype = (!is_gre).then_some("ipip");
    claims.take(Part::new(family, subtype, 0.92, why, members));
}
