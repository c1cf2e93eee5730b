//! Kernel maps by system call: typed, and in batches where there are many entries.
//!
//! aya loads and attaches; its map types read one key at a time, which takes seven times as long as a batch.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use aya::Pod;
use aya::maps::MapData;

/// `enum bpf_cmd` of `linux/bpf.h`.
mod command {
    pub(super) const MAP_LOOKUP_ELEM: i64 = 1;
    pub(super) const MAP_UPDATE_ELEM: i64 = 2;
    pub(super) const MAP_DELETE_ELEM: i64 = 3;
    pub(super) const MAP_GET_NEXT_KEY: i64 = 4;
    pub(super) const MAP_LOOKUP_BATCH: i64 = 24;
    pub(super) const MAP_UPDATE_BATCH: i64 = 26;
    pub(super) const MAP_DELETE_BATCH: i64 = 27;
}

/// The part of `union bpf_attr` that the single-element commands read.
#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that the batch commands read.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Entries asked for in one batch: a hash bucket must fit, and 8,192 made no measurable gain over it.
const BATCH: usize = 4_096;

/// A map of `K` to `V`. The sizes were compared with the kernel's when it was opened.
pub struct Table<K, V> {
    fd: OwnedFd,
    name: &'static str,
    pub max_entries: u32,
    /// 1, or the possible CPUs where each has a value of its own.
    values_per_key: usize,
    types: PhantomData<(K, V)>,
}

/// What is wrong with a map.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("map {name}: cannot open {path}")]
    Open { name: &'static str, path: String, source: aya::maps::MapError },
    #[error("map {name}: {detail}; another version of ftagent made it: run `ftagent detach` once")]
    Layout { name: &'static str, detail: String },
    #[error("map {name}: full at {max_entries} entries")]
    Full { name: &'static str, max_entries: u32 },
    #[error("map {name}: {action} failed")]
    Io { name: &'static str, action: &'static str, source: io::Error },
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Opens the map pinned at `dir/name`; `per_cpu` is how many values the kernel keeps for each key.
    ///
    /// # Errors
    /// When nothing is pinned there, or a map of other key and value sizes is.
    pub fn open(dir: &Path, name: &'static str, per_cpu: usize) -> Result<Self, TableError> {
        let path = dir.join(name);
        let open = |source| TableError::Open { name, path: path.display().to_string(), source };
        let data = MapData::from_pin(&path).map_err(open)?;
        let info = data.info().map_err(open)?;
        let expected = (size_of::<K>() as u32, size_of::<V>() as u32);
        if (info.key_size(), info.value_size()) != expected {
            let detail = format!(
                "keys and values of {} and {} bytes instead of {expected:?}",
                info.key_size(),
                info.value_size()
            );
            return Err(TableError::Layout { name, detail });
        }
        let fd =
            data.fd().as_fd().try_clone_to_owned().map_err(|source| TableError::Io { name, action: "dup", source })?;
        Ok(Self { fd, name, max_entries: info.max_entries(), values_per_key: per_cpu, types: PhantomData })
    }

    /// Bytes of one key with one value, without the kernel's own.
    pub fn entry_bytes(&self) -> usize {
        size_of::<K>() + size_of::<V>()
    }

    /// The map's name in the kernel and in messages.
    pub fn name(&self) -> &'static str {
        self.name
    }

    fn io(&self, action: &'static str, source: io::Error) -> TableError {
        match source.raw_os_error() {
            Some(libc::E2BIG | libc::ENOSPC) => TableError::Full { name: self.name, max_entries: self.max_entries },
            _ => TableError::Io { name: self.name, action, source },
        }
    }

    fn element(&self, command: i64, key: &K, value: u64) -> io::Result<()> {
        let mut attr =
            Element { map_fd: self.fd.as_raw_fd() as u32, padding: 0, key: (&raw const *key) as u64, value, flags: 0 };
        // SAFETY: `attr` is the layout of `union bpf_attr` for these commands; `key` and `value` point to memory of
        // the sizes that `open` compared with the map's, times the CPUs where the caller says so.
        sys_bpf(command, unsafe { bytes_of(&mut attr) })
    }

    /// The value of `key`, if there is one; of the first CPU in a per-CPU map.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn lookup(&self, key: &K) -> Result<Option<V>, TableError> {
        Ok(self.lookup_all(key)?.map(|values| values[0]))
    }

    /// The values of `key` on every CPU, if there are any.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn lookup_all(&self, key: &K) -> Result<Option<Vec<V>>, TableError> {
        let mut values = Vec::<V>::with_capacity(self.values_per_key);
        match self.element(command::MAP_LOOKUP_ELEM, key, values.as_mut_ptr() as u64) {
            Ok(()) => {
                // SAFETY: the kernel filled in `values_per_key` values; `V` is plain data.
                unsafe { values.set_len(self.values_per_key) };
                Ok(Some(values))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(self.io("lookup", e)),
        }
    }

    /// Inserts or replaces one entry; in a per-CPU map every CPU gets the value.
    ///
    /// # Errors
    /// [`TableError::Full`], or a failed system call.
    pub fn insert(&self, key: &K, value: &V) -> Result<(), TableError> {
        let values = vec![*value; self.values_per_key];
        self.element(command::MAP_UPDATE_ELEM, key, values.as_ptr() as u64).map_err(|e| self.io("insert", e))
    }

    /// Inserts or replaces one entry of a map with one value a key, from where it lies: for values too large to copy.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn insert_from(&self, key: &K, value: &V) -> Result<(), TableError> {
        debug_assert_eq!(self.values_per_key, 1);
        self.element(command::MAP_UPDATE_ELEM, key, (&raw const *value) as u64).map_err(|e| self.io("insert", e))
    }

    /// Whether the value of `key` is this one, byte by byte.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn holds(&self, key: &K, value: &V) -> Result<bool, TableError> {
        let mut bytes = vec![0u8; size_of::<V>() * self.values_per_key];
        match self.element(command::MAP_LOOKUP_ELEM, key, bytes.as_mut_ptr() as u64) {
            Ok(()) => {
                // SAFETY: `V` is plain data without padding.
                let wanted = unsafe { std::slice::from_raw_parts((&raw const *value).cast::<u8>(), size_of::<V>()) };
                Ok(bytes[..size_of::<V>()] == *wanted)
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(self.io("lookup", e)),
        }
    }

    /// Deletes many entries; those that are not there are success.
    ///
    /// # Errors
    /// On a failed system call; entries after it may still be there.
    pub fn remove_many(&self, keys: &[K]) -> Result<(), TableError> {
        for chunk in keys.chunks(BATCH) {
            let mut attr = Batch {
                keys: chunk.as_ptr() as u64,
                count: chunk.len() as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                ..Batch::default()
            };
            // SAFETY: as in `element`; the array holds `count` keys.
            if sys_bpf(command::MAP_DELETE_BATCH, unsafe { bytes_of(&mut attr) }).is_err() {
                // A key that is not there ends the batch, and some kernels have none for tries.
                for key in chunk {
                    self.remove(key)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes one entry; one that is not there is success.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn remove(&self, key: &K) -> Result<(), TableError> {
        match self.element(command::MAP_DELETE_ELEM, key, 0) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => Err(self.io("delete", e)),
            _ => Ok(()),
        }
    }

    /// Inserts or replaces many entries of a map with one value a key. Returns how many were written.
    ///
    /// # Errors
    /// The first failure and, as the `usize`, how many entries were written before it.
    pub fn insert_many(&self, entries: &[(K, V)]) -> Result<(), (usize, Box<TableError>)> {
        let mut done = 0;
        for chunk in entries.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(|(k, _)| *k).collect();
            let values: Vec<V> = chunk.iter().map(|(_, v)| *v).collect();
            let mut attr = Batch {
                keys: keys.as_ptr() as u64,
                values: values.as_ptr() as u64,
                count: chunk.len() as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                ..Batch::default()
            };
            // SAFETY: as in `element`; both arrays hold `count` elements.
            let result = sys_bpf(command::MAP_UPDATE_BATCH, unsafe { bytes_of(&mut attr) });
            match result {
                Ok(()) => done += chunk.len(),
                Err(e) if has_no_batches(&e) => {
                    for (key, value) in chunk {
                        self.insert(key, value).map_err(|e| (done, Box::new(e)))?;
                        done += 1;
                    }
                }
                // The kernel writes the number of entries that it did before it failed.
                Err(e) => return Err((done + (attr.count as usize).min(chunk.len()), Box::new(self.io("insert", e)))),
            }
        }
        Ok(())
    }

    /// Every entry, with one value for each CPU in a per-CPU map. Entries that come and go meanwhile may be missed.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn read_all(&self) -> Result<Vec<(K, Vec<V>)>, TableError> {
        let mut found = Vec::new();
        self.for_each(|key, values| found.push((*key, values.to_vec())))?;
        Ok(found)
    }

    /// Calls `visit` with every entry, one system call for each key and each value: kernels before 5.13 have no
    /// batches for tries and per-CPU arrays.
    fn for_each_single(&self, mut visit: impl FnMut(&K, &[V])) -> Result<(), TableError> {
        let mut next = Box::<K>::new_uninit();
        let mut last: Option<K> = None;
        // An entry that is deleted meanwhile makes the kernel begin again from the first: the bound ends that.
        for _ in 0..self.max_entries {
            let mut attr = Element {
                map_fd: self.fd.as_raw_fd() as u32,
                padding: 0,
                key: last.as_ref().map_or(0, |key| (&raw const *key) as u64),
                value: next.as_mut_ptr() as u64,
                flags: 0,
            };
            // SAFETY: as in `element`; `next` has room for one key.
            match sys_bpf(command::MAP_GET_NEXT_KEY, unsafe { bytes_of(&mut attr) }) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(e) => return Err(self.io("read", e)),
            }
            // SAFETY: the kernel wrote a key; `K` is plain data.
            let key = unsafe { *next.as_ptr() };
            if let Some(values) = self.lookup_all(&key)? {
                visit(&key, &values);
            }
            last = Some(key);
        }
        Ok(())
    }

    /// Calls `visit` with every entry.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn for_each(&self, mut visit: impl FnMut(&K, &[V])) -> Result<(), TableError> {
        let mut size = BATCH.min(self.max_entries as usize).max(1);
        let mut keys = Vec::<K>::with_capacity(size);
        let mut values = Vec::<V>::with_capacity(size * self.values_per_key);
        // The kernel's place in the map: a bucket number for hashes, a key for tries.
        let mut place = [0u8; 64];
        debug_assert!(size_of::<K>() <= place.len());
        let mut is_first = true;
        loop {
            let mut attr = Batch {
                in_batch: if is_first { 0 } else { place.as_ptr() as u64 },
                out_batch: place.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: size as u32,
                map_fd: self.fd.as_raw_fd() as u32,
                ..Batch::default()
            };
            // SAFETY: as in `element`; both arrays have room for `count` entries, `place` for any key of ours.
            let result = sys_bpf(command::MAP_LOOKUP_BATCH, unsafe { bytes_of(&mut attr) });
            let is_last = match result {
                Ok(()) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && size < self.max_entries as usize => {
                    // One bucket holds more than fits: start this step again with more room.
                    size = (size * 2).min(self.max_entries as usize);
                    keys = Vec::with_capacity(size);
                    values = Vec::with_capacity(size * self.values_per_key);
                    continue;
                }
                Err(e) if is_first && has_no_batches(&e) => return self.for_each_single(visit),
                Err(e) => return Err(self.io("read", e)),
            };
            let count = (attr.count as usize).min(size);
            // SAFETY: the kernel wrote `count` keys.
            let keys = unsafe { std::slice::from_raw_parts(keys.as_ptr(), count) };
            // SAFETY: and `values_per_key` values for each.
            let values = unsafe { std::slice::from_raw_parts(values.as_ptr(), count * self.values_per_key) };
            for (key, values) in keys.iter().zip(values.chunks_exact(self.values_per_key)) {
                visit(key, values);
            }
            if is_last {
                return Ok(());
            }
            is_first = false;
        }
    }
}

/// What is written into a map and read from it entry by entry, whatever lies behind it.
pub trait Entries<K, V> {
    /// Inserts or replaces one entry.
    ///
    /// # Errors
    /// [`TableError::Full`], or a failed system call.
    fn insert(&self, key: &K, value: &V) -> Result<(), TableError>;

    /// Inserts or replaces many entries.
    ///
    /// # Errors
    /// The first failure and, as the `usize`, how many entries were written before it.
    fn insert_many(&self, entries: &[(K, V)]) -> Result<(), (usize, Box<TableError>)>;

    /// Deletes one entry; one that is not there is success.
    ///
    /// # Errors
    /// On a failed system call.
    fn remove(&self, key: &K) -> Result<(), TableError>;

    /// Deletes many entries; those that are not there are success.
    ///
    /// # Errors
    /// On a failed system call; entries after it may still be there.
    fn remove_many(&self, keys: &[K]) -> Result<(), TableError>;

    /// Calls `visit` with every entry.
    ///
    /// # Errors
    /// On a failed system call.
    fn for_each(&self, visit: impl FnMut(&K, &[V])) -> Result<(), TableError>;
}

impl<K: Pod, V: Pod> Entries<K, V> for Table<K, V> {
    fn insert(&self, key: &K, value: &V) -> Result<(), TableError> {
        self.insert(key, value)
    }

    fn insert_many(&self, entries: &[(K, V)]) -> Result<(), (usize, Box<TableError>)> {
        self.insert_many(entries)
    }

    fn remove(&self, key: &K) -> Result<(), TableError> {
        self.remove(key)
    }

    fn remove_many(&self, keys: &[K]) -> Result<(), TableError> {
        self.remove_many(keys)
    }

    fn for_each(&self, visit: impl FnMut(&K, &[V])) -> Result<(), TableError> {
        self.for_each(visit)
    }
}

/// Whether a map of this kind takes no batches on this kernel: `ENOTSUPP`, which the C library does not know, and
/// which some kernels translate.
fn has_no_batches(error: &io::Error) -> bool {
    const ENOTSUPP: i32 = 524;
    matches!(error.raw_os_error(), Some(ENOTSUPP | libc::EOPNOTSUPP))
}

/// The bytes of an attribute.
///
/// # Safety
/// `T` must be `repr(C)` without padding.
unsafe fn bytes_of<T>(attr: &mut T) -> &mut [u8] {
    // SAFETY: the caller says that every byte is initialised.
    unsafe { std::slice::from_raw_parts_mut((&raw mut *attr).cast(), size_of::<T>()) }
}

/// The system call `bpf(2)`.
pub(super) fn sys_bpf(command: i64, attr: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel reads and writes `attr` alone and what it points to, which the callers vouch for.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), attr.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The key of a trie, as `struct bpf_lpm_trie_key` lays it out.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TrieKey<T> {
    /// Bits that count.
    pub prefix_len: u32,
    pub data: T,
}

// SAFETY: packed integers have no padding.
unsafe impl Pod for TrieKey<u32> {}
// SAFETY: packed integers have no padding.
unsafe impl Pod for TrieKey<ftagent_common::packet::Ip> {}
