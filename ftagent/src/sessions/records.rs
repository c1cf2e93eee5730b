//! Who is logged in from where, as the machine itself writes it down once a login is complete. Pure.
//!
//! Only root writes these records, and none of them before the one who logs in has proved who they are: who has but a
//! connection is in neither.

use std::net::{IpAddr, Ipv6Addr};

use crate::sockets::bare;

/// One login over the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) peer: IpAddr,
    pub(super) user: String,
    /// Seconds since 1970 when it began.
    pub(super) since: i64,
    /// The process that must live for the record to be true; none where whoever keeps the records sees to that.
    pub(super) pid: Option<i32>,
}

/// Whether entries of utmp(5) have the long form, as glibc has it where nothing of 32 bits had to go on working.
const LONG: bool = cfg!(target_arch = "aarch64");
/// Bytes of an entry, where its time lies, and where its address.
pub(super) const UTMP_BYTES: usize = if LONG { 400 } else { 384 };
const UTMP_TIME: usize = if LONG { 344 } else { 340 };
const UTMP_ADDRESS: usize = if LONG { 360 } else { 348 };
const USER_PROCESS: i16 = 7;

/// The services whose sessions are those of people who run the machine.
const SERVICES: [&str; 4] = ["sshd", "ssh", "dropbear", "cockpit"];

/// The logins over the network in a file of utmp(5).
pub(super) fn utmp(bytes: &[u8]) -> Vec<Login> {
    bytes.chunks_exact(UTMP_BYTES).filter_map(utmp_entry).collect()
}

fn utmp_entry(entry: &[u8]) -> Option<Login> {
    let four = |at: usize| entry.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes);
    let kind = i16::from_ne_bytes(entry.get(..2)?.try_into().ok()?);
    let address: [u8; 16] = entry.get(UTMP_ADDRESS..UTMP_ADDRESS + 16)?.try_into().ok()?;
    if kind != USER_PROCESS || address == [0; 16] {
        return None;
    }
    let peer = match address {
        // An IPv4 address takes the first of four words.
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] => IpAddr::from([a, b, c, d]),
        six => bare(Ipv6Addr::from(six).into()),
    };
    Some(Login {
        peer,
        user: name(&String::from_utf8_lossy(entry.get(44..76)?)),
        since: four(UTMP_TIME)?.into(),
        pid: Some(four(4)?),
    })
}

/// The login in a file of systemd-logind's, if it is one over the network that is not ending.
pub(super) fn logind(text: &str) -> Option<Login> {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    if value("REMOTE") != Some("1") || value("STATE") == Some("closing") || !SERVICES.contains(&value("SERVICE")?) {
        return None;
    }
    // A link-local address has its interface behind it.
    let host = value("REMOTE_HOST")?.split('%').next()?;
    Some(Login {
        peer: bare(host.parse().ok()?),
        user: name(value("USER").unwrap_or_default()),
        since: value("REALTIME").and_then(|micros| micros.parse::<i64>().ok()).unwrap_or(i64::MAX) / 1_000_000,
        pid: None,
    })
}

/// Nothing of a name that a terminal or a log would take for anything else.
fn name(text: &str) -> String {
    let name: String = text.chars().take_while(|c| *c != '\0').take(32).collect();
    name.chars().map(|c| if c.is_ascii_alphanumeric() || "._-@".contains(c) { c } else { '?' }).collect()
}

/// An entry as a login program writes it.
#[cfg(test)]
pub(super) fn utmp_of(kind: i16, pid: i32, user: &str, peer: IpAddr, since: i32) -> Vec<u8> {
    let mut entry = vec![0; UTMP_BYTES];
    entry[..2].copy_from_slice(&kind.to_ne_bytes());
    entry[4..8].copy_from_slice(&pid.to_ne_bytes());
    entry[44..44 + user.len()].copy_from_slice(user.as_bytes());
    entry[UTMP_TIME..UTMP_TIME + 4].copy_from_slice(&since.to_ne_bytes());
    match peer {
        IpAddr::V4(v4) => entry[UTMP_ADDRESS..UTMP_ADDRESS + 4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => entry[UTMP_ADDRESS..UTMP_ADDRESS + 16].copy_from_slice(&v6.octets()),
    }
    entry
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn logins_of_utmp() {
        let ip = |text: &str| text.parse::<IpAddr>().expect(text);
        let mut file = Vec::new();
        for (kind, pid, user, peer) in [
            (USER_PROCESS, 7, "alice", "198.51.100.7"),
            (USER_PROCESS, 8, "bob\u{1b}[2J", "2001:db8::7"),
            // Somebody who has not logged in yet, one who is gone, and one at the machine itself.
            (6, 9, "eve", "198.51.100.8"),
            (8, 10, "carol", "198.51.100.9"),
            (USER_PROCESS, 11, "root", "0.0.0.0"),
            (USER_PROCESS, 12, "mapped", "::ffff:198.51.100.10"),
        ] {
            file.extend(utmp_of(kind, pid, user, ip(peer), 1_000 + pid));
        }
        file.extend([7; 100]);
        let logins = utmp(&file);
        let seen: Vec<_> = logins.iter().map(|l| (l.peer.to_string(), l.user.as_str(), l.pid, l.since)).collect();
        let expected = [
            ("198.51.100.7".to_owned(), "alice", Some(7), 1_007),
            ("2001:db8::7".to_owned(), "bob??2J", Some(8), 1_008),
            ("198.51.100.10".to_owned(), "mapped", Some(12), 1_012),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn logins_of_logind() {
        let file = |change: &str| {
            let mut lines = vec![
                "UID=1000",
                "USER=alice",
                "ACTIVE=1",
                "STATE=active",
                "REMOTE=1",
                "SERVICE=sshd",
                "REALTIME=1700000000000000",
                "REMOTE_HOST=198.51.100.7",
                "LEADER=77",
            ];
            let key = change.split('=').next().unwrap_or_default();
            lines.retain(|line| line.split('=').next() != Some(key));
            lines.push(change);
            lines.join("\n")
        };
        let alice = Login {
            peer: "198.51.100.7".parse().expect("an address"),
            user: "alice".to_owned(),
            since: 1_700_000_000,
            pid: None,
        };
        assert_eq!(logind(&file("TYPE=tty")), Some(alice.clone()));
        assert_eq!(logind(&file("STATE=online")), Some(alice.clone()), "one without a terminal");
        let six = logind(&file("REMOTE_HOST=fe80::7%eth0")).expect("a login");
        assert_eq!(six.peer.to_string(), "fe80::7");
        for none in [
            "REMOTE=0",
            "STATE=closing",
            "SERVICE=vsftpd",
            "REMOTE_HOST=host.example",
            "REMOTE_HOST=",
            "REMOTE_HOST=1.2.3",
        ] {
            assert_eq!(logind(&file(none)), None, "{none}");
        }
        assert_eq!(logind(""), None);
        // A name cannot forge a line of its own.
        assert_eq!(logind("USER=x REMOTE=1\nREMOTE=0\nREMOTE_HOST=192.0.2.1\nSERVICE=sshd"), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
            for login in utmp(&bytes) {
                prop_assert!(login.user.len() <= 32 && login.user.is_ascii());
            }
            logind(&String::from_utf8_lossy(&bytes));
        }
    }
}
