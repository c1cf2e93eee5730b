//! The time that a CPU spends receiving frames, by two tracepoint programs.

use aya::maps::{MapData, PerCpuArray};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfLoader};

use crate::object::{self, LabProgramError};

const MAP: &str = "LAB_STOPWATCH";

/// Runs for the whole machine while it lives.
pub struct Stopwatch(Ebpf);

impl Stopwatch {
    /// Attaches the programs.
    ///
    /// # Errors
    /// They are not built, or the kernel refused them.
    pub fn start() -> Result<Self, LabProgramError> {
        let mut ebpf = object::load_with(object::STOPWATCH, &mut EbpfLoader::new())?;
        for (name, tracepoint) in [("lab_enter", "softirq_entry"), ("lab_leave", "softirq_exit")] {
            let fail = |source| LabProgramError::Program { program: name, source };
            let program = ebpf.program_mut(name).ok_or(LabProgramError::Missing(name))?;
            let program: &mut RawTracePoint = program.try_into().map_err(fail)?;
            program.load().map_err(fail)?;
            program.attach(tracepoint).map_err(fail)?;
        }
        Ok(Self(ebpf))
    }

    /// Nanoseconds that `cpu` has spent in the soft interrupt of reception since the start.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn spent_ns(&self, cpu: usize) -> Result<u64, LabProgramError> {
        let map = self.0.map(MAP).ok_or(LabProgramError::Missing(MAP))?;
        let values = PerCpuArray::<&MapData, [u64; 2]>::try_from(map)?.get(&0, 0)?;
        Ok(values.get(cpu).map_or(0, |watch| watch[1]))
    }
}
