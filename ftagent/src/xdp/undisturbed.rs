//! Signals wait while the kernel looks at a program.
//!
//! The verifier gives up with EAGAIN when a signal waits for the thread that asks (`signal_pending` in `do_check`,
//! kernel/bpf/verifier.c; since Linux 5.0). A child that ends is such a signal, and at start the agent has children:
//! what other tools hold is repaired while the datapath is loaded.

use std::io;
use std::marker::PhantomData;

use aya::programs::ProgramError;
use nix::sys::signal::{SigSet, SigmaskHow, pthread_sigmask};

use super::program::chain;

/// How often a program is offered that the verifier gives up; work that the kernel itself has for the thread looks
/// like a signal too, and no mask keeps it back.
const ATTEMPTS: usize = 5;
/// Bytes kept of what the verifier says.
const LOG_BYTES: usize = 4_000;

/// While it lives, signals wait for this thread; other threads get those that are for the process.
pub(super) struct Undisturbed {
    before: Option<SigSet>,
    /// A mask belongs to the thread that set it.
    of_this_thread: PhantomData<*const ()>,
}

impl Undisturbed {
    pub(super) fn begin() -> Self {
        // Refused only for wrong arguments; without it the verifier may have to be asked again.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok();
        Self { before, of_this_thread: PhantomData }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(before), None)
        {
            tracing::warn!(%error, "signals stay blocked in a thread");
        }
    }
}

/// Loads a program, also when the verifier gives up for something else that waits.
///
/// # Errors
/// What the kernel says, in words, shortened.
pub(super) fn load_program(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), String> {
    let _calm = Undisturbed::begin();
    let mut attempts = 1;
    loop {
        match load() {
            // A program that is loaded already is as good as one just loaded.
            Ok(()) | Err(ProgramError::AlreadyLoaded) => return Ok(()),
            Err(ProgramError::LoadError { io_error, .. }) if is_disturbed(&io_error) && attempts < ATTEMPTS => {
                attempts += 1;
            }
            Err(error) => return Err(chain(&error).chars().take(LOG_BYTES).collect()),
        }
    }
}

fn is_disturbed(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use aya_obj::VerifierLog;
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, Signal, sigaction};

    use super::*;
    use crate::xdp::kernel::probe;

    const ROUNDS: usize = 2_000;

    extern "C" fn nothing(_: libc::c_int) {}

    fn disturbed() -> usize {
        let is_disturbed = |_: &usize| probe::trivial().is_err_and(|error| is_disturbed(&error));
        (0..ROUNDS).filter(is_disturbed).count()
    }

    #[test]
    fn signals_do_not_end_what_the_verifier_is_at() {
        if let Err(error) = probe::trivial() {
            println!("skipped: loading programs needs root ({error})");
            return;
        }
        let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler does nothing, and nobody else here uses this signal.
        unsafe { sigaction(Signal::SIGURG, &action) }.expect("a handler");
        // SAFETY: always succeeds.
        let (target, ends) = (unsafe { libc::pthread_self() }, AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !ends.load(Ordering::Relaxed) {
                    // SAFETY: the thread lives as long as this scope.
                    assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGURG) }, 0);
                }
            });
            let without = disturbed();
            let with = {
                let _calm = Undisturbed::begin();
                disturbed()
            };
            let after = disturbed();
            ends.store(true, Ordering::Relaxed);
            assert!(without > 0, "no load was disturbed: this test shows nothing");
            assert_eq!(with, 0);
            assert!(after > 0, "the mask stayed");
        });
    }

    #[test]
    fn a_program_is_offered_again_a_few_times() {
        let offered = |error: i32, times: usize| {
            let mut asked = 0;
            let result = load_program(|| {
                asked += 1;
                let verifier_log = VerifierLog::new(String::new());
                let io_error = io::Error::from_raw_os_error(error);
                if asked > times { Ok(()) } else { Err(ProgramError::LoadError { io_error, verifier_log }) }
            });
            (asked, result.is_ok())
        };
        assert_eq!(offered(libc::EAGAIN, 0), (1, true));
        assert_eq!(offered(libc::EAGAIN, ATTEMPTS - 1), (ATTEMPTS, true));
        assert_eq!(offered(libc::EAGAIN, ATTEMPTS), (ATTEMPTS, false));
        assert_eq!(offered(libc::EACCES, 1), (1, false));
    }
}
