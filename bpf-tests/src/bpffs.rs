//! A BPF file system of the lab's own, in a temporary directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::netns::maker;

const PREFIX: &str = "ftlab-";

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

    /// Leaves everything in place; the next sweep after this process ended removes it.
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

/// Removes the directories and mounts of makers that no longer run and returns their paths.
pub fn sweep() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if maker(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&entry.path());
            removed.push(entry.path());
        }
    }
    removed
}

fn remove(path: &Path) {
    // A directory that was never mounted, or is gone already, is as good as removed.
    umount2(&path.join("bpf"), MntFlags::MNT_DETACH).ok();
    fs::remove_dir_all(path).ok();
}
