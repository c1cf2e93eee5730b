//! A program as the verifier left it, and what of it does nothing.
//!
//! The kernel deletes code that it can prove unreachable, and with it the branches there. What it does not delete is a
//! value that nobody uses any more: where a constant was read to ask whether a stage is on, the read stays. So three
//! things are looked for in the instructions: maps that are still named, jumps that still depend on the constant, and
//! instructions whose result no other instruction reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail, ensure};
use aya::maps::MapInfo;
use aya::programs::ProgramInfo;

const BYTES: usize = 8;
/// `BPF_LD | BPF_IMM | BPF_DW`: takes two places.
const LD_IMM64: u8 = 0x18;
const PSEUDO_MAP: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JA: u8 = 0x05;
const JA32: u8 = 0x06;
const REGISTERS: usize = 16;
const FRAME: u8 = 10;
/// Of eight bytes in a frame of 512.
const SLOTS: usize = 64;
/// Registers that a call may read, and those that it leaves without meaning.
const ARGUMENTS: u16 = 0b11_1110;
const SCRATCHED: u16 = 0b11_1111;

/// One instruction; the second half of a wide one is not among them.
#[derive(Clone, Copy, Debug)]
struct Insn {
    opcode: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
    /// Of the second half.
    next_imm: i32,
    /// Where it stands, in places of eight bytes.
    at: usize,
}

/// A translated program.
pub(super) struct Translated {
    code: Vec<Insn>,
    /// The instruction that stands at a place.
    places: BTreeMap<usize, usize>,
    maps: BTreeMap<u32, String>,
}

/// What a constant has left in a program.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Left {
    /// Jumps that depend on it.
    pub(super) tests: usize,
    /// Instructions that read it or work on it, and those that nobody needs without them.
    pub(super) dead: usize,
}

impl Translated {
    /// Asks the kernel for the instructions, by bpftool.
    pub(super) fn read(info: &ProgramInfo) -> anyhow::Result<Self> {
        let file = tempfile::NamedTempFile::new()?;
        let output = Command::new("bpftool")
            .args(["prog", "dump", "xlated", "id", &info.id().to_string(), "file"])
            .arg(file.path())
            .stdin(Stdio::null())
            .output()
            .context("bpftool cannot be started (package bpftool)")?;
        if !output.status.success() {
            bail!("bpftool prog dump: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let ids = info.map_ids()?.context("the kernel does not name a program's maps")?;
        let mut maps = BTreeMap::new();
        for id in ids {
            maps.insert(id, MapInfo::from_id(id)?.name_as_str().unwrap_or_default().to_owned());
        }
        Self::parse(&fs::read(file.path())?, maps)
    }

    fn parse(bytes: &[u8], maps: BTreeMap<u32, String>) -> anyhow::Result<Self> {
        ensure!(!bytes.is_empty() && bytes.len().is_multiple_of(BYTES), "{} bytes are no instructions", bytes.len());
        let mut code = Vec::new();
        let mut chunks = bytes.chunks_exact(BYTES).enumerate();
        while let Some((at, b)) = chunks.next() {
            let imm = |b: &[u8]| i32::from_ne_bytes([b[4], b[5], b[6], b[7]]);
            // The registers share a byte in the order of the machine's bits.
            let (low, high) = (b[1] & 15, b[1] >> 4);
            let (dst, src) = if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
            let next_imm = if b[0] == LD_IMM64 { chunks.next().map_or(0, |(_, b)| imm(b)) } else { 0 };
            let off = i16::from_ne_bytes([b[2], b[3]]);
            code.push(Insn { opcode: b[0], dst, src, off, imm: imm(b), next_imm, at });
        }
        let places = code.iter().enumerate().map(|(index, insn)| (insn.at, index)).collect();
        Ok(Self { code, places, maps })
    }

    /// Places of eight bytes, as the kernel counts instructions.
    pub(super) fn len(&self) -> usize {
        self.code.last().map_or(0, |insn| insn.at + 1 + usize::from(insn.opcode == LD_IMM64))
    }

    /// How many instructions mention a map of this name.
    pub(super) fn mentions(&self, name: &str) -> usize {
        let wide = self.code.iter().filter(|i| i.opcode == LD_IMM64);
        let ids = wide.filter(|i| matches!(i.src, PSEUDO_MAP | PSEUDO_MAP_VALUE)).map(|i| i.imm as u32);
        ids.filter(|id| self.maps.get(id).is_some_and(|n| n == name)).count()
    }

    /// What `bits` of the constant at `offset` of map `name` have left.
    pub(super) fn left_of(&self, name: &str, offset: usize, bits: u32) -> Left {
        let known = self.known(name, offset);
        let is_asked = |i: usize| {
            let insn = &self.code[i];
            // "Jump if any of these bits is set" asks for no others.
            let among = if insn.opcode & 0xf8 == 0x40 { insn.imm as u32 } else { u32::MAX };
            is_test(insn) && known[i].bits_of(reads(insn)) & among & bits != 0
        };
        let tests = (0..self.code.len()).filter(|&i| is_asked(i)).count();
        let is_of_it = |i: &usize| {
            let read = reads(&self.code[*i]);
            self.is_read_of(&self.code[*i], name, offset)
                || known[*i].bits_of(read) & bits != 0
                || known[*i].addresses & read != 0
        };
        let dead = self.dead().into_iter().filter(is_of_it);
        Left { tests, dead: dead.map(|i| 1 + usize::from(self.code[i].opcode == LD_IMM64)).sum() }
    }

    fn is_read_of(&self, insn: &Insn, name: &str, offset: usize) -> bool {
        insn.opcode == LD_IMM64
            && insn.src == PSEUDO_MAP_VALUE
            && self.maps.get(&(insn.imm as u32)).is_some_and(|n| n == name)
            && insn.next_imm as usize == offset
    }

    /// What is known of the constant before each instruction.
    fn known(&self, name: &str, offset: usize) -> Vec<Known> {
        let mut states = vec![Known::NOTHING; self.code.len()];
        let mut work: Vec<usize> = (0..self.code.len()).rev().collect();
        while let Some(index) = work.pop() {
            let insn = &self.code[index];
            let after = states[index].after(insn, self.is_read_of(insn, name, offset));
            for next in self.next(index) {
                let merged = states[next].or(&after);
                if merged != states[next] {
                    states[next] = merged;
                    work.push(next);
                }
            }
        }
        states
    }

    /// Instructions without any effect but on a register that nobody reads.
    fn dead(&self) -> BTreeSet<usize> {
        let mut dead = BTreeSet::new();
        loop {
            let live = self.live_after(&dead);
            let is_idle = |i: &usize| is_pure(&self.code[*i]) && live[*i] & (1 << self.code[*i].dst) == 0;
            let found: Vec<usize> = (0..self.code.len()).filter(|i| !dead.contains(i) && is_idle(i)).collect();
            if found.is_empty() {
                return dead;
            }
            dead.extend(found);
        }
    }

    /// Registers that somebody reads after each instruction.
    fn live_after(&self, dead: &BTreeSet<usize>) -> Vec<u16> {
        let mut before = vec![0u16; self.code.len()];
        let mut after = vec![0u16; self.code.len()];
        let mut is_changed = true;
        while is_changed {
            is_changed = false;
            for index in (0..self.code.len()).rev() {
                let insn = &self.code[index];
                let out = self.next(index).fold(0, |all, next| all | before[next]);
                let into = if dead.contains(&index) { out } else { (out & !writes(insn)) | reads(insn) };
                is_changed |= (out, into) != (after[index], before[index]);
                (after[index], before[index]) = (out, into);
            }
        }
        after
    }

    fn next(&self, index: usize) -> impl Iterator<Item = usize> {
        let insn = &self.code[index];
        let is_jump = matches!(insn.opcode & 7, 5 | 6) && !matches!(insn.opcode, CALL | EXIT);
        let distance = if insn.opcode == JA32 { insn.imm as isize } else { isize::from(insn.off) };
        let target = is_jump.then(|| self.places.get(&insn.at.wrapping_add_signed(distance + 1)).copied()).flatten();
        let falls = !matches!(insn.opcode, EXIT | JA | JA32) && index + 1 < self.code.len();
        falls.then_some(index + 1).into_iter().chain(target)
    }
}

/// Where a constant is, and which of its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    /// Of each register, the bits that its value may depend on.
    values: [u32; REGISTERS],
    /// Registers that hold the constant's address.
    addresses: u16,
    /// Of each slot of the frame, as of the registers.
    slots: [u32; SLOTS],
}

impl Known {
    const NOTHING: Self = Self { values: [0; REGISTERS], addresses: 0, slots: [0; SLOTS] };

    fn or(mut self, other: &Self) -> Self {
        self.values.iter_mut().zip(other.values).for_each(|(bits, more)| *bits |= more);
        self.slots.iter_mut().zip(other.slots).for_each(|(bits, more)| *bits |= more);
        self.addresses |= other.addresses;
        self
    }

    /// Bits in any of the registers of a mask.
    fn bits_of(&self, registers: u16) -> u32 {
        let of = |(register, bits): (usize, &u32)| if registers & (1 << register) != 0 { *bits } else { 0 };
        self.values.iter().enumerate().map(of).fold(0, |all, bits| all | bits)
    }

    /// After `insn`, which takes the constant's address or does not.
    fn after(mut self, insn: &Insn, is_address: bool) -> Self {
        let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
        let (value, address) = match insn.opcode & 7 {
            _ if insn.opcode == LD_IMM64 => (0, is_address),
            1 if self.addresses & (1 << src) != 0 => (u32::MAX, false),
            1 if insn.src == FRAME => (slot_of(insn).map_or(0, |slot| self.slots[slot]), false),
            1 => (0, false),
            // Stores: only those into the frame are followed.
            2 | 3 => {
                if let Some(slot) = slot_of(insn).filter(|_| insn.dst == FRAME) {
                    self.slots[slot] = if insn.opcode & 7 == 3 { self.values[src] } else { 0 };
                }
                return self;
            }
            4 | 7 => {
                let (operation, is_by_register) = (insn.opcode & 0xf0, insn.opcode & 8 != 0);
                let from = if is_by_register && !matches!(operation, 0x80 | 0xd0) { self.values[src] } else { 0 };
                let address = operation == 0xb0 && is_by_register && self.addresses & (1 << src) != 0;
                let value = match operation {
                    0xb0 => from,
                    0x50 if !is_by_register => self.values[dst] & insn.imm as u32,
                    _ => self.values[dst] | from,
                };
                (value, address)
            }
            _ if insn.opcode == CALL => {
                self.values[..6].fill(0);
                self.addresses &= !SCRATCHED;
                return self;
            }
            _ => return self,
        };
        self.values[dst] = value;
        self.addresses = if address { self.addresses | 1 << dst } else { self.addresses & !(1 << dst) };
        self
    }
}

/// Of the eight bytes of the frame that a load or store touches.
fn slot_of(insn: &Insn) -> Option<usize> {
    let back = usize::try_from(-i32::from(insn.off)).ok()?.checked_sub(1)?;
    Some(back / BYTES).filter(|slot| *slot < SLOTS)
}

fn is_test(insn: &Insn) -> bool {
    matches!(insn.opcode & 7, 5 | 6) && !matches!(insn.opcode, CALL | EXIT | JA | JA32)
}

fn is_pure(insn: &Insn) -> bool {
    // Loads, wide constants and arithmetic; the first class has the old packet loads as well, which may end the program.
    insn.opcode == LD_IMM64 || matches!(insn.opcode & 7, 1 | 4 | 7)
}

fn reads(insn: &Insn) -> u16 {
    let (dst, src) = (1u16 << insn.dst, 1u16 << insn.src);
    let by_register = insn.opcode & 8 != 0;
    match insn.opcode {
        CALL => ARGUMENTS,
        EXIT => 1,
        JA | JA32 | LD_IMM64 => 0,
        opcode => match opcode & 7 {
            0 => ARGUMENTS | 1 << 6,
            1 => src,
            2 => dst,
            // An atomic one may compare with register 0.
            3 => dst | src | if opcode & 0xe0 == 0xc0 { 1 } else { 0 },
            5 | 6 => dst | if by_register { src } else { 0 },
            _ => match (opcode & 0xf0, by_register) {
                (0xb0, true) => src,
                (0xb0, false) => 0,
                (0x80 | 0xd0, _) => dst,
                (_, true) => dst | src,
                (_, false) => dst,
            },
        },
    }
}

fn writes(insn: &Insn) -> u16 {
    let (dst, src) = (1u16 << insn.dst, 1u16 << insn.src);
    match insn.opcode {
        CALL => SCRATCHED,
        LD_IMM64 => dst,
        opcode => match opcode & 7 {
            0 => SCRATCHED,
            1 | 4 | 7 => dst,
            // An atomic one that fetches; one that is not changes nothing that anybody can rely on.
            3 if opcode & 0xe0 == 0xc0 && insn.imm & 1 != 0 && insn.imm & 0xf0 != 0xf0 => src,
            _ => 0,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: u32 = 7;
    const R0: u8 = 0;
    const R1: u8 = 1;

    fn insn(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> Vec<u8> {
        let registers = if cfg!(target_endian = "little") { dst | src << 4 } else { dst << 4 | src };
        [&[opcode, registers][..], &off.to_ne_bytes(), &imm.to_ne_bytes()].concat()
    }

    /// r1 = the constant's value.
    fn constant() -> Vec<u8> {
        let address = [insn(LD_IMM64, R1, PSEUDO_MAP_VALUE, 0, MAP as i32), insn(0, 0, 0, 0, 4)].concat();
        [address, insn(0x61, R1, R1, 0, 0)].concat()
    }

    fn program(parts: &[Vec<u8>]) -> Translated {
        Translated::parse(&parts.concat(), [(MAP, ".rodata".to_owned())].into()).expect("instructions")
    }

    #[test]
    fn a_constant_that_nobody_asks_any_more_leaves_its_reading() {
        let parts = [constant(), insn(0x57, R1, 0, 0, 8), insn(0xb7, R0, 0, 0, 2), insn(EXIT, 0, 0, 0, 0)];
        let code = program(&parts);
        assert_eq!(code.left_of(".rodata", 4, 8), Left { tests: 0, dead: 4 });
        assert_eq!(code.left_of(".rodata", 0, 8), Left::default(), "another constant");
        assert_eq!(code.left_of(".rodata", 4, 4).tests, 0);
        assert_eq!((code.len(), code.mentions(".rodata"), code.mentions("BLOCK4")), (6, 1, 0));
    }

    #[test]
    fn a_jump_that_still_depends_on_it_is_found_also_through_the_stack() {
        let spill = [insn(0x7b, FRAME, R1, -8, 0), insn(0xb7, R1, 0, 0, 0), insn(0x79, R1, FRAME, -8, 0)].concat();
        let rest = [insn(0x15, R1, 0, 1, 0), insn(0xb7, R0, 0, 0, 1), insn(EXIT, 0, 0, 0, 0)].concat();
        let code = program(&[insn(0xb7, R0, 0, 0, 2), constant(), spill, rest]);
        assert_eq!(code.left_of(".rodata", 4, 8), Left { tests: 1, dead: 0 });
        let asks = [insn(0x57, R1, 0, 0, 4), insn(0x15, R1, 0, 1, 0), insn(0xb7, R0, 0, 0, 1)].concat();
        let code = program(&[insn(0xb7, R0, 0, 0, 2), constant(), asks, insn(EXIT, 0, 0, 0, 0)]);
        assert_eq!((code.left_of(".rodata", 4, 4).tests, code.left_of(".rodata", 4, 8).tests), (1, 0));
    }

    #[test]
    fn a_program_that_never_reads_it_has_nothing_of_it() {
        let code = program(&[insn(0xb7, R0, 0, 0, 2), insn(EXIT, 0, 0, 0, 0)]);
        assert_eq!(code.left_of(".rodata", 4, 8), Left::default());
        assert_eq!(code.mentions(".rodata"), 0);
        assert!(Translated::parse(&[1, 2, 3], BTreeMap::new()).is_err());
    }
}
