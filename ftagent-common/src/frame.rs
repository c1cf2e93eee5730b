//! Bounds-checked reads from a frame: the only `unsafe` in parsing.
//!
//! The same source runs in the kernel, where `start..end` is packet memory that the verifier watches, and in user
//! space, where it is a slice. Nothing else in the parser touches a pointer.

use core::marker::PhantomData;

/// The largest offset at which anything is read, in bytes: two VLAN tags, the longest IPv4 header or eight
/// extension headers, and a TCP header fit well below it. The verifier needs a bound on every variable offset.
pub const MAX_OFFSET: usize = 2047;

/// The bytes of one frame as they lie in memory.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    start: usize,
    end: usize,
    bytes: PhantomData<&'a [u8]>,
}

/// A header that may be read at any address: bytes alone, alignment 1, every bit pattern valid.
///
/// # Safety
/// The type must have alignment 1, no padding and no invalid bit patterns.
pub unsafe trait Header: Copy {}

macro_rules! header_arrays {
    ($($n:literal)+) => {
        // SAFETY: byte arrays have alignment 1, no padding, and every bit pattern is valid.
        $(unsafe impl Header for [u8; $n] {})+
    };
}
header_arrays!(1 2 4 6 8 14 16 20 40 54);

impl<'a> Frame<'a> {
    /// A frame over a slice, for user space and tests.
    pub fn new(bytes: &'a [u8]) -> Self {
        let range = bytes.as_ptr_range();
        Self { start: range.start as usize, end: range.end as usize, bytes: PhantomData }
    }

    /// A frame over packet memory, for the kernel.
    ///
    /// # Safety
    /// `start..end` must be readable for `'a`. In a BPF program these are `data` and `data_end` of its context, and
    /// the verifier checks every access once more.
    #[inline(always)]
    pub const unsafe fn from_raw(start: usize, end: usize) -> Self {
        Self { start, end, bytes: PhantomData }
    }

    /// The bytes that are there to be read; in a tc program the linear part alone.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        self.end.wrapping_sub(self.start)
    }

    /// Whether there is nothing to read.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads a header at `offset` bytes, or nothing if it does not lie wholly inside the frame.
    #[inline(always)]
    pub fn read<T: Header>(&self, offset: usize) -> Option<T> {
        self.at(offset).copied()
    }

    /// A header at `offset` bytes where it lies, or nothing if it does not lie wholly inside the frame. A copy of a long
    /// one would go over the BPF stack, which has 512 bytes.
    #[inline(always)]
    pub fn at<T: Header>(&self, offset: usize) -> Option<&'a T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let at = self.start + offset;
        if at + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: `at .. at + size_of::<T>()` was just found to lie inside `start..end`, which the constructors
        // require to be readable for `'a`; `Header` allows any address and any bit pattern.
        Some(unsafe { &*(at as *const T) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_leaves_the_frame_gives_nothing() {
        let bytes = [1u8, 2, 3, 4];
        let frame = Frame::new(&bytes);
        assert_eq!(frame.read::<[u8; 4]>(0), Some(bytes));
        assert_eq!(frame.read::<[u8; 2]>(2), Some([3, 4]));
        assert_eq!(frame.read::<[u8; 2]>(3), None);
        assert_eq!(frame.read::<[u8; 1]>(4), None);
        assert_eq!(frame.read::<[u8; 1]>(usize::MAX), None);
    }

    #[test]
    fn an_empty_frame_gives_nothing() {
        assert_eq!(Frame::new(&[]).read::<[u8; 1]>(0), None);
    }
}
