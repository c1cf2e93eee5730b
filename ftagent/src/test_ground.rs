//! Places of their own for unit tests: a small disk, an empty network.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a thread that alone sees a file system of `bytes`; prints why where that is not possible.
pub(crate) fn on_a_small_disk(bytes: u64, test: impl FnOnce(&Path) + Send + 'static) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().to_path_buf();
    let ran = std::thread::spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNS) {
            println!("skipped: a mount namespace of its own needs root: {e}");
            return;
        }
        let private = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>);
        private.expect("mounts stay in the thread");
        let options = format!("size={bytes}");
        let mounted = mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        mounted.expect("a small tmpfs");
        test(&path);
        umount2(&path, MntFlags::MNT_DETACH).expect("the tmpfs goes");
    })
    .join();
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `test` in a thread with a network namespace of its own; prints why where that is not possible.
pub(crate) fn in_an_empty_network(test: impl FnOnce() + Send + 'static) {
    let ran = std::thread::spawn(move || {
        if let Err(e) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("skipped: a network namespace of its own needs root: {e}");
            return;
        }
        test();
    })
    .join();
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }
}

/// Runs one command and fails with its words.
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program).args(arguments).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
