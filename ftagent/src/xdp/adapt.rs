//! Makes the compiled datapath fit for a kernel that refuses some of its instructions unseen.
//!
//! Branches that the verifier deletes may call helpers that the kernel does not know. Instructions that it does not
//! know are another matter: kernels before 5.12 look at the encoding of every one before they delete any.

use std::borrow::Cow;

use super::kernel::{Feature, Support};
use crate::object;

/// `BPF_STX | BPF_ATOMIC | BPF_DW`, and the same of 32 bits.
const ATOMIC: [u8; 2] = [0xdb, 0xc3];
/// `BPF_CMPXCHG`.
const COMPARE_AND_SWAP: i32 = 0xf1;
/// The frame pointer: nothing lies at offset 0 from it.
const FRAME_POINTER: u8 = 10;

/// Whether the datapath of this build has a constant of that name.
pub fn declares(switch: &str) -> bool {
    // In the table of names, each ends with a zero byte and begins after that of another.
    let name = [b"\0", switch.as_bytes(), b"\0"].concat();
    object::DATAPATH.windows(name.len()).any(|window| window == name)
}

/// The object as this kernel takes it.
pub fn for_kernel<'a>(object: &'a [u8], support: &Support) -> Cow<'a, [u8]> {
    if support.has(Feature::CompareAndSwap) {
        return Cow::Borrowed(object);
    }
    Cow::Owned(without_compare_and_swap(object))
}

/// Puts an old atomic addition in the place of every compare-and-swap.
///
/// It is never run: the constant that goes with the feature leaves those branches out. Should one be reachable all the
/// same, its address, which nothing may write to, makes the verifier refuse the program.
fn without_compare_and_swap(object: &[u8]) -> Vec<u8> {
    let mut patched = object.to_vec();
    for (start, end) in code(object) {
        for at in (start..end.saturating_sub(7)).step_by(8) {
            let Some([opcode, _, _, _, immediate @ ..]) = object.get(at..at + 8) else { break };
            let Ok(immediate) = <[u8; 4]>::try_from(immediate) else { break };
            if ATOMIC.contains(opcode) && i32::from_ne_bytes(immediate) == COMPARE_AND_SWAP {
                patched[at + 1] = FRAME_POINTER;
                patched[at + 2..at + 8].fill(0);
            }
        }
    }
    patched
}

/// Where the sections with instructions lie in a 64-bit ELF file of this machine's byte order.
fn code(object: &[u8]) -> Vec<(usize, usize)> {
    const EXECUTABLE: u64 = 4;
    let u16_at = |at: usize| Some(u16::from_ne_bytes(object.get(at..at + 2)?.try_into().ok()?));
    let u64_at = |at: usize| Some(u64::from_ne_bytes(object.get(at..at + 8)?.try_into().ok()?));
    let number = |at: usize| usize::try_from(u64_at(at)?).ok();
    let (Some(table), Some(size), Some(count)) = (number(0x28), u16_at(0x3a), u16_at(0x3c)) else {
        return Vec::new();
    };
    let sections = (0..usize::from(count)).filter_map(|n| {
        let header = table.checked_add(n * usize::from(size)).filter(|header| *header < object.len())?;
        let (start, len) = (number(header + 24)?, number(header + 32)?);
        let end = start.checked_add(len).filter(|end| *end <= object.len())?;
        (u64_at(header + 8)? & EXECUTABLE != 0).then_some((start, end))
    });
    sections.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swaps(object: &[u8]) -> usize {
        let instructions = code(object).into_iter().flat_map(|(start, end)| object[start..end].chunks_exact(8));
        let is_swap = |i: &&[u8]| ATOMIC.contains(&i[0]) && i[4..8] == COMPARE_AND_SWAP.to_ne_bytes();
        instructions.filter(is_swap).count()
    }

    #[test]
    fn an_old_kernel_sees_no_compare_and_swap_and_nothing_else_changes() {
        if !object::is_built() {
            println!("skipped: built without a compiler for BPF");
            return;
        }
        let before = swaps(object::DATAPATH);
        assert!(before > 0, "the datapath has limits, which are shared by compare-and-swap");
        let patched = without_compare_and_swap(object::DATAPATH);
        assert_eq!(swaps(&patched), 0);
        let changed = object::DATAPATH.chunks(8).zip(patched.chunks(8)).filter(|(a, b)| a != b).count();
        assert_eq!(changed, before);
    }

    #[test]
    fn the_datapath_declares_its_switches() {
        if !object::is_built() {
            println!("skipped: built without a compiler for BPF");
            return;
        }
        for switch in ["HAS_COMPARE_AND_SWAP", "HAS_LOAD_BYTES"] {
            assert!(declares(switch), "{switch}");
        }
        assert!(!declares("HAS_NOTHING"));
    }

    #[test]
    fn what_is_no_elf_file_stays_as_it_is() {
        for bytes in [&b""[..], b"\x7fELF", &[0xff; 200]] {
            assert_eq!(without_compare_and_swap(bytes), bytes);
        }
    }
}
