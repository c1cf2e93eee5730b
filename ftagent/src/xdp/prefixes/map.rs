//! A table of prefixes in the kernel: an array map of its own for each generation, so that packets meet the old table or
//! the new one, never a half of each. Who makes it puts it into a slot of the array of maps that the program reads.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::ptr::NonNull;

use ftagent_common::abi::prefixes::Cell;

use super::plan::{Mismatch, Plan};
use crate::xdp::table::sys_bpf;

const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_FREEZE: i64 = 22;

/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// `BPF_F_MMAPABLE | BPF_F_INNER_MAP`: the second lets the tables of one slot differ in size. Needs kernel 5.10.
pub const FLAGS: u32 = 1 << 10 | 1 << 12;

/// The part of `union bpf_attr` that `BPF_MAP_CREATE` reads here.
#[repr(C)]
#[derive(Default)]
struct Create {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// The part of `union bpf_attr` that `BPF_MAP_LOOKUP_ELEM` and `BPF_MAP_FREEZE` read.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Why there is no table in the kernel.
#[derive(Debug, thiserror::Error)]
pub enum PrefixMapError {
    #[error("table of prefixes, {cells} cells: {action} failed")]
    Io { cells: u32, action: &'static str, source: io::Error },
    #[error("table of prefixes: read back")]
    Mismatch(#[from] Mismatch),
}

/// An array map of [`Cell`]s.
#[derive(Debug)]
pub struct PrefixMap {
    fd: OwnedFd,
    cells: u32,
}

impl PrefixMap {
    /// Makes the table of `plan`: filled, read back through a second mapping, and frozen: nothing in user space can
    /// change it any more.
    ///
    /// # Errors
    /// When the kernel refuses, or the table does not say what the prefixes say.
    pub fn make(plan: &Plan) -> Result<Self, PrefixMapError> {
        let map = Self::create(plan.cells())?;
        plan.write(map.mapped(libc::PROT_READ | libc::PROT_WRITE)?.cells_mut());
        plan.check(map.mapped(libc::PROT_READ)?.cells())?;
        map.freeze()?;
        Ok(map)
    }

    /// An array of `cells` zero cells; at least 1.
    ///
    /// # Errors
    /// When the kernel refuses: no privilege, no memory.
    pub fn create(cells: u32) -> Result<Self, PrefixMapError> {
        let mut attr = Create {
            map_type: ARRAY,
            key_size: size_of::<u32>() as u32,
            value_size: size_of::<Cell>() as u32,
            max_entries: cells,
            map_flags: FLAGS,
            ..Create::default()
        };
        let name = b"PREFIXES4";
        attr.map_name[..name.len()].copy_from_slice(name);
        let io = |source| PrefixMapError::Io { cells, action: "creating the map", source };
        let fd = create(&mut attr).map_err(io)?;
        Ok(Self { fd, cells })
    }

    /// Elements of the array.
    pub fn cells(&self) -> u32 {
        self.cells
    }

    /// The cell at `index` by system call; nothing beyond the end.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn cell(&self, index: u32) -> Result<Option<Cell>, PrefixMapError> {
        let mut cell = Cell::default();
        let mut attr = Element {
            map_fd: self.fd.as_raw_fd() as u32,
            key: (&raw const index) as u64,
            value: (&raw mut cell) as u64,
            ..Element::default()
        };
        match sys_bpf(MAP_LOOKUP_ELEM, element_bytes(&mut attr)) {
            Ok(()) => Ok(Some(cell)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.io("looking a cell up", e)),
        }
    }

    /// Keeps user space from changing the map; programs have no way to write to it.
    fn freeze(&self) -> Result<(), PrefixMapError> {
        let mut attr = Element { map_fd: self.fd.as_raw_fd() as u32, ..Element::default() };
        // The kernel wants every byte behind the descriptor to be zero: they are.
        sys_bpf(MAP_FREEZE, element_bytes(&mut attr)).map_err(|e| self.io("freezing the map", e))
    }

    fn io(&self, action: &'static str, source: io::Error) -> PrefixMapError {
        PrefixMapError::Io { cells: self.cells, action, source }
    }

    fn mapped(&self, protection: i32) -> Result<Mapped, PrefixMapError> {
        let count = self.cells as usize;
        let bytes = count * size_of::<Cell>();
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is an open map of that many cells.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, self.fd.as_raw_fd(), 0) };
        match NonNull::new(at) {
            Some(at) if at.as_ptr() != libc::MAP_FAILED => Ok(Mapped { at, bytes, count }),
            _ => Err(self.io("mapping the map", io::Error::last_os_error())),
        }
    }
}

impl AsFd for PrefixMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The cells of a map in this process.
struct Mapped {
    at: NonNull<c_void>,
    bytes: usize,
    count: usize,
}

impl Mapped {
    fn cells(&self) -> &[Cell] {
        // SAFETY: `mapped` got that many readable bytes, aligned to a page; any bits are a `Cell`; nobody else has the
        // map yet, so nobody writes to it meanwhile.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr().cast(), self.count) }
    }

    /// Of a mapping that was made writable.
    fn cells_mut(&mut self) -> &mut [Cell] {
        // SAFETY: as in `cells`; the one caller maps with PROT_WRITE, and `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr().cast(), self.count) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives `self`. Unmapping what was mapped cannot fail.
        unsafe { libc::munmap(self.at.as_ptr(), self.bytes) };
    }
}

fn element_bytes(attr: &mut Element) -> &mut [u8] {
    // SAFETY: `repr(C)` integers without padding.
    unsafe { std::slice::from_raw_parts_mut((&raw mut *attr).cast(), size_of::<Element>()) }
}

fn create(attr: &mut Create) -> io::Result<OwnedFd> {
    // SAFETY: the layout of `union bpf_attr` for this command; the kernel takes a shorter attribute's rest as zero.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, &raw mut *attr, size_of::<Create>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
