//! What is compared.

use std::any::Any;

use super::site::Site;
use super::{commands, programs, xdp_filter};
use crate::generator::Listed;

/// What a peer can be told to drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It needs no list: it drops all, or nothing.
    Everything,
    Networks {
        at_most: u32,
    },
    Addresses {
        at_most: u32,
    },
}

/// What a peer put up; dropping it takes it down, as far as it does not go with the namespace.
pub type Standing = Box<dyn Any>;

/// One way to drop packets.
pub trait Peer {
    /// The name for [`super::Options::only`].
    fn name(&self) -> &str;

    /// The name for people, at most 34 characters.
    fn title(&self) -> &str;

    fn holds(&self) -> Holds;

    /// Whether it means to drop the blocked; what leaks through one that does is a fault.
    fn is_defence(&self) -> bool {
        true
    }

    /// Makes `site` drop packets from `blocked`.
    ///
    /// # Errors
    /// What this machine does not have, in words for its operator.
    fn set_up(&self, site: &Site, blocked: Listed) -> anyhow::Result<Standing>;
}

/// Every peer of this library.
pub fn peers() -> Vec<Box<dyn Peer>> {
    let mut all: Vec<Box<dyn Peer>> = vec![Box::new(NoDefence)];
    all.extend(commands::all());
    all.extend(programs::all());
    all.extend(xdp_filter::all());
    all
}

/// Nothing: the packets reach the UDP layer, where no socket waits for them.
struct NoDefence;

impl Peer for NoDefence {
    fn name(&self) -> &str {
        "none"
    }

    fn title(&self) -> &str {
        "no defence (closed port)"
    }

    fn holds(&self) -> Holds {
        Holds::Everything
    }

    fn is_defence(&self) -> bool {
        false
    }

    fn set_up(&self, site: &Site, _blocked: Listed) -> anyhow::Result<Standing> {
        site.receive_without_xdp()?;
        Ok(Box::new(()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_peer_has_a_name_of_its_own_and_a_short_title() {
        let all = peers();
        let names: HashSet<&str> = all.iter().map(|peer| peer.name()).collect();
        assert_eq!(names.len(), all.len());
        for peer in &all {
            assert!(peer.title().chars().count() <= 34, "{}", peer.title());
        }
        assert!(names.contains(programs::floor().name()));
    }
}
