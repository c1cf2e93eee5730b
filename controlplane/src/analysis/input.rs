//! Bytes of a file in their order, whatever lengths it claims: what does not fit is skipped, never held.

use std::io::{self, BufReader, Read};

/// What is asked of the disk at once.
const BUFFER: usize = 64 << 10;

/// A file that is read once through.
pub(super) struct Input<R> {
    reader: BufReader<R>,
    /// Bytes read or skipped so far.
    at: u64,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader: BufReader::with_capacity(BUFFER, reader), at: 0 }
    }

    /// Bytes read or skipped so far.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }

    /// Fills `buffer` as far as the file goes; how many bytes there were.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    /// Passes over `bytes`; false if the file ends before.
    pub(super) fn skip(&mut self, bytes: u64) -> io::Result<bool> {
        let skipped = io::copy(&mut (&mut self.reader).take(bytes), &mut io::sink())?;
        self.at += skipped;
        Ok(skipped == bytes)
    }
}

/// The byte order of a file or a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
}

impl Order {
    /// A number of two bytes at `at`, 0 beyond the end.
    pub(super) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let word = [byte(bytes, at), byte(bytes, at + 1)];
        match self {
            Self::Big => u16::from_be_bytes(word),
            Self::Little => u16::from_le_bytes(word),
        }
    }

    /// A number of four bytes at `at`, 0 beyond the end.
    pub(super) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let word = [byte(bytes, at), byte(bytes, at + 1), byte(bytes, at + 2), byte(bytes, at + 3)];
        match self {
            Self::Big => u32::from_be_bytes(word),
            Self::Little => u32::from_le_bytes(word),
        }
    }

    /// A number of eight bytes at `at`, 0 beyond the end.
    pub(super) fn u64(self, bytes: &[u8], at: usize) -> u64 {
        let (first, second) = (u64::from(self.u32(bytes, at)), u64::from(self.u32(bytes, at + 4)));
        match self {
            Self::Big => first << 32 | second,
            Self::Little => second << 32 | first,
        }
    }
}

fn byte(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}
