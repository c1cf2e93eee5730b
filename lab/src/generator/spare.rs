//! A device that exists so that a program is attached to it.
//!
//! Before and after each run of an XDP program that is attached nowhere, the kernel changes its dispatcher and waits for
//! a grace period, some 25 ms in all (`bpf_prog_change_xdp` in net/bpf/test_run.c). A program that is attached somewhere
//! is in the dispatcher already: then a run of a few frames costs microseconds, and frames can be paced.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use crate::object::LabProgramError;
use crate::rtnl::{End, Rtnl};

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// A veth pair that is never up, in the namespace of the calling thread; it goes with the guard.
pub(super) struct Spare {
    name: String,
}

impl Spare {
    pub(super) fn create() -> io::Result<Self> {
        let here = File::open("/proc/thread-self/ns/net")?;
        // At most 15 bytes.
        let name = format!("spare{}", SEQUENCE.fetch_add(1, Ordering::Relaxed) % 1_000_000);
        let peer = format!("{name}p");
        let end = |name, last| End { name, mac: [0x02, 0, 0, 0, 0xff, last], queues: 1 };
        Rtnl::open()?.add_veth(&end(&name, 1), &end(&peer, 2), here.as_fd())?;
        Ok(Self { name })
    }

    /// Attaches a loaded program; it is detached when the device goes.
    pub(super) fn hold(&self, ebpf: &mut Ebpf, program: &'static str) -> Result<(), LabProgramError> {
        let fail = |source| LabProgramError::Program { program, source };
        let xdp = ebpf.program_mut(program).ok_or(LabProgramError::Missing(program))?;
        let xdp: &mut Xdp = xdp.try_into().map_err(fail)?;
        xdp.attach(&self.name, XdpMode::Driver).map(drop).map_err(fail)
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // It goes with its namespace at the latest.
        Rtnl::open().and_then(|rtnl| rtnl.remove(&self.name)).ok();
    }
}
