//! Ctrl-C as a flag, so that every guard cleans up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

/// Turns SIGINT, SIGTERM and SIGHUP into a flag; a second signal ends the process at once.
///
/// Call it before any other thread exists: threads inherit the mask.
///
/// # Errors
/// The signals cannot be blocked.
pub fn stop_on_signals() -> nix::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    thread::spawn(move || {
        while signals.wait().is_ok() {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        }
    });
    Ok(stop)
}
