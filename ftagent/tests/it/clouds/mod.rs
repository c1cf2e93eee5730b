//! Actions at clouds against receivers that hold what providers hold: done, undone, and whatever goes wrong between.

mod cloudflare;
mod digitalocean;
mod lanes;
mod nodes;
mod random;
mod receiver;
mod table;
mod vultr;

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ftagent::actions::cloud::{CloudConfig, CloudKeeper};
use ftagent::actions::journal::Journal;
use ftagent::engine::{Acted, Outcome, Wanted};
use ftagent_common::api::Action;
use uuid::Uuid;

use self::receiver::{Receiver, TOKEN, Trouble};

const ZONE: &str = "0123456789abcdef0123456789abcdef";
const ACCOUNT: &str = "00112233445566778899aabbccddeeff";
const LIST: &str = "ffeeddccbbaa99887766554433221100";
const UUID: &str = "0f9619ff-8b86-4011-b42d-00cf4fc964ff";
const SEC: u64 = 1_000_000_000;
/// So long after a doubt nothing comes late any more, and every look is due.
const LATER_NS: u64 = 700 * SEC;
/// Whom nobody blocks.
const BYSTANDER: &str = "203.0.113.77";

/// One of the places where actions act.
#[derive(Clone, Copy, Debug)]
struct Case {
    tool: &'static str,
    /// But for its sources.
    head: &'static str,
    sources: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        tool: "cloudflare",
        head: r#""type":"cloudflare_block","zone":"0123456789abcdef0123456789abcdef""#,
        sources: &["198.51.100.7/32", "198.51.101.0/24", "2001:db8::7/128"],
    },
    Case {
        tool: "cloudflare",
        head: r#""type":"cloudflare_block","account":"00112233445566778899aabbccddeeff",
                 "list":"ffeeddccbbaa99887766554433221100""#,
        sources: &["198.51.100.7/32", "198.51.102.0/23", "2001:db8::7/128"],
    },
    Case {
        tool: "digitalocean",
        head: r#""type":"digitalocean_block","firewall_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff""#,
        sources: &["198.51.100.7/32", "198.51.101.0/24", "2001:db8::7/128"],
    },
    Case {
        tool: "vultr",
        head: r#""type":"vultr_block","group_id":"0f9619ff-8b86-4011-b42d-00cf4fc964ff""#,
        sources: &["198.51.100.7/32"],
    },
];

impl Case {
    fn action(&self, sources: &[&str]) -> Action {
        let json = format!("{{{},\"sources\":{}}}", self.head, serde_json::to_string(sources).unwrap());
        let action: Action = serde_json::from_str(&json).expect(&json);
        action.validate().expect(&json);
        action
    }

    fn wanted(&self, number: u128, sources: &[&str]) -> Wanted {
        let action = self.action(sources);
        Wanted { task: Uuid::from_u128(number), tool: self.tool, steps: Vec::new(), cloud: Some(action) }
    }
}

/// A receiver, and a node's folder with its key.
struct Site {
    receiver: Receiver,
    dir: tempfile::TempDir,
    timeout: Duration,
}

impl Site {
    fn new(tool: &str) -> Self {
        // A folder without a disk below it: sequences ask for its word thousands of times.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let site = Self { receiver: Receiver::new(tool), dir, timeout: Duration::from_secs(5) };
        site.write_key(TOKEN);
        site
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    fn write_key(&self, key: &str) {
        std::fs::write(self.key(), key).unwrap();
        std::fs::set_permissions(self.key(), std::fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn config(&self) -> CloudConfig {
        CloudConfig {
            token_file: self.key(),
            api_url: self.receiver.url.clone(),
            ca_certificate: None,
            timeout: self.timeout,
        }
    }

    /// The node's keeper, or after a crash the next one.
    fn keeper(&self, tool: &'static str, now_ns: u64) -> CloudKeeper {
        self.keeper_of(tool, "node-one-0123456789abcdef", now_ns)
    }

    /// That of a node with another mark and journal.
    fn keeper_of(&self, tool: &'static str, mark: &str, now_ns: u64) -> CloudKeeper {
        let journal = Journal::open(&journal(self.dir.path(), mark));
        CloudKeeper::new(tool, Some(self.config()), journal, Ok(mark.to_owned()), Arc::default(), now_ns)
    }

    fn trouble(&self, troubles: impl IntoIterator<Item = Option<Trouble>>) {
        self.receiver.state().troubles = troubles.into_iter().collect();
    }

    fn trouble_with_changes(&self, troubles: impl IntoIterator<Item = Option<Trouble>>) {
        self.receiver.state().changes = troubles.into_iter().collect();
    }
}

fn journal(dir: &Path, mark: &str) -> PathBuf {
    dir.join(format!("{mark}.journal"))
}

fn outcome(acted: &[Acted], number: u128) -> Option<&Outcome> {
    acted.iter().rev().find(|one| one.task == Uuid::from_u128(number)).map(|one| &one.outcome)
}

/// Wants one action and expects it done.
fn done(keeper: &mut CloudKeeper, wanted: Vec<Wanted>, now_ns: u64) -> Vec<Acted> {
    let tasks: Vec<Uuid> = wanted.iter().map(|one| one.task).collect();
    keeper.set(wanted, []);
    let acted = keeper.work(now_ns);
    for task in tasks {
        let applied = acted.iter().any(|one| one.task == task && one.outcome == Outcome::Applied);
        assert!(applied, "{task}: {acted:?}");
    }
    acted
}

/// Ends actions and expects them undone.
fn undone(keeper: &mut CloudKeeper, left: Vec<Wanted>, numbers: &[u128], now_ns: u64) -> Vec<Acted> {
    keeper.set(left, numbers.iter().map(|number| Uuid::from_u128(*number)));
    let acted = keeper.work(now_ns);
    for number in numbers {
        assert_eq!(outcome(&acted, *number), Some(&Outcome::Undone), "{number}: {acted:?}");
    }
    acted
}
