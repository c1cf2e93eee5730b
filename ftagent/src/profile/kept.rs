//! What comes before every profile, so that nobody is cut off: found on the node, added to what the order names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ftagent_common::api::Kept;
use ipnet::IpNet;

/// The most prefixes of the allowlist, control planes and management sources together.
pub(super) const MAX_SOURCES: usize = 512;
/// Of a file of the SSH server.
const MAX_BYTES: u64 = 256 << 10;

/// What the order keeps and what the node does, each once.
///
/// # Errors
/// More prefixes than a firewall without sets should be given.
pub(super) fn together(order: &Kept, node: &Kept) -> Result<Kept, String> {
    let ports: BTreeSet<u16> = order.ports.iter().chain(&node.ports).copied().filter(|p| *p != 0).collect();
    let all = order.sources.iter().chain(&node.sources);
    // Everybody is nobody's friend, and would swallow the others below.
    let sources: Vec<IpNet> = all.filter(|s| s.prefix_len() > 0).map(IpNet::trunc).collect();
    let sources = IpNet::aggregate(&sources);
    if sources.len() > MAX_SOURCES {
        return Err(format!(
            "{} prefixes on the allowlist and of management: a profile keeps at most {MAX_SOURCES}",
            sources.len()
        ));
    }
    Ok(Kept { ports: ports.into_iter().collect(), sources })
}

/// The ports that the node's SSH server is told to listen on; none where its files cannot be read.
pub(crate) fn ssh_ports(folder: &Path) -> Vec<u16> {
    let mut files = vec![folder.join("sshd_config")];
    if let Ok(entries) = fs::read_dir(folder.join("sshd_config.d")) {
        files.extend(entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "conf")));
    }
    let small = |path: &Path| fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= MAX_BYTES);
    let texts = files.iter().filter(|path| small(path)).filter_map(|path| fs::read(path).ok());
    texts.flat_map(|bytes| ports_in(&String::from_utf8_lossy(&bytes))).collect()
}

/// `Port` and `ListenAddress` of sshd_config(5).
fn ports_in(text: &str) -> Vec<u16> {
    let port = |line: &str| {
        let mut words = line.split([' ', '\t', '=', '"']).filter(|word| !word.is_empty());
        let (keyword, value) = (words.next()?.to_ascii_lowercase(), words.next()?);
        match keyword.as_str() {
            "port" => value.parse().ok(),
            "listenaddress" => {
                let (host, port) = value.rsplit_once(':')?;
                // An IPv6 address without brackets has no port.
                (!host.contains(':') || host.ends_with(']')).then(|| port.parse().ok())?
            }
            _ => None,
        }
    };
    text.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_ssh_are_those_of_its_configuration() {
        let text = "#Port 1\nPort 22\n  port=2222\nPort \"2200\"\nListenAddress 192.0.2.1\nListenAddress 192.0.2.1:2022\n\
                    ListenAddress [2001:db8::1]:2023\nListenAddress 2001:db8::5\nPort x\nPermitRootLogin no\n";
        assert_eq!(ports_in(text), [22, 2222, 2200, 2022, 2023]);
        let dir = tempfile::tempdir().expect("a folder");
        assert!(ssh_ports(dir.path()).is_empty());
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
        let kept = together(&order, &node).expect("few");
        assert_eq!(kept.ports, [22, 2222]);
        assert_eq!(kept.sources, [net("10.1.0.0/16"), net("198.51.100.7/32")]);
        let many = (0..=MAX_SOURCES).map(|n| net(&format!("10.{}.{}.1/32", n / 256, n % 256))).collect();
        assert!(together(&Kept { ports: vec![], sources: many }, &node).is_err());
    }
}
