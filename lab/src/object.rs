//! The lab's own BPF objects, as `build.rs` made them.

use aya::{Ebpf, EbpfError, EbpfLoader};

/// Bytes at an address that an ELF reader may expect.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static GENERATOR_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/lab_generator.o")));
static LADDER_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/lab_ladder.o")));
static STOPWATCH_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/lab_stopwatch.o")));

/// The traffic generator and the counters: an ELF object with BTF; empty when it was not built.
pub static GENERATOR: &[u8] = &GENERATOR_FILE.0;

/// The yardsticks of the drop ladder, likewise.
pub static LADDER: &[u8] = &LADDER_FILE.0;

/// What times the reception of frames, likewise.
pub static STOPWATCH: &[u8] = &STOPWATCH_FILE.0;

/// Why the lab's programs could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LabProgramError {
    #[error("this build has no BPF programs in it: run `cargo xtask setup` and build again")]
    NotBuilt,
    #[error("cannot load the lab's BPF programs")]
    Load(#[from] EbpfError),
    #[error("the lab's BPF object has no {0}")]
    Missing(&'static str),
    #[error("the lab's program {program} was refused")]
    Program {
        program: &'static str,
        #[source]
        source: aya::programs::ProgramError,
    },
    #[error("a map of the lab's programs cannot be used")]
    Map(#[from] aya::maps::MapError),
}

/// Loads the generator's object; its maps exist then, its programs not yet.
pub(crate) fn load() -> Result<Ebpf, LabProgramError> {
    load_with(GENERATOR, &mut EbpfLoader::new())
}

/// Loads an object of the lab with a loader that was told about it.
pub(crate) fn load_with(object: &[u8], loader: &mut EbpfLoader<'_>) -> Result<Ebpf, LabProgramError> {
    if object.is_empty() {
        return Err(LabProgramError::NotBuilt);
    }
    Ok(loader.load(object)?)
}
