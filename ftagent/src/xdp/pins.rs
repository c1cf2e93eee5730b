//! Where links, programs and maps are pinned, so that enforcement outlives the daemon.
//!
//! ```text
//! <bpffs>/ftagent/v<ABI>/maps/<MAP>
//! <bpffs>/ftagent/v<ABI>/links/<mode>/<interface>      mode: native, generic, tc
//! <bpffs>/ftagent/v<ABI>/links/egress/<interface>      what learns from what leaves
//! <bpffs>/ftagent/v<ABI>/programs/<interface>
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::ProgramInfo;
use aya::programs::links::{FdLink, PinnedLink};
use ftagent_common::abi::ABI_VERSION;
use ftagent_common::vocab::AttachMode;

use super::tc;

/// `BPF_FS_MAGIC` of `linux/magic.h`.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// The pin directory of this layout version.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

/// Why nothing can be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    #[error("{path} is not a bpffs: mount one with `mount -t bpf bpf {path}`, or set agent.bpffs to where one is")]
    NotBpffs { path: String },
    #[error("{action} {path}")]
    Io { action: &'static str, path: String, source: io::Error },
}

impl Pins {
    /// The directory below the bpffs mounted at `bpffs`.
    ///
    /// # Errors
    /// [`PinsError::NotBpffs`] when no bpffs is mounted there.
    pub fn below(bpffs: &Path) -> Result<Self, PinsError> {
        let stat = nix::sys::statfs::statfs(bpffs);
        if !stat.is_ok_and(|s| s.filesystem_type().0 == BPF_FS_MAGIC) {
            return Err(PinsError::NotBpffs { path: bpffs.display().to_string() });
        }
        Ok(Self { root: bpffs.join("ftagent").join(format!("v{ABI_VERSION}")) })
    }

    /// Makes the directories, for root alone.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn create(&self) -> Result<(), PinsError> {
        for dir in [
            self.maps(),
            self.programs(),
            self.links(AttachMode::Native),
            self.links(AttachMode::Generic),
            self.links(AttachMode::Tc),
            self.egress_links(),
        ] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.map_err(|source| io_error("cannot make", &dir, source))?;
        }
        Ok(())
    }

    /// The directory of the maps.
    pub fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    fn links(&self, mode: AttachMode) -> PathBuf {
        self.root.join("links").join(mode.as_str())
    }

    fn egress_links(&self) -> PathBuf {
        self.root.join("links/egress")
    }

    /// The pin of the link of an interface's egress program.
    pub fn egress(&self, interface: &str) -> PathBuf {
        self.egress_links().join(file_name(interface))
    }

    /// The pinned links of egress programs.
    fn pinned_egress(&self) -> Vec<String> {
        let entries = fs::read_dir(self.egress_links()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().into_string().ok()?.replace(':', "."))).collect()
    }

    /// The pin of an interface's program.
    pub fn program(&self, interface: &str) -> PathBuf {
        self.programs().join(file_name(interface))
    }

    /// The pin of an interface's link.
    pub fn link(&self, mode: AttachMode, interface: &str) -> PathBuf {
        self.links(mode).join(file_name(interface))
    }

    /// Every pinned link, as (mode, interface).
    pub fn pinned_links(&self) -> Vec<(AttachMode, String)> {
        let mut found = Vec::new();
        for mode in [AttachMode::Native, AttachMode::Generic, AttachMode::Tc] {
            let Ok(entries) = fs::read_dir(self.links(mode)) else { continue };
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            found.extend(names.map(|name| (mode, name.replace(':', "."))));
        }
        found.sort_unstable_by(|a, b| a.1.cmp(&b.1));
        found
    }

    /// Whether an agent of any version left a program that is attached: by a pinned link, or as a filter.
    pub fn has_attached(&self) -> bool {
        let has = |pins: &Self| !pins.pinned_links().is_empty() || !pins.pinned_programs().is_empty();
        has(self) || self.other_versions().iter().any(has)
    }

    /// Whether every program that is attached uses the maps of these names that are pinned here, so that what is in
    /// those is in force. Maps of another version or size than a program's are empty.
    pub fn are_in_use(&self, maps: &[&str]) -> bool {
        let ids: Option<Vec<u32>> =
            maps.iter().map(|name| Some(MapInfo::from_pin(self.maps().join(name)).ok()?.id())).collect();
        let Some(ids) = ids else { return false };
        let uses_all = |interface: &String| {
            let used = ProgramInfo::from_pin(self.program(interface)).and_then(|info| info.map_ids());
            used.ok().flatten().is_some_and(|used| ids.iter().all(|id| used.contains(id)))
        };
        let programs = self.pinned_programs();
        // The pin of a program follows its attachment: a link without one was taken over or is about to be.
        let has_program = |(_, interface): &(AttachMode, String)| programs.contains(interface);
        !programs.is_empty() && programs.iter().all(uses_all) && self.pinned_links().iter().all(has_program)
    }

    /// Takes over the links that other versions of the layout left pinned, so that their programs are replaced and
    /// not worked around. Returns the interfaces.
    ///
    /// # Errors
    /// When a link cannot be opened or pinned; it stays where it was.
    pub fn inherit(&self) -> Result<Vec<String>, PinsError> {
        let mut inherited = Vec::new();
        for other in self.other_versions() {
            for (mode, interface) in other.pinned_links() {
                if take_over(&other.link(mode, &interface), &self.link(mode, &interface))? {
                    inherited.push(interface);
                }
            }
            for interface in other.pinned_egress() {
                take_over(&other.egress(&interface), &self.egress(&interface))?;
            }
        }
        Ok(inherited)
    }

    /// Unpins what other versions of the layout left, once their links are taken over.
    ///
    /// # Errors
    /// As [`Self::remove_all`].
    pub fn remove_other_versions(&self) -> Result<(), PinsError> {
        let ours = self.pinned_programs();
        for other in self.other_versions() {
            // A classic filter has one place on an interface: what is there by now is the filter of this version.
            for interface in other.pinned_programs().iter().filter(|interface| ours.contains(interface)) {
                remove(&other.program(interface))?;
            }
            other.remove_version()?;
        }
        Ok(())
    }

    /// The pin directories of other versions.
    fn other_versions(&self) -> Vec<Self> {
        let Some(parent) = self.root.parent() else { return Vec::new() };
        let entries = fs::read_dir(parent).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_version = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.strip_prefix('v'));
            name.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let mut found: Vec<Self> =
            entries.filter(is_version).filter(|path| *path != self.root).map(|root| Self { root }).collect();
        found.sort_by(|a, b| a.root.cmp(&b.root));
        found
    }

    /// Every interface whose program is pinned, whatever holds it there.
    fn pinned_programs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.programs()).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(entry.file_name().into_string().ok()?.replace(':', "."))).collect()
    }

    /// Removes the program of an interface that no link holds: the classic tc filter of older kernels.
    fn remove_filter(&self, interface: &str) -> Result<(), PinsError> {
        let index = super::program::interface_index(interface);
        // An interface that is gone took its filters with it.
        if index.is_some_and(|index| tc::attached(index).is_ok_and(|program| program.is_some())) {
            tc::detach(interface).map_err(|e| io_error("cannot remove the tc filter of", Path::new(interface), e))?;
        }
        remove(&self.program(interface))
    }

    /// Unpins the links and programs of interfaces that are not in `kept`, which detaches them.
    ///
    /// # Errors
    /// As [`Self::remove_all`].
    pub fn remove_others(&self, kept: impl Fn(&str) -> bool) -> Result<Vec<String>, PinsError> {
        let mut gone = Vec::new();
        for (mode, interface) in self.pinned_links().into_iter().filter(|(_, interface)| !kept(interface)) {
            remove(&self.link(mode, &interface))?;
            remove(&self.program(&interface))?;
            gone.push(interface);
        }
        for interface in self.pinned_programs().into_iter().filter(|interface| !kept(interface)) {
            self.remove_filter(&interface)?;
            gone.push(interface);
        }
        for interface in self.pinned_egress().into_iter().filter(|interface| !kept(interface)) {
            remove(&self.egress(&interface))?;
        }
        Ok(gone)
    }

    /// Unpins everything of every version: links first, which detaches the programs. Returns the interfaces that were detached.
    ///
    /// # Errors
    /// The first pin that could not be removed; what came before it is gone.
    pub fn remove_all(&self) -> Result<Vec<String>, PinsError> {
        let mut interfaces = self.remove_version()?;
        for other in self.other_versions() {
            interfaces.extend(other.remove_version()?);
        }
        Ok(interfaces)
    }

    fn remove_version(&self) -> Result<Vec<String>, PinsError> {
        let links = self.pinned_links();
        for (mode, interface) in &links {
            remove(&self.link(*mode, interface))?;
        }
        let mut interfaces: Vec<String> = links.into_iter().map(|(_, interface)| interface).collect();
        for interface in self.pinned_programs() {
            self.remove_filter(&interface)?;
            interfaces.push(interface);
        }
        interfaces.sort_unstable();
        interfaces.dedup();
        for interface in self.pinned_egress() {
            remove(&self.egress(&interface))?;
        }
        for dir in [self.programs(), self.maps()] {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                remove(&entry.path())?;
            }
        }
        // Directories that are not there, or in which another version still has pins, are left alone.
        let dirs = [self.links(AttachMode::Native), self.links(AttachMode::Generic), self.links(AttachMode::Tc)];
        let rest = [self.egress_links(), self.root.join("links"), self.programs(), self.maps(), self.root.clone()];
        for dir in dirs.iter().chain(&rest) {
            fs::remove_dir(dir).ok();
        }
        if let Some(parent) = self.root.parent() {
            fs::remove_dir(parent).ok();
        }
        Ok(interfaces)
    }
}

/// Pins the link at `old` at `new` instead, unless a link that does something is pinned there; whether it was moved.
fn take_over(old: &Path, new: &Path) -> Result<bool, PinsError> {
    // A link whose interface is gone must not stand in the way of one that enforces.
    let is_dead = |path: &Path| super::info::link(path).is_ok_and(|link| link.interface == Some(0));
    if new.exists() && is_dead(new) {
        remove(new)?;
    }
    let moves = !new.exists();
    if moves {
        let failed = |path: &Path, e: &dyn std::error::Error| {
            io_error("cannot take over the link", path, io::Error::other(e.to_string()))
        };
        let link: FdLink = PinnedLink::from_pin(old).map_err(|e| failed(old, &e))?.into();
        link.pin(new).map(drop).map_err(|e| failed(new, &e))?;
    }
    remove(old)?;
    Ok(moves)
}

/// Where the next object for `path` is pinned before it is moved there. What a killed agent leaves at such a place is
/// named like no interface, and goes with the pins of interfaces that the configuration does not name.
pub fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push("::new");
    path.with_file_name(name)
}

/// bpffs refuses dots; no interface has a colon in its name.
fn file_name(interface: &str) -> String {
    interface.replace('.', ":")
}

/// Removes one pin; one that is not there is success.
///
/// # Errors
/// When the file system refuses.
pub fn remove(path: &Path) -> Result<(), PinsError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("cannot unpin", path, e)),
        _ => Ok(()),
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> PinsError {
    PinsError::Io { action, path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_of_a_vlan_has_a_pin_that_bpffs_takes() {
        let pins = Pins { root: "/x".into() };
        assert_eq!(pins.link(AttachMode::Native, "eth0.100"), Path::new("/x/links/native/eth0:100"));
    }

    #[test]
    fn a_directory_that_is_no_bpffs_is_refused_with_the_remedy() {
        let error = Pins::below(Path::new("/proc")).expect_err("proc is no bpffs").to_string();
        assert!(error.contains("mount -t bpf"), "{error}");
    }
}
