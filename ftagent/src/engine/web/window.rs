//! The last seconds of one site's requests, and what they have in common.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

use super::input::{Method, WebRequest};
use crate::engine::sample::{MS, SEC};

/// The window and its parts: a second's rate needs whole parts of it.
pub(super) const WINDOW_NS: u64 = 5 * SEC;
const SLOT_NS: u64 = 250 * MS;
/// Sources, paths and agents that one slot keeps apart; what is beyond is in the sums alone.
const MAX_SOURCES: usize = 4_096;
const MAX_TEXTS: usize = 1_024;
/// A request that was given up sooner than this was not waited for.
const RESET_MS: u32 = 200;

/// How many different ones there were, estimated from which of 64 bits they set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Few(u64);

impl Few {
    fn add(&mut self, hash: u64) {
        self.0 |= 1 << (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58);
    }

    /// Right within a few up to about 100, and no more than 267.
    pub(super) fn count(self) -> u32 {
        let zeros = f64::from(self.0.count_zeros().max(1));
        ((64.0 / zeros).ln() * 64.0).round() as u32
    }
}

/// Sums over requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) queried: u64,
    pub(super) posts: u64,
    pub(super) assets: u64,
    /// Client errors other than those below.
    pub(super) errors: u64,
    pub(super) failures: u64,
    /// Given up by the client: nginx's 499, or no status at all.
    pub(super) cancelled: u64,
    /// Of those the ones that were not even waited for, where the log has times.
    pub(super) resets: u64,
    pub(super) crawler: u64,
    pub(super) proxied: u64,
    pub(super) bytes: u64,
    pub(super) millis: u64,
    pub(super) timed: u64,
    pub(super) paths: Few,
    pub(super) queries: Few,
    pub(super) agents: Few,
}

impl Tally {
    fn add(&mut self, r: &WebRequest) {
        let one = |is: bool| u64::from(is);
        let cancelled = matches!(r.status, 0 | 499);
        self.requests += 1;
        self.posts += one(r.method == Method::Post);
        self.assets += one(r.asset);
        self.errors += one((400..499).contains(&r.status) && !matches!(r.status, 408 | 429));
        self.failures += one(r.status >= 500);
        self.cancelled += one(cancelled);
        self.resets += one(cancelled && r.millis.is_some_and(|ms| ms < RESET_MS));
        self.crawler += one(r.crawler);
        self.proxied += one(r.proxied);
        self.bytes = self.bytes.saturating_add(r.bytes);
        if let Some(ms) = r.millis {
            self.millis += u64::from(ms);
            self.timed += 1;
        }
        self.paths.add(r.path);
        self.agents.add(r.agent);
        if let Some(query) = r.query {
            self.queried += 1;
            self.queries.add(query);
        }
    }

    fn merge(&mut self, o: &Self) {
        self.requests += o.requests;
        self.queried += o.queried;
        self.posts += o.posts;
        self.assets += o.assets;
        self.errors += o.errors;
        self.failures += o.failures;
        self.cancelled += o.cancelled;
        self.resets += o.resets;
        self.crawler += o.crawler;
        self.proxied += o.proxied;
        self.bytes = self.bytes.saturating_add(o.bytes);
        self.millis += o.millis;
        self.timed += o.timed;
        self.paths.0 |= o.paths.0;
        self.queries.0 |= o.queries.0;
        self.agents.0 |= o.agents.0;
    }

    /// `part` of the requests, 0 to 1.
    pub(super) fn share(&self, part: u64) -> f64 {
        if self.requests == 0 { 0.0 } else { part as f64 / self.requests as f64 }
    }
}

#[derive(Clone, Debug, Default)]
struct Slot {
    number: u64,
    unread: u64,
    sum: Tally,
    sources: HashMap<IpAddr, Tally>,
    paths: HashMap<u64, u64>,
    agents: HashMap<u64, u64>,
    /// With how many requests each query came; what does not fit is taken for new.
    queries: HashMap<u64, u64>,
    more_queries: u64,
}

/// The last [`WINDOW_NS`] of one site.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    slots: VecDeque<Slot>,
}

/// The unit that requests are attributed to: an address, or a /64 of IPv6, since single addresses there are free.
pub(super) fn unit(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        },
        v4 => v4,
    }
}

impl Window {
    fn slot(&mut self, now_ns: u64) -> &mut Slot {
        let number = now_ns / SLOT_NS;
        let oldest = number.saturating_sub(WINDOW_NS / SLOT_NS);
        while self.slots.front().is_some_and(|s| s.number < oldest) {
            self.slots.pop_front();
        }
        if self.slots.back().is_none_or(|s| s.number < number) {
            self.slots.push_back(Slot { number, ..Slot::default() });
        }
        self.slots.back_mut().expect("one was pushed unless one was there")
    }

    /// Takes a request that arrived at `now_ns`, which never goes back.
    pub(super) fn add(&mut self, r: &WebRequest, now_ns: u64) {
        let slot = self.slot(now_ns);
        slot.sum.add(r);
        let source = unit(r.source);
        if slot.sources.len() < MAX_SOURCES || slot.sources.contains_key(&source) {
            slot.sources.entry(source).or_default().add(r);
        }
        let mut count = |texts: fn(&mut Slot) -> &mut HashMap<u64, u64>, hash: u64| {
            let texts = texts(slot);
            let fits = texts.len() < MAX_TEXTS || texts.contains_key(&hash);
            if fits {
                *texts.entry(hash).or_default() += 1;
            }
            fits
        };
        count(|s| &mut s.paths, r.path);
        count(|s| &mut s.agents, r.agent);
        if let Some(query) = r.query
            && !count(|s| &mut s.queries, query)
        {
            slot.more_queries += 1;
        }
    }

    /// Takes lines that were only counted.
    pub(super) fn add_unread(&mut self, lines: u64, now_ns: u64) {
        self.slot(now_ns).unread += lines;
    }

    /// Requests per second over the last whole second.
    pub(super) fn rate(&self, now_ns: u64) -> f64 {
        let current = now_ns / SLOT_NS;
        let slots = self.slots.iter().filter(|s| s.number < current && s.number + SEC / SLOT_NS >= current);
        slots.map(|s| (s.sum.requests + s.unread) as f64).sum()
    }

    /// Whether nothing arrived lately.
    pub(super) fn is_idle(&self, now_ns: u64) -> bool {
        self.slots.back().is_none_or(|s| (s.number + 1) * SLOT_NS + WINDOW_NS < now_ns)
    }

    /// What the requests of the last `span_ns`, at most the window, have in common.
    pub(super) fn features(&self, now_ns: u64, span_ns: u64) -> Features {
        let current = now_ns / SLOT_NS;
        let span = span_ns.min(WINDOW_NS) / SLOT_NS;
        let slots = || self.slots.iter().filter(|s| s.number < current && s.number + span >= current);
        let mut f = Features { secs: (span * SLOT_NS) as f64 / SEC as f64, ..Features::default() };
        let mut sources: HashMap<IpAddr, Tally> = HashMap::new();
        let (mut paths, mut agents, mut queries) = (HashMap::new(), HashMap::new(), HashMap::new());
        let mut unseen = 0;
        let add = |into: &mut HashMap<u64, u64>, from: &HashMap<u64, u64>| {
            from.iter().for_each(|(hash, n)| *into.entry(*hash).or_default() += n);
        };
        for slot in slots() {
            f.sum.merge(&slot.sum);
            f.unread += slot.unread;
            unseen += slot.more_queries;
            add(&mut paths, &slot.paths);
            add(&mut agents, &slot.agents);
            add(&mut queries, &slot.queries);
            slot.sources.iter().for_each(|(ip, tally)| sources.entry(*ip).or_default().merge(tally));
        }
        f.paths = Spread::of(&paths);
        f.agents = Spread::of(&agents);
        f.nameless = f.sum.share(agents.get(&0).copied().unwrap_or(0));
        f.busting = f.sum.share((queries.len() as u64 + unseen).min(f.sum.requests));
        f.sources = sources.into_iter().collect();
        // Of equal ones the lower address first, so that nothing depends on hashing.
        f.sources.sort_unstable_by(|a, b| b.1.requests.cmp(&a.1.requests).then(a.0.cmp(&b.0)));
        f
    }
}

/// How values are distributed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) distinct: usize,
    /// Share of the commonest.
    pub(super) top: f64,
    /// Shannon's, in bits.
    pub(super) entropy: f64,
}

impl Spread {
    fn of(counts: &HashMap<u64, u64>) -> Self {
        let total: u64 = counts.values().sum();
        if total == 0 {
            return Self::default();
        }
        let mut shares: Vec<f64> = counts.values().map(|n| *n as f64 / total as f64).collect();
        // Summed in one order always, so that no digit depends on hashing.
        shares.sort_unstable_by(|a, b| b.total_cmp(a));
        let entropy = -shares.iter().map(|p| p * p.log2()).sum::<f64>();
        Self { distinct: counts.len(), top: shares.first().copied().unwrap_or(0.0), entropy: entropy.max(0.0) }
    }
}

/// What a window of requests has in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Features {
    pub(super) secs: f64,
    pub(super) sum: Tally,
    pub(super) unread: u64,
    /// Busiest first.
    pub(super) sources: Vec<(IpAddr, Tally)>,
    pub(super) paths: Spread,
    pub(super) agents: Spread,
    /// Share of requests without a user agent.
    pub(super) nameless: f64,
    /// Share of requests with a query string that no other of the window has, so that no cache can answer.
    pub(super) busting: f64,
}

impl Features {
    /// Requests per second that `requests` of the window are.
    pub(super) fn per_sec(&self, requests: u64) -> f64 {
        if self.secs <= 0.0 { 0.0 } else { requests as f64 / self.secs }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::request;
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_whole_second() {
        let mut w = Window::default();
        for i in 0..4_000u64 {
            w.add(&request("198.51.100.1"), 10 * SEC + i * MS);
        }
        assert_eq!(w.rate(14 * SEC), 1_000.0);
        w.add_unread(500, 14 * SEC);
        assert_eq!(w.rate(14 * SEC + 250 * MS), 1_250.0, "counted lines are requests too");
        assert_eq!(w.rate(20 * SEC), 0.0);
        assert!(w.is_idle(30 * SEC) && !w.is_idle(15 * SEC));
    }

    #[test]
    fn a_window_forgets_and_keeps_no_more_than_its_bounds() {
        let mut w = Window::default();
        for i in 0..200_000u32 {
            let mut r = request("198.51.100.1");
            r.source = std::net::Ipv4Addr::from_bits(i).into();
            (r.path, r.agent, r.query) = (u64::from(i), u64::from(i), Some(u64::from(i)));
            w.add(&r, 10 * SEC + u64::from(i) * MS / 20);
        }
        assert!(w.slots.len() <= 21, "{}", w.slots.len());
        assert!(w.slots.iter().all(|s| s.sources.len() <= MAX_SOURCES && s.paths.len() <= MAX_TEXTS));
        let f = w.features(20 * SEC, WINDOW_NS);
        assert!(f.busting > 0.9 && f.paths.entropy > 10.0, "{} {:?}", f.busting, f.paths);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let mut w = Window::default();
        for i in 0..100u64 {
            w.add(&request(&format!("2001:db8::{i:x}")), SEC);
        }
        w.add(&request("::ffff:192.0.2.1"), SEC);
        let f = w.features(2 * SEC, WINDOW_NS);
        let ips: Vec<String> = f.sources.iter().map(|(ip, _)| ip.to_string()).collect();
        assert_eq!(ips, ["2001:db8::", "192.0.2.1"]);
    }

    #[test]
    fn few_values_are_counted_within_a_few() {
        for n in [1u64, 3, 10, 40] {
            let mut few = Few::default();
            (0..n).for_each(|i| {
                few.add(std::hash::BuildHasher::hash_one(
                    &std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default(),
                    i,
                ))
            });
            let error = (f64::from(few.count()) - n as f64).abs();
            assert!(error <= 1.0 + n as f64 * 0.3, "{n}: {}", few.count());
        }
    }
}
