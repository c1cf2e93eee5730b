//! Blocked IPv4 addresses in the kernel: its hash has all of them, and an array that costs a fifth of it has copies.
//!
//! Whatever is written is written to the hash first, and what is removed leaves the array first: who finds an entry in
//! the array would have found it in the hash too. The array is written through this process's memory, the key last.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::MapData;
use ftagent_common::abi::{Block, NEAR_BLOCKS, NEAR_PROBES, NearBlock, Slotted, hash4, near_place};

use super::table::{Entries, Table, TableError};

const NAME: &str = "NEAR4";

/// Blocked IPv4 addresses, in memory order.
pub struct Blocks4 {
    hash: Table<u32, Slotted<Block>>,
    array: OwnedFd,
    /// The key of the hashes; 0: not known yet, and nothing is copied.
    seed: AtomicU64,
    pub max_entries: u32,
}

impl Blocks4 {
    /// Opens the hash and the array pinned in `dir`.
    ///
    /// # Errors
    /// When one is missing or has another layout.
    pub fn open(dir: &Path) -> Result<Self, TableError> {
        let hash = Table::open(dir, "BLOCK4", 1)?;
        let max_entries = hash.max_entries;
        Ok(Self { hash, array: open_array(dir)?, seed: AtomicU64::new(0), max_entries })
    }

    /// Bytes of one entry of the hash.
    pub fn entry_bytes(&self) -> usize {
        self.hash.entry_bytes()
    }

    /// Takes the key of the hashes, and makes the array the copy that it should be: a writer that was killed may have
    /// left an entry in it that the hash has no more.
    ///
    /// # Errors
    /// On a failed system call.
    pub fn mend(&self, seed: u64) -> Result<(), TableError> {
        self.seed.store(seed, Ordering::Relaxed);
        let array = self.array()?;
        for index in 0..NEAR_BLOCKS {
            let key = array.key(index);
            if key != 0 && self.hash.lookup(&(key as u32))?.as_ref() != Some(&array.block(index)) {
                array.free(index);
            }
        }
        self.hash.for_each(|address, values| array.copy(*address, &values[0]))
    }

    /// The array in this process's memory, for as long as it is written: its pages count as the process's own.
    fn array(&self) -> Result<Mapping, TableError> {
        Mapping::new(&self.array, self.seed.load(Ordering::Relaxed))
    }
}

impl Entries<u32, Slotted<Block>> for Blocks4 {
    fn insert(&self, key: &u32, value: &Slotted<Block>) -> Result<(), TableError> {
        self.insert_many(&[(*key, *value)]).map_err(|(_, error)| *error)
    }

    fn insert_many(&self, entries: &[(u32, Slotted<Block>)]) -> Result<(), (usize, Box<TableError>)> {
        if entries.is_empty() {
            return Ok(());
        }
        let array = self.array().map_err(|error| (0, Box::new(error)))?;
        let result = self.hash.insert_many(entries);
        let done = result.as_ref().err().map_or(entries.len(), |(done, _)| *done);
        entries.iter().take(done).for_each(|(address, block)| array.copy(*address, block));
        result
    }

    fn remove(&self, key: &u32) -> Result<(), TableError> {
        self.remove_many(&[*key])
    }

    fn remove_many(&self, keys: &[u32]) -> Result<(), TableError> {
        if keys.is_empty() {
            return Ok(());
        }
        let array = self.array()?;
        keys.iter().for_each(|address| array.forget(*address));
        self.hash.remove_many(keys)
    }

    fn for_each(&self, visit: impl FnMut(&u32, &[Slotted<Block>])) -> Result<(), TableError> {
        self.hash.for_each(visit)
    }
}

/// Opens the array pinned in `dir`.
fn open_array(dir: &Path) -> Result<OwnedFd, TableError> {
    let path = dir.join(NAME);
    let open = |source| TableError::Open { name: NAME, path: path.display().to_string(), source };
    let data = MapData::from_pin(&path).map_err(open)?;
    let info = data.info().map_err(open)?;
    if (info.value_size() as usize, info.max_entries()) != (size_of::<NearBlock>(), NEAR_BLOCKS) {
        let detail = format!("{} values of {} bytes", info.max_entries(), info.value_size());
        return Err(TableError::Layout { name: NAME, detail });
    }
    let io = |source| TableError::Io { name: NAME, action: "dup", source };
    data.fd().as_fd().try_clone_to_owned().map_err(io)
}

/// The array in this process's memory.
struct Mapping {
    at: NonNull<u8>,
    bytes: usize,
    /// The key of the hashes.
    seed: u64,
}

impl Mapping {
    fn new(fd: &OwnedFd, seed: u64) -> Result<Self, TableError> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4_096) as usize;
        let bytes = (NEAR_BLOCKS as usize * size_of::<NearBlock>()).next_multiple_of(page);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, of an open map of that many bytes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0) };
        match NonNull::new(at.cast::<u8>()) {
            Some(found) if at != libc::MAP_FAILED => Ok(Self { at: found, bytes, seed }),
            _ => Err(TableError::Io { name: NAME, action: "mmap", source: std::io::Error::last_os_error() }),
        }
    }

    /// Where the address is, and the first free place that it may have.
    fn place(&self, address: u32) -> (Option<u32>, Option<u32>) {
        let hash = hash4(address, self.seed);
        let mut free = None;
        for index in (0..NEAR_PROBES).map(|probe| near_place(hash, probe)) {
            match self.key(index) {
                0 => free = free.or(Some(index)),
                key if key == NearBlock::key_of(address) => return (Some(index), free),
                _ => {}
            }
        }
        (None, free)
    }

    /// The hash has the entry already: without a place here it is found there.
    fn copy(&self, address: u32, block: &Slotted<Block>) {
        let (there, free) = self.place(address);
        if let Some(index) = there {
            if self.block(index) == *block {
                return;
            }
            // Not in place: a frame that reads it meanwhile would see parts of both. It finds the hash's.
            self.free(index);
        }
        if let Some(index) = there.or(free) {
            self.fill(index, address, block);
        }
    }

    fn forget(&self, address: u32) {
        if let (Some(index), _) = self.place(address) {
            self.free(index);
        }
    }

    /// The words of an entry: the key, then end, rule and flags for both rule sets.
    fn words(&self, index: u32) -> &[AtomicU64; size_of::<NearBlock>() / 8] {
        debug_assert!(index < NEAR_BLOCKS);
        // SAFETY: inside the mapping.
        let at = unsafe { self.at.as_ptr().cast::<[AtomicU64; size_of::<NearBlock>() / 8]>().add(index as usize) };
        // SAFETY: as above; it is aligned to a page, the kernel only reads, and this process only by atomic words.
        unsafe { &*at }
    }

    fn key(&self, index: u32) -> u64 {
        self.words(index)[0].load(Ordering::Acquire)
    }

    fn block(&self, index: u32) -> Slotted<Block> {
        let words = self.words(index);
        let word = |i: usize| words[i].load(Ordering::Relaxed).to_ne_bytes();
        let block = |i: usize| {
            let end = word(i + 1);
            Block {
                expires_at_ns: u64::from_ne_bytes(word(i)),
                rule: u32::from_ne_bytes([end[0], end[1], end[2], end[3]]),
                flags: end[4],
                padding: [0; 3],
            }
        };
        Slotted([block(1), block(3)])
    }

    fn free(&self, index: u32) {
        self.words(index)[0].store(0, Ordering::Release);
    }

    /// The place must be free.
    fn fill(&self, index: u32, address: u32, block: &Slotted<Block>) {
        let words = self.words(index);
        for (i, block) in [(1, block.0[0]), (3, block.0[1])] {
            let [a, b, c, d] = block.rule.to_ne_bytes();
            words[i].store(block.expires_at_ns, Ordering::Relaxed);
            words[i + 1].store(u64::from_ne_bytes([a, b, c, d, block.flags, 0, 0, 0]), Ordering::Relaxed);
        }
        words[0].store(NearBlock::key_of(address), Ordering::Release);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it exists. Unmapping what was mapped cannot fail.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}
