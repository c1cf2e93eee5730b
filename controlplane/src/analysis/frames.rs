//! The frames of a capture in its order, one at a time.
//!
//! The readers of the crates hold whole blocks and every interface, end at a block that is larger than their buffer,
//! and lose a packet for an option that they cannot read. An uploaded file may claim anything, so this holds the first
//! [`HEAD`] bytes of one frame and a bounded table of interfaces; the tests compare it with `pcap-file`.

use std::io::{self, Read};

use super::input::Input;
use super::mark::Mark;
use super::{Budget, pcap, pcapng};

/// Bytes of a frame that are looked at: every header that the parser follows begins within the first 2 KiB.
pub(super) const HEAD: usize = 4 << 10;
/// No link has longer frames: a record that claims more is damage, and what follows it cannot be found.
pub(super) const MAX_FRAME: u32 = 16 << 20;
/// Sentences about what is wrong with a file.
const MAX_ERRORS: usize = 8;

/// One frame as the file has it.
pub(super) struct Frame<'a> {
    /// From 1, as other programs count them.
    pub(super) number: u64,
    /// Nanoseconds since 1970; nothing where the file does not say.
    pub(super) time_ns: Option<u64>,
    /// The interface's number in its section.
    pub(super) interface: u32,
    /// `LINKTYPE_…`, as the registry of tcpdump.org numbers them.
    pub(super) link: u32,
    /// The first [`HEAD`] bytes of what was captured.
    pub(super) head: &'a [u8],
    /// Bytes in the file.
    pub(super) captured: u32,
    /// Bytes on the wire, as the file says; at least those captured.
    pub(super) wire_len: u32,
    pub(super) mark: &'a Mark,
}

/// What one frame's fixed fields say; its bytes are in the reader's buffer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fixed {
    pub(super) time_ns: Option<u64>,
    pub(super) interface: u32,
    pub(super) link: u32,
    pub(super) captured: u32,
    pub(super) wire_len: u32,
}

/// What was found wrong with a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flaws {
    /// Not all of the file was read, or it ends within a frame or block.
    pub(super) truncated: bool,
    /// The first few, in words.
    pub(super) errors: Vec<String>,
    /// Those for which there was no room.
    pub(super) more_errors: u64,
}

impl Flaws {
    /// Notes a flaw that the reader can pass over.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.errors.len() < MAX_ERRORS {
            self.errors.push(what());
        } else {
            self.more_errors = self.more_errors.saturating_add(1);
        }
    }

    /// Notes why nothing further is read.
    pub(super) fn end(&mut self, what: impl FnOnce() -> String) {
        self.truncated = true;
        if self.errors.len() >= MAX_ERRORS {
            self.errors.pop();
            self.more_errors = self.more_errors.saturating_add(1);
        }
        self.errors.push(what());
    }

    /// The sentences, with the number of those that are left out.
    pub(super) fn sentences(&self) -> Vec<String> {
        let more = (self.more_errors > 0).then(|| format!("and {} more", self.more_errors));
        self.errors.iter().cloned().chain(more).collect()
    }
}

enum Format {
    Pcap(pcap::Header),
    Pcapng(pcapng::Section),
}

/// Reads frames.
pub(super) struct Frames<'a, R> {
    input: Input<R>,
    format: Option<Format>,
    head: Vec<u8>,
    mark: Mark,
    number: u64,
    flaws: Flaws,
    budget: Budget<'a>,
}

impl<'a, R: Read> Frames<'a, R> {
    /// Reads the header of a capture.
    ///
    /// # Errors
    /// The disk fails. A file that is no capture has no frames, and its flaws say so.
    pub(super) fn open(reader: R, budget: Budget<'a>) -> io::Result<Self> {
        let mut input = Input::new(reader);
        let mut flaws = Flaws::default();
        let mut magic = [0; 4];
        let format = if input.fill(&mut magic)? < 4 {
            None
        } else if magic == pcapng::MAGIC {
            pcapng::Section::open(&mut input, &mut flaws)?.map(Format::Pcapng)
        } else {
            pcap::Header::open(magic, &mut input)?.map(Format::Pcap)
        };
        if format.is_none() && flaws.errors.is_empty() {
            flaws.end(|| "the file does not begin as a capture does".to_owned());
        }
        Ok(Self { input, format, head: Vec::with_capacity(HEAD), mark: Mark::default(), number: 0, flaws, budget })
    }

    /// The next frame; nothing at the end, or where nothing more can be read.
    ///
    /// # Errors
    /// The disk fails.
    pub(super) fn next(&mut self) -> io::Result<Option<Frame<'_>>> {
        self.mark = Mark::default();
        let fixed = match &mut self.format {
            None => None,
            Some(Format::Pcap(header)) => {
                header.next(&mut self.input, &mut self.head, &mut self.flaws, &mut self.budget)?
            }
            Some(Format::Pcapng(section)) => {
                section.next(&mut self.input, &mut self.head, &mut self.mark, &mut self.flaws, &mut self.budget)?
            }
        };
        let Some(fixed) = fixed else {
            self.format = None;
            return Ok(None);
        };
        self.number += 1;
        Ok(Some(Frame {
            number: self.number,
            time_ns: fixed.time_ns,
            interface: fixed.interface,
            link: fixed.link,
            head: &self.head,
            captured: fixed.captured,
            wire_len: fixed.wire_len.max(fixed.captured),
            mark: &self.mark,
        }))
    }

    /// What was wrong so far.
    pub(super) const fn flaws(&self) -> &Flaws {
        &self.flaws
    }
}

/// Reads the first bytes of a frame of `captured` bytes into `head` and passes over the rest; false if the file ends
/// before.
pub(super) fn take_head<R: Read>(input: &mut Input<R>, head: &mut Vec<u8>, captured: u32) -> io::Result<bool> {
    let wanted = (captured as usize).min(HEAD);
    head.resize(wanted, 0);
    if input.fill(head)? < wanted {
        return Ok(false);
    }
    input.skip(u64::from(captured) - wanted as u64)
}
