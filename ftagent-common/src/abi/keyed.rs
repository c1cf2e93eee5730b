//! The keyed hash of addresses, and the filter in front of the kernel's hash tables.
//!
//! The key is drawn when the maps are made and lies in [`super::Settings::seed`]: without it nobody can aim collisions
//! at a victim. User space computes the same hashes to set the filter's bits.

use crate::packet::Ip;

/// Words of [`super::Bitmaps::blocks`]: 2^20 bits.
pub const FILTER_WORDS: usize = 1 << 14;

/// A keyed hash of an IPv4 address, as it lies in memory.
#[inline(always)]
pub const fn hash4(address: u32, seed: u64) -> u64 {
    mix(address as u64 ^ seed)
}

/// A keyed hash of the first 64 bits of an IPv6 address, cut to `len` bits (at most 64) by the caller.
#[inline(always)]
pub const fn hash6_net(words: [u32; 2], len: u32, seed: u64) -> u64 {
    mix(((words[0] as u64) << 32 | words[1] as u64).wrapping_add(seed).wrapping_add(len as u64))
}

/// A keyed hash of a whole IPv6 address.
#[inline(always)]
pub const fn hash6(ip: &Ip, seed: u64) -> u64 {
    mix(((ip.0[2] as u64) << 32 | ip.0[3] as u64) ^ hash6_net([ip.0[0], ip.0[1]], 128, seed))
}

/// A keyed hash of an address of either family.
#[inline(always)]
pub const fn hash(ip: &Ip, seed: u64) -> u64 {
    if ip.is_v4() { hash4(ip.0[3], seed) } else { hash6(ip, seed) }
}

/// Word and bit of a hash in the filter. A clear bit: no table has an entry of that hash.
#[inline(always)]
pub const fn filter_bit(hash: u64) -> (usize, u64) {
    let bit = (hash >> 44) as usize;
    ((bit >> 6) & (FILTER_WORDS - 1), 1 << (bit & 63))
}

/// The finaliser of MurmurHash3: every bit of the input reaches every bit of the output.
#[inline(always)]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 33;
    x = x.wrapping_mul(0xff51_afd7_ed55_8ccd);
    x ^= x >> 33;
    x = x.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}
