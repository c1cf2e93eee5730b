//! Starts a program inside a network namespace so that it dies with its starter.
//!
//! A binary that calls [`exec_if_asked`] first thing in `main` can stand between: it enters the namespace, asks the
//! kernel to be killed with its parent, takes a private view of `/sys` that shows the namespace's devices, and turns
//! into the program. This is what `ip netns exec` does, plus the death signal.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::{prctl, signal::Signal};

use crate::netns::{self, Netns};

const WORD: &str = "inside-netns";

/// A command that runs `program` inside `netns`, by way of `helper`, a binary that calls [`exec_if_asked`].
///
/// The program is killed when the thread that spawns the command ends: spawn it from one that lives long enough.
pub fn command(helper: &Path, netns: &Netns, program: &Path) -> Command {
    let mut command = Command::new(helper);
    command.arg(WORD).arg(std::process::id().to_string()).arg(netns.path()).arg(program);
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
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before the line above sends no signal any more.
    if parent != std::os::unix::process::parent_id().to_string().as_str() {
        return Err(io::Error::other("the parent process is gone"));
    }
    netns::enter(&File::open(netns_path)?)?;
    show_own_devices()?;
    Err(Command::new(program).args(args).exec())
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
