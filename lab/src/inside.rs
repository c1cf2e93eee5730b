//! Starts a program inside a network namespace so that it dies with its starter.
//!
//! A binary that calls [`exec_if_asked`] first thing in `main` can stand between: it enters the namespace, asks the
//! kernel to be killed with its parent, takes a private view of `/sys` that shows the namespace's devices, and turns
//! into the program. This is what `ip netns exec` does, plus the death signal.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};

use crate::netns::{self, Netns};

const WORD: &str = "inside-netns";

/// What ends a program that runs inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It is killed when the thread that spawns it ends: spawn it from one that lives long enough.
    WithParent,
    /// Nothing but itself.
    Own,
}

/// A command that runs `program` inside `netns`, by way of `helper`, a binary that calls [`exec_if_asked`].
pub fn command(helper: &Path, netns: &Netns, program: &Path, life: Life) -> Command {
    let parent = if life == Life::WithParent { std::process::id() } else { 0 };
    let mut command = Command::new(helper);
    command.arg(WORD).arg(parent.to_string()).arg(netns.path()).arg(program);
    command
}

/// Turns this process into the program that [`command`] named, if its arguments say so; returns otherwise.
pub fn exec_if_asked() {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|word| word == WORD)
        && let Err(error) = exec(args)
    {
        eprintln!("cannot start a program inside its network namespace: {error}");
        std::process::exit(126);
    }
}

fn exec(mut args: impl Iterator<Item = OsString>) -> io::Result<Infallible> {
    let missing = || io::Error::new(io::ErrorKind::InvalidInput, "an argument is missing");
    let parent = args.next().ok_or_else(missing)?;
    let netns_path = args.next().ok_or_else(missing)?;
    let program = args.next().ok_or_else(missing)?;
    // Whoever waits for signals has blocked them, and a blocked signal stays blocked in a new program.
    SigSet::all().thread_unblock()?;
    if parent != "0" {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // A parent that died before the line above sends no signal any more.
        if parent != parent_id().to_string().as_str() {
            return Err(io::Error::other("the parent process is gone"));
        }
    }
    netns::enter(&File::open(netns_path)?)?;
    show_own_devices()?;
    Err(Command::new(program).args(args).exec())
}

/// Shows the calling thread and its children a BPF file system at `/sys/fs/bpf`, and the current namespace's devices.
pub(crate) fn show_bpf(bpf: &Path) -> io::Result<()> {
    show_own_devices()?;
    let none = None::<&str>;
    Ok(mount(Some(bpf), "/sys/fs/bpf", none, MsFlags::MS_BIND, none)?)
}

/// Mounts a `/sys` of the current namespace over the machine's, seen by this process and its children alone.
fn show_own_devices() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    // Slave, not private: what the lab mounts later is still seen here, and nothing goes the other way.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
    umount2("/sys", MntFlags::MNT_DETACH).ok();
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
    Ok(())
}
