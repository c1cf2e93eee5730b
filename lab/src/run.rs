//! Single runs of a loaded program on a frame of the test's own (`BPF_PROG_TEST_RUN`). Needs kernel 5.15.

use std::time::Duration;

use aya::TestRunOptions;
use aya::programs::{ProgramError, TestRun};

/// What one run gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's return value, such as an XDP action.
    pub verdict: u32,
    /// The frame as the program left it.
    pub frame: Vec<u8>,
}

/// A program that takes a frame: XDP or a tc classifier.
pub trait FrameProgram: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult> {}

impl<P> FrameProgram for P where P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::programs::TestRunResult>
{}

/// Runs an XDP program once on `frame`, which has at least 14 bytes.
///
/// `ingress` is the index of the device, in the caller's network namespace, that the frame seems to come from.
///
/// # Errors
/// The kernel refused the run.
pub fn run_xdp(program: &impl FrameProgram, frame: &[u8], ingress: Option<u32>) -> Result<Outcome, ProgramError> {
    // A program may lengthen the frame.
    let mut out = vec![0; frame.len() + 256];
    let context = ingress.map(|index| xdp_context(frame.len(), index));
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.data_out = Some(&mut out);
    options.ctx_in = context.as_ref().map(|c| &c[..]);
    let result = program.test_run(options)?;
    out.truncate(result.data_size_out as usize);
    Ok(Outcome { verdict: result.return_value, frame: out })
}

/// Runs a program `repeat` times on the same frame and returns the mean time of one run, measured by the kernel.
///
/// # Errors
/// The kernel refused the runs.
pub fn time(program: &impl FrameProgram, frame: &[u8], repeat: u32) -> Result<Duration, ProgramError> {
    let mut options = TestRunOptions::new();
    options.data_in = Some(frame);
    options.repeat = repeat;
    Ok(program.test_run(options)?.duration)
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
pub(crate) fn xdp_context(frame_len: usize, ifindex: u32) -> [u8; 24] {
    let mut context = [0; 24];
    // Frames are far below 4 GiB.
    context[4..8].copy_from_slice(&(frame_len as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
    context
}
