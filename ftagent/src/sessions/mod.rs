//! Connections that must not be cut: those of operators who are logged in, and those to the control plane.
//!
//! ```text
//! utmp, systemd-logind: who is logged in from where ─┐
//! sock_diag: established connections to our ports ───┴─both─▶ Session ─▶ guard, fail-safe of the datapath
//! own sockets with a control plane's port ─────────────────▶ control
//! ```
//!
//! A session is what is in both: a connection without a login is anybody's who completes a handshake, and a login
//! without a connection is over. The daemon looks every second, outside of its loop.

mod records;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use self::records::{Login, UTMP_BYTES};
use crate::engine::Session;
use crate::sockets::{Sockets, Wanted, bare};

/// Addresses with sessions; of more, those whose sessions began first count, so that nobody who comes later takes the
/// place of one who is there.
pub const MAX_PEERS: usize = 256;
/// Records that are read at most, of each kind.
const MAX_RECORDS: usize = 8_192;
/// Of one record of logind's.
const MAX_RECORD_BYTES: u64 = 16 << 10;
/// Connections that one look goes through.
const MAX_SOCKETS: usize = 262_144;
/// Ports beside the configured ones that are remembered, and the connections that one of them may have: a busy web server
/// is not looked at every second because an operator visits it.
const MAX_FOUND: usize = 8;
const MAX_AT_FOUND: usize = 16_384;
/// Own descriptors that are looked at.
const MAX_OWN: usize = 8_192;
/// Between two looks at the connections of all ports, for SSH at a port that nobody told us.
const SWEEP_NS: u64 = 60_000_000_000;
/// So long after its last connection an address still counts: people come back, and every change plans rules anew. Two of
/// the looks that find a connection that no other finds.
const LINGER_NS: u64 = 2 * SWEEP_NS;
const SSH: u16 = 22;
/// Control planes that are remembered, and for how long after the last connection.
const MAX_CONTROL: usize = 64;
const CONTROL_LINGER_NS: u64 = 600_000_000_000;

/// Why sessions are not known.
#[derive(Debug, thiserror::Error)]
pub enum SessionsError {
    #[error("{path} cannot be read, which says who is logged in: {error}", path = .path.display())]
    Records { path: PathBuf, error: io::Error },
    #[error("the connections of those who are logged in cannot be read (sock_diag): {0}")]
    Sockets(io::Error),
    #[error("who is logged in is not known: the look at records and connections does not end")]
    Late,
}

/// What one look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// By address.
    pub in_use: Vec<Session>,
    /// Ports that SSH is configured to listen on, and those that sessions came by.
    pub ports: Vec<u16>,
    /// Where this agent's own connections to control planes lead.
    pub control: Vec<(IpAddr, u16)>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Looks, and remembers between two looks.
#[derive(Debug)]
pub struct Reader {
    /// `/run`.
    run: PathBuf,
    /// `/etc/ssh`.
    ssh: PathBuf,
    control_ports: BTreeSet<u16>,
    /// Ports that sessions came by, though nobody had told us.
    found: BTreeSet<u16>,
    swept_ns: Option<u64>,
    /// When each was seen last.
    known: BTreeMap<IpAddr, (Session, u64)>,
    /// Control planes, and when each was connected last.
    control: BTreeMap<(IpAddr, u16), u64>,
}

impl Reader {
    /// A reader of the machine's own records; `control_ports` are those of the control planes.
    pub fn new(control_ports: impl IntoIterator<Item = u16>) -> Self {
        Self::below(Path::new("/run"), Path::new("/etc/ssh"), control_ports)
    }

    /// A reader of records elsewhere.
    pub fn below(run: &Path, ssh: &Path, control_ports: impl IntoIterator<Item = u16>) -> Self {
        Self {
            run: run.to_owned(),
            ssh: ssh.to_owned(),
            control_ports: control_ports.into_iter().collect(),
            found: BTreeSet::new(),
            swept_ns: None,
            known: BTreeMap::new(),
            control: BTreeMap::new(),
        }
    }

    /// Looks at everything anew.
    ///
    /// # Errors
    /// When it cannot be told who is connected. Then nothing automated may act.
    pub fn look(&mut self, now_ns: u64) -> Result<Sessions, SessionsError> {
        let mut warnings = Vec::new();
        let (logins, are_kept) = self.logins()?;
        let mut ports = crate::profile::ssh_ports(&self.ssh);
        let configured: BTreeSet<u16> = ports.iter().copied().chain([SSH]).collect();
        if !logins.is_empty() {
            self.connections(&logins, &configured, now_ns).map_err(SessionsError::Sockets)?;
        } else if !are_kept {
            warnings.push(
                "neither utmp nor systemd-logind says who is logged in: sessions of operators are spared only where \
                 management.sources names them"
                    .to_owned(),
            );
        }
        self.known.retain(|_, (_, seen_ns)| now_ns.saturating_sub(*seen_ns) < LINGER_NS);
        let mut all: Vec<&Session> = self.known.values().map(|(session, _)| session).collect();
        all.sort_by_key(|session| (session.since, session.peer));
        if all.len() > MAX_PEERS {
            warnings.push(format!(
                "sessions from {} addresses: the {MAX_PEERS} that began first are spared by what is automated; name the \
                 others under management.sources",
                all.len()
            ));
            all.truncate(MAX_PEERS);
        }
        let mut in_use: Vec<Session> = all.into_iter().cloned().collect();
        in_use.sort_by_key(|session| session.peer);
        ports.extend(in_use.iter().flat_map(|session| &session.ports));
        ports.sort_unstable();
        ports.dedup();
        Ok(Sessions { in_use, ports, control: self.control(now_ns), warnings })
    }

    /// Who is logged in from elsewhere, the first of each address; and whether anybody keeps records of that.
    fn logins(&self) -> Result<(BTreeMap<IpAddr, Login>, bool), SessionsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| SessionsError::Records { path, error }
        };
        let mut all = Vec::new();
        let utmp = self.run.join("utmp");
        let text = read(&utmp, (UTMP_BYTES * MAX_RECORDS) as u64).map_err(failed(&utmp))?;
        let folder = self.run.join("systemd/sessions");
        let mut are_kept = text.is_some();
        all.extend(text.iter().flat_map(|bytes| records::utmp(bytes)).filter(is_alive));
        match std::fs::read_dir(&folder) {
            Ok(entries) => {
                are_kept = true;
                for entry in entries.take(2 * MAX_RECORDS) {
                    let path = entry.map_err(failed(&folder))?.path();
                    // Beside each record lies a pipe.
                    if path.extension().is_some() || !path.is_file() {
                        continue;
                    }
                    let bytes = read(&path, MAX_RECORD_BYTES).map_err(failed(&path))?;
                    all.extend(bytes.and_then(|bytes| records::logind(&String::from_utf8_lossy(&bytes))));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&folder)(error)),
        }
        let mut first = BTreeMap::<IpAddr, Login>::new();
        for login in all.into_iter().filter(|login| !login.peer.is_loopback() && !login.peer.is_unspecified()) {
            let known = first.entry(login.peer).or_insert_with(|| login.clone());
            if login.since < known.since {
                *known = login;
            }
        }
        Ok((first, are_kept))
    }

    /// Notes the connections of those who are logged in.
    fn connections(
        &mut self,
        logins: &BTreeMap<IpAddr, Login>,
        configured: &BTreeSet<u16>,
        now_ns: u64,
    ) -> io::Result<()> {
        let mut sockets = Sockets::open()?;
        // A session outlives the server that took it, as where sshd is started again: what was served counts still.
        let listening = sockets.listening()?;
        let known = self.known.values().flat_map(|(session, _)| &session.ports);
        let served: HashSet<u16> =
            listening.iter().chain(configured).chain(&self.found).chain(known).copied().collect();
        let mut seen = BTreeMap::<IpAddr, BTreeSet<u16>>::new();
        for port in configured {
            peers(&mut sockets, *port, &served, logins, &mut seen)?;
        }
        for port in self.found.clone() {
            let count = peers(&mut sockets, port, &served, logins, &mut seen)?;
            if count > MAX_AT_FOUND || count == 0 && !listening.contains(&port) {
                self.found.remove(&port);
            }
        }
        let is_missing = logins.keys().any(|peer| !seen.contains_key(peer));
        if is_missing && self.swept_ns.is_none_or(|then| now_ns.saturating_sub(then) >= SWEEP_NS) {
            let mut elsewhere = BTreeMap::new();
            peers(&mut sockets, 0, &served, logins, &mut elsewhere)?;
            self.swept_ns = Some(now_ns);
            elsewhere.retain(|peer, _| !seen.contains_key(peer));
            let room = MAX_FOUND.saturating_sub(self.found.len());
            self.found.extend(elsewhere.values().flatten().take(room));
            seen.extend(elsewhere);
        }
        for (peer, ports) in seen {
            let Some(login) = logins.get(&peer) else { continue };
            let ports = ports.into_iter().collect();
            let session = Session { peer, ports, user: login.user.clone(), since: login.since };
            self.known.insert(peer, (session, now_ns));
        }
        Ok(())
    }

    /// Where our own connections to control planes lead, or led a while ago: the link breaks first of all in an attack, and
    /// must find its way back. A look that fails forgets nobody.
    fn control(&mut self, now_ns: u64) -> Vec<(IpAddr, u16)> {
        match self.own_connections() {
            Ok(found) => {
                let room = MAX_CONTROL.saturating_sub(self.control.len());
                let (known, new): (Vec<_>, Vec<_>) = found.into_iter().partition(|to| self.control.contains_key(to));
                self.control.extend(known.into_iter().chain(new.into_iter().take(room)).map(|to| (to, now_ns)));
                self.control.retain(|_, seen_ns| now_ns.saturating_sub(*seen_ns) < CONTROL_LINGER_NS);
            }
            Err(error) => tracing::debug!(%error, "own connections are not seen"),
        }
        self.control.keys().copied().collect()
    }

    fn own_connections(&self) -> io::Result<BTreeSet<(IpAddr, u16)>> {
        let mut found = BTreeSet::new();
        if self.control_ports.is_empty() {
            return Ok(found);
        }
        let own = own_sockets()?;
        let mut sockets = Sockets::open()?;
        for port in &self.control_ports {
            let mut left = MAX_SOCKETS;
            sockets.established(Wanted { remote_port: *port, ..Wanted::default() }, |response| {
                if own.contains(&response.header.inode) {
                    found.insert((bare(response.header.socket_id.destination_address), *port));
                }
                left -= 1;
                left > 0
            })?;
        }
        Ok(found)
    }
}

/// Adds the ports by which those who are logged in are connected; 0: looks at all that are served. Answers how many
/// connections there are.
fn peers(
    sockets: &mut Sockets,
    port: u16,
    served: &HashSet<u16>,
    logins: &BTreeMap<IpAddr, Login>,
    seen: &mut BTreeMap<IpAddr, BTreeSet<u16>>,
) -> io::Result<usize> {
    let mut count = 0;
    sockets.established(Wanted { local_port: port, ..Wanted::default() }, |response| {
        let id = &response.header.socket_id;
        let peer = bare(id.destination_address);
        if served.contains(&id.source_port) && logins.contains_key(&peer) {
            seen.entry(peer).or_default().insert(id.source_port);
        }
        count += 1;
        count < MAX_SOCKETS
    })?;
    Ok(count)
}

/// The file's bytes, at most so many; none where there is no such file.
fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)) {
        Ok(_) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the login's process lives. utmp keeps what a killed server could not take out.
fn is_alive(login: &Login) -> bool {
    let Some(pid) = login.pid else { return true };
    // Another user's process may not be signalled, and is there.
    pid > 0 && matches!(kill(Pid::from_raw(pid), None), Ok(()) | Err(Errno::EPERM))
}

/// The inodes of this process's sockets.
fn own_sockets() -> io::Result<BTreeSet<u32>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let links = entries.flatten().take(MAX_OWN).filter_map(|entry| std::fs::read_link(entry.path()).ok());
    Ok(links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect())
}

#[cfg(test)]
mod tests;
