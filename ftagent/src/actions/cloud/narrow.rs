//! PURE: takes sources out of the prefixes that rules allow, and gives them back.
//!
//! A firewall that only allows blocks by allowing less. Several nodes may do so to the same firewall, and people change
//! it meanwhile. So nobody goes back to a copy: each remembers what *it* took, and gives back just that, to what is
//! there then. Taking and giving commute, whoever comes first.
//!
//! ```text
//! 0.0.0.0/0 ─(A takes a)─▶ pieces of 0/0 without a ─(B takes b)─▶ … without a and b ─(A gives a)─▶ … without b ─▶ 0.0.0.0/0
//! ```

use std::net::IpAddr;

use ftagent_common::api::minus;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// A prefix that rules of one kind allow, in the order and spelling of the firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) text: String,
    /// What the rule says of itself, where rules have notes: of a piece, what the whole said.
    pub(super) notes: String,
    /// The prefix that this one is a piece of, where the firewall can tell.
    pub(super) piece_of: Option<String>,
}

impl Item {
    fn net(&self) -> Option<IpNet> {
        net(&self.text)
    }
}

/// What was taken out of one prefix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// The prefix as it stood there.
    pub(super) origin: String,
    pub(super) notes: String,
    pub(super) piece_of: Option<String>,
    /// All that stood there before the first was taken.
    pub(super) before: Vec<String>,
    /// Its place among them.
    pub(super) at: usize,
    /// What is to be given back, without overlaps.
    pub(super) nets: Vec<IpNet>,
}

/// An address or a prefix.
pub(super) fn net(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().map(|net| net.trunc()).ok().or_else(|| text.parse::<IpAddr>().map(IpNet::from).ok())
}

/// What of `nets` is not in `others`.
pub(super) fn subtract(nets: &[IpNet], others: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&nets.iter().flat_map(|net| minus(*net, others)).collect())
}

/// What `net` and `others` have in common.
fn common(net: &IpNet, others: &[IpNet]) -> Vec<IpNet> {
    let within = others.iter().filter_map(|other| match (other.contains(net), net.contains(other)) {
        (true, _) => Some(*net),
        (_, true) => Some(*other),
        _ => None,
    });
    IpNet::aggregate(&within.collect())
}

/// Addresses, more or less.
fn size(nets: &[IpNet]) -> f64 {
    nets.iter().map(|net| f64::from(net.max_prefix_len() - net.prefix_len()).exp2()).sum()
}

/// Whether any of `items` allows something of `nets`.
pub(super) fn allows(items: &[Item], nets: &[IpNet]) -> bool {
    items.iter().filter_map(Item::net).any(|net| !common(&net, nets).is_empty())
}

/// Gives back what of `taken` is not in `keep`. Why nothing is given back, if somebody else decided otherwise meanwhile.
///
/// `is_marked` says that pieces can be told from other prefixes by [`Item::piece_of`].
pub(super) fn give_back(
    items: &mut Vec<Item>,
    taken: &mut Taken,
    keep: &[IpNet],
    is_marked: bool,
) -> Option<&'static str> {
    let give = subtract(&taken.nets, keep);
    let origin = net(&taken.origin).filter(|_| !give.is_empty())?;
    let left = subtract(&taken.nets, &give);
    let own_piece = |item: &Item| item.piece_of.is_some() && item.net().is_some_and(|n| n != origin);
    let covers = |item: &Item| item.net().is_some_and(|net| net.contains(&origin));
    if items.iter().any(covers) {
        // It is allowed again, by a crashed undo of ours or by somebody else: what is left of the pieces is of no use.
        let stood_beside = items.iter().any(|item| covers(item) && taken.before.contains(&item.text));
        items.retain(|item| !(own_piece(item) && item.net().is_some_and(|net| origin.contains(&net))));
        taken.nets = left;
        if taken.nets.is_empty() && stood_beside && !items.iter().any(|item| item.net() == Some(origin)) {
            let item =
                Item { text: taken.origin.clone(), notes: taken.notes.clone(), piece_of: taken.piece_of.clone() };
            items.insert(taken.at.min(items.len()), item);
        }
        return None;
    }
    let nets: Vec<Option<IpNet>> = items.iter().map(Item::net).collect();
    let is_piece = |at: usize| {
        let Some(net) = nets[at].filter(|net| origin.contains(net)) else { return false };
        if is_marked {
            return items[at].piece_of.is_some();
        }
        let is_older = taken.before.contains(&items[at].text);
        let within = |(other, item): (usize, &Option<IpNet>)| {
            other != at && item.is_some_and(|item| item.contains(&net) && item != net && origin.contains(&item))
        };
        !is_older && !nets.iter().enumerate().any(within)
    };
    let pieces: Vec<usize> = (0..items.len()).filter(|at| is_piece(*at)).collect();
    let expected = minus(origin, &taken.nets);
    let there: Vec<IpNet> = pieces.iter().filter_map(|at| nets[*at]).collect();
    // Other nodes may have taken more of it, which is little. People who take it away leave little or nothing.
    let is_left = expected.is_empty()
        || !there.is_empty()
            && (is_marked || there.iter().any(|net| expected.contains(net)) || 2.0 * size(&there) >= size(&expected));
    if !is_left {
        taken.nets = left;
        return Some("somebody else took away what it was narrowed to: that stands, and nothing is given back");
    }
    let whole = IpNet::aggregate(&there.into_iter().chain(give.iter().copied()).collect());
    // A prefix that stood within this one from the beginning is a part of it too.
    let within = nets.iter().flatten().filter(|net| origin.contains(*net)).chain(&give).copied();
    let is_whole = IpNet::aggregate(&within.collect()) == [origin];
    let place = pieces.first().copied().unwrap_or_else(|| taken.at.min(items.len()));
    let mut at = 0;
    items.retain(|_| {
        at += 1;
        !pieces.contains(&(at - 1))
    });
    let mark = taken.piece_of.clone().or_else(|| is_marked.then(|| taken.origin.clone()));
    taken.nets = left;
    if is_whole {
        grow(items, place, origin, taken, is_marked);
        return None;
    }
    let made = whole.iter().map(|net| Item {
        text: net.to_string(),
        notes: taken.notes.clone(),
        piece_of: mark.clone().filter(|mark| self::net(mark) != Some(*net)),
    });
    items.splice(place..place, made);
    None
}

/// Puts `net` back, and where it was a piece itself, which another node made, what it makes whole with its neighbours.
fn grow(items: &mut Vec<Item>, mut place: usize, origin: IpNet, taken: &Taken, is_marked: bool) {
    let end = taken.piece_of.as_deref().and_then(net);
    let before: Vec<IpNet> = taken.before.iter().filter_map(|text| net(text)).collect();
    let mut net_now = origin;
    while !(is_marked && (end.is_none() || Some(net_now) == end)) {
        let Some(parent) = net_now.supernet() else { break };
        // What was whole before and in two all the same is so on purpose.
        if !is_marked && minus(parent, &before).is_empty() {
            break;
        }
        let neighbour = |item: &Item| {
            item.net().is_some_and(|n| n != net_now && n.prefix_len() == net_now.prefix_len() && parent.contains(&n))
                && (!is_marked || item.piece_of.is_some())
        };
        let Some(at) = items.iter().position(neighbour) else { break };
        items.remove(at);
        place -= usize::from(at < place);
        net_now = parent;
    }
    let is_whole = net_now == origin;
    let text = if is_whole { taken.origin.clone() } else { net_now.to_string() };
    let piece_of = taken.piece_of.clone().filter(|mark| net(mark) != Some(net_now));
    let whole = taken.piece_of.clone().filter(|mark| net(mark) == Some(net_now));
    let item = Item { text: whole.unwrap_or(text), notes: taken.notes.clone(), piece_of };
    items.insert(place.min(items.len()), item);
}

/// Takes `nets` out of `items` and notes in `taken` what was taken from where.
pub(super) fn take(items: &mut Vec<Item>, taken: &mut Vec<Taken>, nets: &[IpNet], is_marked: bool) {
    let before: Vec<String> = items.iter().map(|item| item.text.clone()).collect();
    let mut left: Vec<Item> = Vec::new();
    for (at, item) in items.drain(..).enumerate() {
        let hit = item.net().map(|net| (net, common(&net, nets))).filter(|(_, hit)| !hit.is_empty());
        let Some((whole, hit)) = hit else {
            left.push(item);
            continue;
        };
        let is_known = |t: &&mut Taken| {
            t.origin == item.text
                || !t.before.contains(&item.text) && net(&t.origin).is_some_and(|origin| origin.contains(&whole))
        };
        let known = taken.iter_mut().find(is_known);
        match known {
            Some(known) => {
                known.nets = IpNet::aggregate(&known.nets.iter().chain(&hit).copied().collect());
            }
            None => taken.push(Taken {
                origin: item.text.clone(),
                notes: item.notes.clone(),
                piece_of: item.piece_of.clone(),
                before: before.clone(),
                at,
                nets: hit,
            }),
        }
        for piece in minus(whole, nets) {
            let text = piece.to_string();
            let piece_of = item.piece_of.clone().or_else(|| is_marked.then(|| item.text.clone()));
            left.push(Item { text, notes: item.notes.clone(), piece_of });
        }
    }
    // What stands there twice, after a crash or because of another node, is one.
    for item in left {
        if !items.iter().any(|known| known.net().is_some() && known.net() == item.net()) {
            items.push(item);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(texts: &[&str]) -> Vec<Item> {
        let one = |text: &&str| Item { text: (*text).to_owned(), notes: "n".to_owned(), piece_of: None };
        texts.iter().map(one).collect()
    }

    fn texts(items: &[Item]) -> Vec<&str> {
        items.iter().map(|item| item.text.as_str()).collect()
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| net(text).expect(text)).collect()
    }

    /// One node's part.
    #[derive(Default)]
    struct Node {
        taken: Vec<Taken>,
        wanted: Vec<IpNet>,
    }

    impl Node {
        fn settle(&mut self, items: &mut Vec<Item>, is_marked: bool) {
            for taken in &mut self.taken {
                give_back(items, taken, &self.wanted, is_marked);
            }
            self.taken.retain(|taken| !taken.nets.is_empty());
            take(items, &mut self.taken, &self.wanted, is_marked);
        }
    }

    #[test]
    fn what_is_given_back_is_what_stood_there_word_for_word() {
        for is_marked in [false, true] {
            for before in [
                &["0.0.0.0/0", "::/0"][..],
                &["10.0.0.0/8", "198.51.100.7", "::/0", "192.0.2.0/24"],
                &["198.51.100.7/32"],
                &["198.51.100.6/31", "198.51.100.4/31", "office"],
                &["10.0.0.0/8"],
                &["0.0.0.0/0", "198.51.100.0/24", "::/0"],
                &["198.51.100.0/24", "0.0.0.0/0"],
                &[],
            ] {
                let mut now = items(before);
                let mut node = Node { wanted: nets(&["198.51.100.7/32", "2001:db8::/48"]), ..Node::default() };
                node.settle(&mut now, is_marked);
                assert!(!allows(&now, &node.wanted), "{now:?}");
                let narrowed = now.clone();
                node.settle(&mut now, is_marked);
                assert_eq!(now, narrowed, "twice is once");
                node.wanted.clear();
                node.settle(&mut now, is_marked);
                assert_eq!(now, items(before), "{is_marked}");
                assert!(node.taken.is_empty());
            }
        }
    }

    #[test]
    fn what_others_changed_meanwhile_stands() {
        let mut now = items(&["0.0.0.0/0", "192.0.2.1"]);
        let mut node = Node { wanted: nets(&["198.51.100.7"]), ..Node::default() };
        node.settle(&mut now, false);
        // Somebody closes the firewall, but for the office and a new friend.
        now = items(&["192.0.2.1", "203.0.113.9/32"]);
        node.wanted.clear();
        node.settle(&mut now, false);
        assert_eq!(texts(&now), ["192.0.2.1", "203.0.113.9/32"]);
        assert!(node.taken.is_empty());
        // Somebody adds to what is narrowed.
        let mut now = items(&["0.0.0.0/0"]);
        let mut node = Node { wanted: nets(&["198.51.100.7"]), ..Node::default() };
        node.settle(&mut now, false);
        now.extend(items(&["::/0", "10.0.0.0/8"]));
        node.wanted.clear();
        node.settle(&mut now, false);
        assert_eq!(texts(&now), ["0.0.0.0/0", "::/0", "10.0.0.0/8"]);
        // Somebody opens it again.
        let mut now = items(&["0.0.0.0/0"]);
        let mut node = Node { wanted: nets(&["198.51.100.7"]), ..Node::default() };
        node.settle(&mut now, true);
        now.extend(items(&["0.0.0.0/0"]));
        node.wanted.clear();
        node.settle(&mut now, true);
        assert_eq!(texts(&now), ["0.0.0.0/0"], "the pieces are of no use any more");
    }

    fn source() -> impl Strategy<Value = IpNet> {
        (0..16_u8, prop_oneof![Just(32_u8), Just(31), Just(30)])
            .prop_map(|(last, len)| IpNet::new(IpAddr::from([198, 51, 100, last * 17]), len).expect("fits").trunc())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// Nodes that take and give in any order, blind to each other.
        #[test]
        fn nodes_do_not_undo_each_others(
            turns in prop::collection::vec((0..3_usize, prop::collection::vec(source(), 0..3)), 1..20),
            is_marked: bool,
        ) {
            let before = items(&["0.0.0.0/0", "::/0", "office"]);
            let mut now = before.clone();
            let mut nodes = [Node::default(), Node::default(), Node::default()];
            for (which, wanted) in turns {
                nodes[which].wanted = wanted;
                nodes[which].settle(&mut now, is_marked);
                prop_assert!(!allows(&now, &nodes[which].wanted));
                // Each looks again from time to time.
                for node in &mut nodes {
                    node.settle(&mut now, is_marked);
                }
                let all: Vec<IpNet> = nodes.iter().flat_map(|n| n.wanted.clone()).collect();
                prop_assert!(!allows(&now, &all));
                let have: Vec<IpNet> = now.iter().filter_map(Item::net).filter(|n| n.addr().is_ipv4()).collect();
                let mut expected = minus("0.0.0.0/0".parse().expect("a prefix"), &all);
                expected.sort();
                prop_assert_eq!(IpNet::aggregate(&have), expected, "nobody else is cut off");
            }
            for node in &mut nodes {
                node.wanted.clear();
                node.settle(&mut now, is_marked);
            }
            let mut left = texts(&now);
            left.sort_unstable();
            prop_assert_eq!(left, ["0.0.0.0/0", "::/0", "office"]);
        }
    }
}
