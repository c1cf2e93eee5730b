//! Where links, programs and maps are pinned, so that enforcement outlives the daemon.
//!
//! ```text
//! <bpffs>/ftagent/v<ABI>/maps/<MAP>
//! <bpffs>/ftagent/v<ABI>/links/<mode>/<interface>      mode: native, generic, tc
//! <bpffs>/ftagent/v<ABI>/programs/<interface>
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ftagent_common::abi::ABI_VERSION;
use ftagent_common::vocab::AttachMode;

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
        ] {
            fs::create_dir_all(&dir).map_err(|source| io_error("cannot make", &dir, source))?;
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

    /// Unpins everything: links first, which detaches the programs. Returns the interfaces that were detached.
    ///
    /// # Errors
    /// The first pin that could not be removed; what came before it is gone.
    pub fn remove_all(&self) -> Result<Vec<String>, PinsError> {
        let links = self.pinned_links();
        for (mode, interface) in &links {
            remove(&self.link(*mode, interface))?;
        }
        for dir in [self.programs(), self.maps()] {
            for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
                remove(&entry.path())?;
            }
        }
        // Directories that are not there, or in which another version still has pins, are left alone.
        let dirs = [self.links(AttachMode::Native), self.links(AttachMode::Generic), self.links(AttachMode::Tc)];
        for dir in dirs.iter().chain(&[self.root.join("links"), self.programs(), self.maps(), self.root.clone()]) {
            fs::remove_dir(dir).ok();
        }
        if let Some(parent) = self.root.parent() {
            fs::remove_dir(parent).ok();
        }
        Ok(links.into_iter().map(|(_, interface)| interface).collect())
    }
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
