//! Named network namespaces that go when their guard goes.
//!
//! They are bind mounts under `/run/netns`, as `ip netns` makes them, so that `ip netns exec NAME ...` looks into a lab
//! that was kept. The name carries the process id of its maker: what a killed process left is swept by the next one.

use std::any::Any;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::bpffs;

/// Where `ip netns` looks for namespaces.
pub const NETNS_DIR: &str = "/run/netns";
const PREFIX: &str = "ftlab-";

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// Why a namespace could not be made or entered.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot {action} for network namespace {name}")]
    Setup {
        name: String,
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter network namespace {name}")]
    Enter {
        name: String,
        #[source]
        source: io::Error,
    },
}

/// One network namespace; dropping it removes the name, and the kernel removes the rest with the last user.
#[derive(Debug)]
pub struct Netns {
    name: String,
    path: PathBuf,
    keep: bool,
}

impl Netns {
    /// Makes a namespace called `ftlab-<pid>-<number>-<role>` with its loopback device up. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// The directory, the mount point or the namespace could not be made; nothing is left behind then.
    pub fn create(role: &str) -> Result<Self, NetnsError> {
        let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        let path = Path::new(NETNS_DIR).join(&name);
        let fail = |action, source| NetnsError::Setup { name: name.clone(), action, source };
        fs::create_dir_all(NETNS_DIR).map_err(|e| fail("make /run/netns", e))?;
        File::create_new(&path).map_err(|e| fail("make the mount point", e))?;
        // From here on the guard cleans up, whatever fails next.
        let netns = Self { name: name.clone(), path, keep: false };
        let target = netns.path.clone();
        let made = thread::spawn(move || -> io::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            crate::rtnl::Rtnl::open()?.set_up("lo")?;
            Ok(())
        });
        joined(made.join()).map_err(|e| fail("make the namespace", e))?;
        Ok(netns)
    }

    /// The name for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bind mount that stands for the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the namespace in place when the guard goes. The next sweep after this process ended removes it, unless the
    /// process kept a whole lab.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Opens the namespace, for messages that move a device into it.
    ///
    /// # Errors
    /// The mount point is gone.
    pub fn open(&self) -> Result<File, NetnsError> {
        File::open(&self.path).map_err(|source| NetnsError::Enter { name: self.name.clone(), source })
    }

    /// Starts a thread that enters the namespace and then works there; so do child processes that it starts.
    ///
    /// The thread's result is an error if the namespace could not be entered.
    ///
    /// # Errors
    /// The namespace cannot be opened.
    pub fn spawn<T, F>(&self, work: F) -> Result<JoinHandle<Result<T, NetnsError>>, NetnsError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let file = self.open()?;
        let name = self.name.clone();
        Ok(thread::spawn(move || {
            enter(&file).map_err(|source| NetnsError::Enter { name, source })?;
            Ok(work())
        }))
    }

    /// Runs `work` inside the namespace on a thread of its own and hands its result back.
    ///
    /// # Errors
    /// The namespace cannot be opened or entered.
    ///
    /// # Panics
    /// Passes on the panic of `work`.
    pub fn run<T, F>(&self, work: F) -> Result<T, NetnsError>
    where
        F: FnOnce() -> T + Send,
        T: Send,
    {
        let file = self.open()?;
        let result = thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(&file)?;
                Ok(work())
            });
            joined(inside.join())
        });
        result.map_err(|source| NetnsError::Enter { name: self.name.clone(), source })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.keep {
            remove(&self.path);
        }
    }
}

/// Removes the namespaces of makers that no longer run and returns their names; those of a kept lab stay.
pub fn sweep() -> Vec<String> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else { return Vec::new() };
    let mut removed = Vec::new();
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        if maker(&name).is_some_and(|pid| !bpffs::is_running(pid) && !bpffs::is_kept(pid)) {
            remove(&entry.path());
            removed.push(name);
        }
    }
    removed
}

/// The process id in a name that this module made up.
pub(crate) fn maker(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Moves the calling thread, and it alone, into a namespace.
pub(crate) fn enter(netns: &File) -> io::Result<()> {
    Ok(setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?)
}

fn remove(path: &Path) {
    // Both may be gone already; there is nobody to tell and nothing else to try.
    umount2(path, MntFlags::MNT_DETACH).ok();
    fs::remove_file(path).ok();
}

/// The result of a thread that ended; its panic goes on here.
fn joined<T>(result: Result<T, Box<dyn Any + Send>>) -> T {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
