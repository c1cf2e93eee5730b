//! Counts frames where they arrive, apart for attack frames and all others.
//!
//! Attack frames carry [`ATTACK_MAC`] as their source MAC, which no rule looks at. [`Meter`] sits behind an XDP program,
//! at the ingress hook of traffic control: what it counts got through, whatever the program under test says itself.
//! [`XdpCounter`] is an XDP program of its own.

use aya::Ebpf;
use aya::maps::{MapData, PerCpuArray};
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};

use crate::object::{self, LabProgramError};

/// The source MAC of every frame that the lab sends as an attack. The BPF program has the same constant.
pub const ATTACK_MAC: [u8; 6] = [0x02, 0x00, 0x00, 0x00, 0xa7, 0x7a];

/// Frames seen; segments that receive offload joined are counted one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub attack: u64,
    pub other: u64,
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self { attack: self.attack - earlier.attack, other: self.other - earlier.other }
    }
}

/// Which way frames pass a [`Meter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// After XDP, before the stack. Receive offload may have joined frames.
    In,
    /// After the stack, before the wire. Frames sent by XDP do not come by here.
    Out,
}

/// Counts what passes the traffic-control hook of a device; drops nothing.
pub struct Meter(Ebpf);

impl Meter {
    /// Attaches to `device` of the calling thread's network namespace; detaches when dropped.
    ///
    /// # Errors
    /// The programs are not built, or the kernel refused them.
    pub fn attach(device: &str, direction: Direction) -> Result<Self, LabProgramError> {
        const PROGRAM: &str = "lab_meter";
        let fail = |source| LabProgramError::Program { program: PROGRAM, source };
        let mut ebpf = object::load()?;
        let program = ebpf.program_mut(PROGRAM).ok_or(LabProgramError::Missing(PROGRAM))?;
        let program: &mut SchedClassifier = program.try_into().map_err(fail)?;
        program.load().map_err(fail)?;
        let hook = if direction == Direction::In { TcAttachType::Ingress } else { TcAttachType::Egress };
        if program.attach(device, hook).is_err() {
            // Before kernel 6.6 the hook is part of a queueing discipline; if that is the trouble or is there already,
            // the second try says it.
            qdisc_add_clsact(device).ok();
            program.attach(device, hook).map_err(fail)?;
        }
        Ok(Self(ebpf))
    }

    /// Frames counted since it was attached.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counts(&self) -> Result<Counts, LabProgramError> {
        counts(&self.0)
    }
}

/// What an [`XdpCounter`] does with a frame that it counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Drop,
    Pass,
}

/// Counts everything that a device receives, in native XDP.
pub struct XdpCounter(Ebpf);

impl XdpCounter {
    /// Attaches to `device` of the calling thread's network namespace; detaches when dropped.
    ///
    /// # Errors
    /// The programs are not built, or the kernel refused them.
    pub fn attach(device: &str, then: Then) -> Result<Self, LabProgramError> {
        let name = if then == Then::Drop { "lab_drop" } else { "lab_pass" };
        let fail = |source| LabProgramError::Program { program: name, source };
        let mut ebpf = object::load()?;
        let program = ebpf.program_mut(name).ok_or(LabProgramError::Missing(name))?;
        let program: &mut Xdp = program.try_into().map_err(fail)?;
        program.load().map_err(fail)?;
        program.attach(device, XdpMode::Driver).map_err(fail)?;
        Ok(Self(ebpf))
    }

    /// Frames counted since it was attached.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counts(&self) -> Result<Counts, LabProgramError> {
        counts(&self.0)
    }
}

fn counts(ebpf: &Ebpf) -> Result<Counts, LabProgramError> {
    const MAP: &str = "LAB_METER";
    let map: PerCpuArray<&MapData, u64> = PerCpuArray::try_from(ebpf.map(MAP).ok_or(LabProgramError::Missing(MAP))?)?;
    let class = |index| map.get(&index, 0).map(|values| values.iter().sum::<u64>());
    Ok(Counts { attack: class(0)?, other: class(1)? })
}
