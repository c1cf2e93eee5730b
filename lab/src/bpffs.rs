//! A BPF file system of the lab's own, in a temporary directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::netns::maker;

const PREFIX: &str = "ftlab-";
/// A file with this name in a lab's directory keeps the lab from being swept.
pub const KEPT: &str = "kept.json";

/// A temporary directory with a BPF file system mounted at `bpf`; both go when the guard goes.
///
/// Pinned links and maps go with the mount, unless something else holds them.
#[derive(Debug)]
pub struct LabDir {
    path: PathBuf,
    keep: bool,
}

impl LabDir {
    /// Makes `<temporary directory>/ftlab-<pid>-<role>-<random>` and mounts a BPF file system at its `bpf`.
    ///
    /// # Errors
    /// The directory could not be made, or mounting is not allowed (it needs CAP_SYS_ADMIN).
    pub fn create(role: &str) -> io::Result<Self> {
        let prefix = format!("{PREFIX}{}-{role}-", std::process::id());
        let path = tempfile::Builder::new().prefix(&prefix).tempdir()?.keep();
        let dir = Self { path, keep: false };
        let bpf = dir.bpf();
        fs::create_dir(&bpf)?;
        mount(
            Some("bpf"),
            &bpf,
            Some("bpf"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
            None::<&str>,
        )?;
        Ok(dir)
    }

    /// The directory itself, for configuration, state and logs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the BPF file system is mounted.
    pub fn bpf(&self) -> PathBuf {
        self.path.join("bpf")
    }

    /// Leaves everything in place. The next sweep after this process ended removes it, unless there is a [`KEPT`] file.
    pub fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for LabDir {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// Removes the directories and mounts of makers that no longer run and returns their paths. Those with a [`KEPT`] file
/// stay.
pub fn sweep() -> Vec<PathBuf> {
    let dead = all().filter(|(pid, path)| !is_running(*pid) && !path.join(KEPT).exists());
    dead.map(|(_, path)| path).inspect(|path| remove(path)).collect()
}

/// The directories that were kept on purpose by makers that no longer run.
pub fn kept() -> Vec<PathBuf> {
    all().filter(|(pid, path)| !is_running(*pid) && path.join(KEPT).exists()).map(|(_, path)| path).collect()
}

/// Whether a process that kept its lab made this.
pub(crate) fn is_kept(pid: u32) -> bool {
    all().any(|(maker, path)| maker == pid && path.join(KEPT).exists())
}

pub(crate) fn is_running(pid: u32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

/// Every directory that this module made, with its maker.
fn all() -> impl Iterator<Item = (u32, PathBuf)> {
    let entries = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((maker(entry.file_name().to_str()?)?, entry.path())))
}

fn remove(path: &Path) {
    // A directory that was never mounted, or is gone already, is as good as removed.
    umount2(&path.join("bpf"), MntFlags::MNT_DETACH).ok();
    fs::remove_dir_all(path).ok();
}
