//! What comes before every profile, so that nobody is cut off: found on the node, added to what the order names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ftagent_common::api::Kept;
use ipnet::IpNet;

use super::Friends;

/// The most prefixes of the allowlist, control planes and management sources together.
pub(super) const MAX_SOURCES: usize = 512;
/// The most operators who are connected, or were while a profile was in force.
const MAX_PEERS: usize = 512;
/// Where sshd listens that is told no port.
const SSH: u16 = 22;
/// Of a file of the SSH server.
const MAX_BYTES: u64 = 256 << 10;

/// What the order keeps and what the node does, each once, and those who are connected, however many others there are.
/// Of the allowlist as much as there is room for; then it is said how much that is.
///
/// # Errors
/// More prefixes of the order, of control planes and of management than a firewall without sets should be given.
pub(super) fn together(order: &Kept, node: &Friends) -> Result<(Kept, Option<String>), String> {
    let ports = order.ports.iter().chain(&node.kept.ports).chain(&node.in_use.ports);
    let ports: BTreeSet<u16> = ports.copied().filter(|p| *p != 0).collect();
    let mut sources = apart(order.sources.iter().chain(&node.kept.sources));
    if sources.len() > MAX_SOURCES {
        return Err(format!(
            "{} prefixes of the order and of management: a profile keeps at most {MAX_SOURCES}",
            sources.len()
        ));
    }
    let mut note = None;
    if !node.allow.is_empty() {
        let all = apart(sources.iter().chain(&node.allow));
        if all.len() <= MAX_SOURCES {
            sources = all;
        } else {
            let some = MAX_SOURCES - sources.len();
            sources.extend(node.allow.iter().filter(|s| s.prefix_len() > 0).take(some).map(IpNet::trunc));
            note = Some(format!(
                "of {} prefixes on the allowlist the first {some} are kept: a profile takes {MAX_SOURCES} in all",
                node.allow.len()
            ));
        }
    }
    sources.extend(&node.in_use.sources);
    Ok((Kept { ports: ports.into_iter().collect(), sources: IpNet::aggregate(&sources) }, note))
}

fn apart<'a>(all: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    // Everybody is nobody's friend, and would swallow the others below.
    IpNet::aggregate(&all.filter(|s| s.prefix_len() > 0).map(IpNet::trunc).collect())
}

/// Who is kept for being connected: who goes stays, since a change of all rules costs more than one that is too many.
pub(super) fn still(before: &Kept, now: &Kept) -> Kept {
    let sources: BTreeSet<IpNet> = before.sources.iter().chain(&now.sources).copied().collect();
    let ports: BTreeSet<u16> = before.ports.iter().chain(&now.ports).copied().collect();
    if sources.len() > MAX_PEERS {
        return now.clone();
    }
    Kept { ports: ports.into_iter().collect(), sources: sources.into_iter().collect() }
}

/// The ports that the node's SSH server listens on: 22 unless its files say otherwise, also where they cannot be read.
pub(crate) fn ssh_ports(folder: &Path) -> Vec<u16> {
    let mut files = vec![folder.join("sshd_config")];
    if let Ok(entries) = fs::read_dir(folder.join("sshd_config.d")) {
        files.extend(entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conf")));
    }
    let small = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES);
    let texts = files.iter().filter(|path| small(path)).filter_map(|path| fs::read(path).ok());
    let mut told = Told::default();
    texts.for_each(|bytes| told.read(&String::from_utf8_lossy(&bytes)));
    told.all()
}

/// `Port` and `ListenAddress` of sshd_config(5).
#[derive(Debug, Default)]
struct Told {
    ports: Vec<u16>,
    /// Of addresses with a port of their own.
    addresses: Vec<u16>,
    /// Some address has none.
    is_bare: bool,
}

impl Told {
    fn read(&mut self, text: &str) {
        for line in text.lines() {
            let mut words = line.split([' ', '\t', '=', '"']).filter(|word| !word.is_empty());
            let (Some(keyword), Some(value)) = (words.next(), words.next()) else { continue };
            match keyword.to_ascii_lowercase().as_str() {
                "port" => self.ports.extend(value.parse::<u16>()),
                "listenaddress" => match value.rsplit_once(':') {
                    // An IPv6 address without brackets has no port.
                    Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                        self.addresses.extend(port.parse::<u16>());
                    }
                    _ => self.is_bare = true,
                },
                _ => {}
            }
        }
    }

    fn all(self) -> Vec<u16> {
        let is_default = self.ports.is_empty() && (self.is_bare || self.addresses.is_empty());
        is_default.then_some(SSH).into_iter().chain(self.ports).chain(self.addresses).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_ssh_are_those_of_its_configuration() {
        let text = "#Port 1\nPort 22\n  port=2222\nPort \"2200\"\nListenAddress 192.0.2.1\nListenAddress 192.0.2.1:2022\n\
                    ListenAddress [2001:db8::1]:2023\nListenAddress 2001:db8::5\nPort x\nPermitRootLogin no\n";
        let ports = |text: &str| {
            let mut told = Told::default();
            told.read(text);
            told.all()
        };
        assert_eq!(ports(text), [22, 2222, 2200, 2022, 2023]);
        assert_eq!(ports("ListenAddress 192.0.2.1:2022"), [2022]);
        assert_eq!(ports("ListenAddress 192.0.2.1:2022\nListenAddress ::"), [22, 2022]);
        assert_eq!(ports("#Port 2222\nPermitRootLogin no\n"), [22], "nothing is said of ports");
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(ssh_ports(dir.path()), [22], "nothing at all is said");
        fs::create_dir(dir.path().join("sshd_config.d")).expect("made");
        fs::write(dir.path().join("sshd_config"), "Port 22\n").expect("written");
        fs::write(dir.path().join("sshd_config.d/10.conf"), "Port 2222\n").expect("written");
        fs::write(dir.path().join("sshd_config.d/10.bak"), "Port 9\n").expect("written");
        assert_eq!(ssh_ports(dir.path()), [22, 2222]);
    }

    #[test]
    fn everything_is_kept_once_and_never_everybody() {
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let order = Kept { ports: vec![22, 0], sources: vec![net("10.1.0.0/16"), net("0.0.0.0/0")] };
        let node = Kept { ports: vec![2222, 22], sources: vec![net("198.51.100.7/32")] };
        let (kept, note) = together(&order, &friends(node.clone(), vec![])).expect("few");
        assert_eq!(note, None);
        assert_eq!(kept.ports, [22, 2222]);
        assert_eq!(kept.sources, [net("10.1.0.0/16"), net("198.51.100.7/32")]);
        let one = |n: usize| net(&format!("10.{}.{}.1/32", 100 + n / 256, n % 256));
        let many: Vec<_> = (0..=MAX_SOURCES).map(one).collect();
        let too_many = Kept { ports: vec![], sources: many.clone() };
        assert!(together(&too_many, &friends(node.clone(), vec![])).is_err());
        // An allowlist that grows keeps the others, and as much of itself as there is room for.
        let (kept, note) = together(&order, &friends(node, many.clone())).expect("it is cut");
        assert!(note.is_some_and(|note| note.contains("of 513 prefixes") && note.contains("first 510")));
        assert_eq!(kept.sources.len(), MAX_SOURCES);
        for one in ["10.1.0.0/16", "198.51.100.7/32", "10.100.0.1/32"] {
            assert!(kept.sources.iter().any(|s| s.contains(&net(one))), "{one}");
        }
    }

    fn friends(kept: Kept, allow: Vec<IpNet>) -> Friends {
        Friends { kept, allow, in_use: nobody() }
    }

    fn nobody() -> Kept {
        Kept { ports: vec![], sources: vec![] }
    }

    #[test]
    fn who_is_connected_is_kept_beside_all_others_and_stays_so_when_gone() {
        let nets = |range: std::ops::Range<usize>| -> Vec<IpNet> {
            range.map(|n| format!("10.{}.{}.1/32", n / 256, n % 256).parse().expect("a prefix")).collect()
        };
        let full = Kept { ports: vec![], sources: nets(0..MAX_SOURCES) };
        let in_use = Kept { ports: vec![9_090], sources: nets(600..602) };
        let node = Friends { in_use: in_use.clone(), ..friends(nobody(), vec![]) };
        let (kept, _) = together(&full, &node).expect("they do not count");
        assert_eq!((kept.sources.len(), kept.ports), (MAX_SOURCES + 2, vec![9_090]));
        let one = Kept { ports: vec![], sources: nets(601..603) };
        assert_eq!(still(&in_use, &one), Kept { ports: vec![9_090], sources: nets(600..603) });
        assert_eq!(still(&in_use, &nobody()), in_use);
        let many = Kept { ports: vec![], sources: nets(0..MAX_PEERS) };
        assert_eq!(still(&many, &one), one, "not without end");
    }
}
