//! Fills a map in batches; aya writes one entry at a time. Needs kernel 5.13 for tries.
#![expect(unsafe_code, reason = "the system call has no safe interface")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, bail};
use aya::maps::{Map, MapData};

/// `BPF_MAP_UPDATE_BATCH` of linux/bpf.h.
const UPDATE_BATCH: i64 = 26;
/// Entries of one call.
const BATCH: usize = 4_096;

/// The part of `union bpf_attr` that the command reads.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Gives every key of a hash or trie with values of 32 bits the value 1.
pub(super) fn insert<const LEN: usize>(map: &Map, keys: &[[u8; LEN]]) -> anyhow::Result<()> {
    let (Map::HashMap(data) | Map::LpmTrie(data)) = map else { bail!("the map is neither a hash nor a trie") };
    let info = data.info()?;
    if (info.key_size() as usize, info.value_size()) != (LEN, 4) {
        bail!("the map has keys of {} and values of {} bytes", info.key_size(), info.value_size());
    }
    let values = [1u32; BATCH];
    for keys in keys.chunks(BATCH) {
        let mut attributes = Attributes {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: fd(data),
            ..Attributes::default()
        };
        // SAFETY: the kernel reads `count` keys and values of the sizes compared above, and writes to `attributes` alone.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, UPDATE_BATCH, &raw mut attributes, size_of::<Attributes>()) };
        if result < 0 {
            return Err(io::Error::last_os_error()).context("the kernel takes no batch of map entries");
        }
    }
    Ok(())
}

fn fd(data: &MapData) -> u32 {
    // An open descriptor is not negative.
    data.fd().as_fd().as_raw_fd() as u32
}
