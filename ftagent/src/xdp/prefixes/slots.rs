//! The array of maps from which the program takes its table of prefixes: one slot for each of two rule sets.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya::maps::MapData;

use super::map::PrefixMap;
use crate::xdp::table::{TableError, sys_bpf};

const MAP_UPDATE_ELEM: i64 = 2;
const MAP_LOOKUP_ELEM: i64 = 1;
const MAP_DELETE_ELEM: i64 = 3;
const MAP_GET_FD_BY_ID: i64 = 14;

/// The part of `union bpf_attr` that the single-element commands read.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An array of tables.
#[derive(Debug)]
pub struct PrefixSlots {
    fd: OwnedFd,
    name: &'static str,
}

impl PrefixSlots {
    /// Opens the array of maps that is pinned at `dir/name`.
    ///
    /// # Errors
    /// When nothing is pinned there.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self, TableError> {
        let path = dir.join(name);
        let open = |source| TableError::Open { name, path: path.display().to_string(), source };
        let data = MapData::from_pin(&path).map_err(open)?;
        let io = |source| TableError::Io { name, action: "dup", source };
        Ok(Self { fd: data.fd().as_fd().try_clone_to_owned().map_err(io)?, name })
    }

    /// Puts `table` into `slot`: from the next frame on the program finds it there. The array holds the table from then
    /// on; the one before is freed when nothing else holds it.
    ///
    /// Waits until no program runs that began before (an RCU grace period, up to tens of milliseconds).
    ///
    /// # Errors
    /// On a failed system call: no such slot, or a table of another kind.
    pub fn put(&self, slot: u32, table: &PrefixMap) -> Result<(), TableError> {
        let fd = table.as_fd().as_raw_fd();
        let result = self.element(MAP_UPDATE_ELEM, &slot, (&raw const fd) as u64);
        result.map_err(|source| TableError::Io { name: self.name, action: "putting a table into its slot", source })
    }

    /// Empties `slot`: every look-up there is a miss. An empty one stays empty.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn clear(&self, slot: u32) -> Result<(), TableError> {
        match self.element(MAP_DELETE_ELEM, &slot, 0) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
                Err(TableError::Io { name: self.name, action: "emptying a slot", source })
            }
            _ => Ok(()),
        }
    }

    /// The kernel's number of the table in `slot`, if there is one.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn id(&self, slot: u32) -> Result<Option<u32>, TableError> {
        let mut id = 0u32;
        match self.element(MAP_LOOKUP_ELEM, &slot, (&raw mut id) as u64) {
            Ok(()) => Ok(Some(id)),
            Err(source) if source.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(source) => Err(TableError::Io { name: self.name, action: "reading a slot", source }),
        }
    }

    /// Puts the table of slot `from` into slot `to` as well; nothing happens if it is there.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn copy(&self, from: u32, to: u32) -> Result<(), TableError> {
        let id = self.id(from)?;
        if id == self.id(to)? {
            return Ok(());
        }
        let Some(id) = id else { return self.clear(to) };
        let io = |source| TableError::Io { name: self.name, action: "opening a table by its number", source };
        // The command reads the number from the first word and flags from the third: both others are zero.
        let mut attr = Element { map_fd: id, ..Element::default() };
        // SAFETY: the layout of `union bpf_attr` for this command; no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_GET_FD_BY_ID, &raw mut attr, 12) };
        if fd < 0 {
            return Err(io(io::Error::last_os_error()));
        }
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let number = fd.as_raw_fd();
        let result = self.element(MAP_UPDATE_ELEM, &to, (&raw const number) as u64);
        result.map_err(|source| TableError::Io { name: self.name, action: "putting a table into its slot", source })
    }

    /// `value`: where the value is or goes; 0 for a command that has none.
    fn element(&self, command: i64, slot: &u32, value: u64) -> io::Result<()> {
        let mut attr =
            Element { map_fd: self.fd.as_raw_fd() as u32, key: (&raw const *slot) as u64, value, ..Element::default() };
        // SAFETY: `repr(C)` integers without padding.
        let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut attr).cast(), size_of::<Element>()) };
        sys_bpf(command, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::xdp::prefixes::plan::Plan;

    const MAP_CREATE: i64 = 0;
    const MAP_LOOKUP_ELEM: i64 = 1;
    /// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
    const ARRAY_OF_MAPS: u32 = 12;

    /// An array of two slots for tables like `template`.
    fn slots(template: &PrefixMap) -> PrefixSlots {
        // Type, key size, value size, entries, flags, inner map.
        let attr: [u32; 6] = [ARRAY_OF_MAPS, 4, 4, 2, 0, template.as_fd().as_raw_fd() as u32];
        // SAFETY: the first fields of `union bpf_attr` for this command.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, MAP_CREATE, attr.as_ptr(), size_of_val(&attr)) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just made this descriptor for us.
        PrefixSlots { fd: unsafe { OwnedFd::from_raw_fd(fd as i32) }, name: "TEST" }
    }

    /// The kernel's id of the table in `slot`.
    fn id(slots: &PrefixSlots, slot: u32) -> Option<i32> {
        let mut id = 0i32;
        slots.element(MAP_LOOKUP_ELEM, &slot, (&raw mut id) as u64).ok()?;
        Some(id)
    }

    #[test]
    fn tables_of_any_size_take_each_others_place() {
        let Ok(empty) = PrefixMap::create(1) else {
            assert!(!nix::unistd::geteuid().is_root(), "root can make maps");
            println!("skipped: making maps needs root");
            return;
        };
        let slots = slots(&empty);
        assert_eq!(id(&slots, 0), None);
        let table = |text: &str| {
            let plan = Plan::new([(text.parse().expect(text), 1)], u64::MAX).expect("no limit");
            PrefixMap::make(&plan).expect("a table")
        };
        slots.put(0, &table("198.51.100.0/24")).expect("the first");
        let first = id(&slots, 0);
        assert!(first.is_some());
        let started_ns = clock::mono_ns();
        slots.put(0, &table("10.0.0.0/8")).expect("one of another size");
        println!("a table replaced in {} us, making it included", (clock::mono_ns() - started_ns) / 1_000);
        assert_ne!(id(&slots, 0), first);
        assert_eq!(id(&slots, 1), None);
        slots.put(2, &empty).expect_err("there are two slots");
        slots.clear(0).expect("there was one");
        slots.clear(0).expect("nothing is left");
        assert_eq!(id(&slots, 0), None);
    }
}
