//! Members of a set that one run of a tool puts in or takes out, by lines on its standard input.
//!
//! A command for each would be a process for each: a hundred thousand of them take minutes. What is kept is still every
//! member by itself, so that two actions may have some in common.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::short;
use crate::api::preview::StepInput;

/// Members of one run, and of one record of a journal: with IPv6 prefixes some 400 KB.
pub const MEMBERS_AT_ONCE: usize = 8_192;

/// Prefixes of one ipset, with their timeout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Members {
    pub set: String,
    pub ttl_secs: u32,
    /// In order, each once.
    pub prefixes: Vec<IpNet>,
    /// Tells these from as many others of the same set.
    sum: u64,
}

impl Members {
    /// The members `prefixes` of `set`, in as few runs as may be.
    pub fn of(set: &str, ttl_secs: u32, mut prefixes: Vec<IpNet>) -> Vec<Self> {
        prefixes.sort_unstable();
        prefixes.dedup();
        let one = |some: &[IpNet]| Self { set: set.to_owned(), ttl_secs, prefixes: some.to_vec(), sum: sum(some) };
        prefixes.chunks(MEMBERS_AT_ONCE).map(one).collect()
    }

    /// What `ipset restore` reads to put `prefixes` in.
    pub fn to_add(&self, prefixes: &[IpNet]) -> String {
        let (set, ttl) = (&self.set, self.ttl_secs);
        prefixes.iter().map(|prefix| format!("add {set} {} timeout {ttl}\n", short(prefix))).collect()
    }

    /// What it reads to take them out; what has timed out already is no fault.
    pub fn to_delete(&self, prefixes: &[IpNet]) -> String {
        prefixes.iter().map(|prefix| format!("del {} {}\n", self.set, short(prefix))).collect()
    }

    /// Names the object among those of its tool.
    pub(super) fn object(&self) -> String {
        let first = self.prefixes.first().map(short).unwrap_or_default();
        ["ipset", &self.set, &first, &self.prefixes.len().to_string(), &format!("{:016x}", self.sum)].join("\u{1f}")
    }

    /// The same in a few words.
    pub fn words(&self) -> String {
        let ends = [self.prefixes.first(), self.prefixes.last()].map(|end| end.map(short).unwrap_or_default());
        match self.prefixes.len() {
            1 => format!("element {} of ipset {}, timeout {} s", ends[0], self.set, self.ttl_secs),
            many => {
                let [first, last] = ends;
                format!("{many} elements of ipset {}, {first} to {last}, timeout {} s", self.set, self.ttl_secs)
            }
        }
    }

    /// What people see of what is read.
    pub(in crate::api) fn shown(&self) -> StepInput {
        let some = &self.prefixes[..self.prefixes.len().min(StepInput::SHOWN)];
        StepInput::of(&self.to_add(some), &self.to_delete(some), self.prefixes.len())
    }
}

/// FNV-1a: stable, and two lists of one node do not meet by chance.
fn sum(prefixes: &[IpNet]) -> u64 {
    let add = |sum: u64, byte: u8| (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    prefixes.iter().fold(0xcbf2_9ce4_8422_2325, |before, prefix| {
        let before = add(before, prefix.prefix_len());
        match prefix {
            IpNet::V4(v4) => v4.addr().octets().into_iter().fold(before, add),
            IpNet::V6(v6) => v6.addr().octets().into_iter().fold(before, add),
        }
    })
}

/// What a listing of a set says of it, a line at a time, as `ipset save` writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetListing {
    /// The words of its making: type, then options.
    made: Vec<String>,
    /// Its members, whoever put them in.
    pub count: usize,
}

impl SetListing {
    /// The command that reads lines such as those of [`Members::to_add`], and takes no offence at what is so already.
    pub fn restore() -> Vec<String> {
        ["ipset", "restore", "-exist"].map(str::to_owned).into()
    }

    /// The command that lists.
    pub fn argv(set: &str) -> Vec<String> {
        ["ipset", "save", set].map(str::to_owned).into()
    }

    /// Takes the next line; the member that it names, if it names one.
    pub fn take(&mut self, line: &str) -> Option<IpNet> {
        let mut words = line.split_ascii_whitespace();
        match words.next()? {
            "create" => self.made = words.skip(1).map(str::to_owned).collect(),
            "add" => {
                self.count += 1;
                let member = words.nth(1)?;
                return member.parse().or_else(|_| member.parse::<std::net::IpAddr>().map(IpNet::from)).ok();
            }
            _ => {}
        }
        None
    }

    /// Whether there is such a set, from how the command ended and what it said; none: it cannot be told.
    pub fn is_there(exit: Option<i32>, output: &str) -> Option<bool> {
        match exit? {
            0 => Some(true),
            _ => output.contains("does not exist").then_some(false),
        }
    }

    /// Says why `new` cannot be put in, if they cannot. A set that is made to drop others when it is full would drop
    /// those of other people.
    pub fn why_not(&self, set: &str, new: &[IpNet]) -> Option<String> {
        let (kind, options) = self.made.split_first()?;
        let number = |name: &str| {
            let at = options.iter().position(|word| word == name)?;
            options.get(at + 1)?.parse::<usize>().ok()
        };
        let is_cut = options.iter().any(|word| word == "netmask" || word == "bitmask");
        let prefix = new.iter().find(|prefix| prefix.prefix_len() != prefix.max_prefix_len());
        match (kind.as_str(), prefix) {
            ("hash:net", _) => {}
            ("hash:ip", None) if !is_cut => {}
            ("hash:ip", Some(prefix)) if !is_cut => {
                return Some(format!("ipset {set} is of the type hash:ip, which takes no prefixes such as {prefix}"));
            }
            _ => {
                return Some(format!("ipset {set} is of the type {kind}: sources go into hash:net or a plain hash:ip"));
            }
        }
        if number("timeout").is_none() {
            return Some(format!("ipset {set} was made without timeouts: make it anew with `timeout 0`"));
        }
        let most = number("maxelem")?;
        (self.count + new.len() > most).then(|| {
            format!(
                "ipset {set} has room for {most} members (maxelem), holds {}, and {} more do not fit: nothing was added; \
                 make the set anew with a larger maxelem, or name another one",
                self.count,
                new.len()
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(words: &[&str]) -> Vec<IpNet> {
        words.iter().map(|w| w.parse().expect("a prefix")).collect()
    }

    #[test]
    fn members_are_the_same_in_any_order_and_named_once() {
        let one = Members::of("a", 60, nets(&["198.51.100.7/32", "10.0.0.0/16", "198.51.100.7/32"]));
        let same = Members::of("a", 60, nets(&["10.0.0.0/16", "198.51.100.7/32"]));
        assert_eq!(one, same);
        assert_eq!(one[0].to_add(&one[0].prefixes), "add a 10.0.0.0/16 timeout 60\nadd a 198.51.100.7 timeout 60\n");
        assert_eq!(one[0].to_delete(&one[0].prefixes), "del a 10.0.0.0/16\ndel a 198.51.100.7\n");
        let others = [("a", "10.0.0.0/17"), ("b", "10.0.0.0/16")]
            .map(|(set, first)| Members::of(set, 60, nets(&[first, "198.51.100.7/32"])).remove(0).object());
        assert!(!others.contains(&one[0].object()) && others[0] != others[1]);
    }

    #[test]
    fn many_members_are_a_few_runs() {
        let all: Vec<IpNet> = (0..20_000_u32).map(|n| std::net::IpAddr::from(n.to_be_bytes()).into()).collect();
        let runs = Members::of("a", 60, all.clone());
        assert_eq!(runs.iter().map(|run| run.prefixes.len()).collect::<Vec<_>>(), [8_192, 8_192, 3_616]);
        assert_eq!(runs.into_iter().flat_map(|run| run.prefixes).collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_listing_says_what_a_set_holds_and_takes() {
        // (how it was made, new members, part of the refusal)
        let table = [
            ("hash:net family inet hashsize 1024 maxelem 4 timeout 60 bucketsize 12", 1, "/16", None),
            ("hash:net family inet hashsize 1024 maxelem 4 timeout 60", 3, "/32", Some("has room for 4 members")),
            ("hash:net family inet hashsize 1024 maxelem 65536", 1, "/32", Some("without timeouts")),
            ("hash:ip family inet hashsize 1024 maxelem 65536 timeout 0", 1, "/32", None),
            ("hash:ip family inet hashsize 1024 maxelem 65536 timeout 0", 1, "/24", Some("takes no prefixes")),
            ("hash:ip family inet hashsize 1024 maxelem 65536 netmask 24 timeout 0", 1, "/32", Some("hash:ip")),
            ("list:set size 8 timeout 0", 1, "/32", Some("list:set")),
        ];
        for (made, new, length, expected) in table {
            let mut listing = SetListing::default();
            let lines =
                [&format!("create s {made}"), "add s 10.0.0.0/16 timeout 5", "add s 2001:db8::7 timeout 0 nomatch"];
            let seen: Vec<IpNet> = lines.into_iter().filter_map(|line| listing.take(line)).collect();
            assert_eq!((seen, listing.count), (nets(&["10.0.0.0/16", "2001:db8::7/128"]), 2));
            let new: Vec<IpNet> = (0..new).map(|n| format!("192.0.{n}.0{length}").parse().expect("a prefix")).collect();
            match (listing.why_not("s", &new), expected) {
                (None, None) => {}
                (Some(why), Some(part)) => assert!(why.contains(part), "{made}: {why}"),
                (got, _) => panic!("{made}: {got:?}"),
            }
        }
        assert_eq!(SetListing::is_there(Some(1), "The set with the given name does not exist"), Some(false));
        assert_eq!(SetListing::is_there(Some(1), "Kernel error received: Operation not permitted"), None);
    }
}
