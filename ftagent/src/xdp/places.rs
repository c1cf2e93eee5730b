//! Tables that the kernel's programs fill by themselves: a part for each CPU, read here without a system call.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::ptr::NonNull;

use aya::Pod;
use aya::maps::MapData;
use ftagent_common::abi::{SourceCounters, TargetCounters};

use super::table::TableError;

/// An entry that says whether its place is taken.
pub trait Place: Pod {
    /// Whether the place is taken, by one word of it. Most places are free: reading whole entries to see that would be most
    /// of what an idle agent does.
    ///
    /// # Safety
    /// `at` must be valid to read and aligned.
    unsafe fn is_taken(at: *const Self) -> bool;
}

impl Place for TargetCounters {
    unsafe fn is_taken(at: *const Self) -> bool {
        // SAFETY: the caller's.
        let word = unsafe { &raw const (*at).generation };
        // SAFETY: the caller's.
        unsafe { word.read_volatile() != 0 }
    }
}

impl Place for SourceCounters {
    unsafe fn is_taken(at: *const Self) -> bool {
        // SAFETY: the caller's.
        let word = unsafe { &raw const (*at).last_seen_ns };
        // SAFETY: the caller's.
        unsafe { word.read_volatile() != 0 }
    }
}

/// An array map in this process's memory, read only.
pub struct Places<V> {
    at: NonNull<u8>,
    bytes: usize,
    /// Places of all CPUs together.
    pub max_entries: u32,
    values: PhantomData<V>,
}

// SAFETY: the memory is shared with the kernel and is only ever read, through volatile loads.
unsafe impl<V> Send for Places<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for Places<V> {}

impl<V: Place> Places<V> {
    /// Maps the array pinned at `dir/name`.
    ///
    /// # Errors
    /// When nothing is pinned there, or an array of another layout is.
    pub fn open(dir: &Path, name: &'static str) -> Result<Self, TableError> {
        let path = dir.join(name);
        let open = |source| TableError::Open { name, path: path.display().to_string(), source };
        let data = MapData::from_pin(&path).map_err(open)?;
        let info = data.info().map_err(open)?;
        if (info.key_size(), info.value_size()) != (4, size_of::<V>() as u32) || !size_of::<V>().is_multiple_of(8) {
            let detail = format!("values of {} bytes instead of {}", info.value_size(), size_of::<V>());
            return Err(TableError::Layout { name, detail });
        }
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4_096) as usize;
        let bytes = (info.max_entries() as usize * size_of::<V>()).next_multiple_of(page);
        let fd = data.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice, of an open map of that many bytes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        match NonNull::new(at.cast::<u8>()) {
            Some(found) if at != libc::MAP_FAILED => {
                Ok(Self { at: found, bytes, max_entries: info.max_entries(), values: PhantomData })
            }
            _ => Err(TableError::Io { name, action: "mmap", source: std::io::Error::last_os_error() }),
        }
    }

    /// Bytes of one entry.
    pub fn entry_bytes(&self) -> usize {
        size_of::<V>()
    }

    /// Calls `visit` with a copy of every entry whose place is taken. The kernel goes on counting meanwhile: each word
    /// is whole, and the words of one entry may be a packet apart.
    pub fn for_each(&self, mut visit: impl FnMut(&V)) {
        for index in 0..self.max_entries as usize {
            // SAFETY: inside the mapping, which is aligned to a page.
            let place = unsafe { self.at.as_ptr().cast::<V>().add(index) };
            // SAFETY: as above.
            if !unsafe { V::is_taken(place) } {
                continue;
            }
            // SAFETY: any bits are a `V`. The kernel may write meanwhile, word by word.
            let value = unsafe { place.read_volatile() };
            visit(&value);
        }
    }
}

impl<V> Drop for Places<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it exists. Unmapping what was mapped cannot fail.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}
