//! The spool's file: records with a checksum, only ever appended to or replaced whole.
//!
//! ```text
//! record: magic (4) | length of body (4) | CRC-32 of body (4) | body: number (8) | kind (1) | payload
//! ```
//! All numbers are little-endian. A crash can tear the last record alone: it is cut when the file is opened. A record
//! damaged in the middle costs itself and no other, because the next magic with a valid checksum is looked for.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The first byte occurs in no UTF-8 text, so that no JSON payload looks like a record.
const MAGIC: [u8; 4] = [0xF7, b'f', b't', 0x1A];
const HEADER: usize = 12;
const BODY_HEADER: usize = 9;
/// The most one payload may have; the largest incident report is a tenth of it.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;

/// More than any limit lets the file grow to, whatever the limits were when it was written.
const MAX_FILE: u64 = 256 << 20;

/// What a record says: message number `number` was added, or is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) number: u64,
    pub(super) kind: u8,
    /// Where the payload starts in the file.
    pub(super) offset: u64,
    pub(super) len: usize,
}

impl Record {
    /// Bytes the record takes in the file.
    pub(super) fn file_bytes(&self) -> u64 {
        file_bytes(self.len)
    }
}

/// Bytes that a payload of `len` takes in the file.
pub(super) fn file_bytes(len: usize) -> u64 {
    u64::try_from(HEADER + BODY_HEADER + len).unwrap_or(u64::MAX)
}

/// The open file.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    file: File,
    len: u64,
}

/// What opening found.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) log: Log,
    pub(super) records: Vec<Record>,
    /// Bytes of damaged records, the torn tail included.
    pub(super) damaged: u64,
}

impl Log {
    /// Opens or makes the file and cuts a torn tail.
    pub(super) fn open(path: &Path) -> io::Result<Opened> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(MAX_FILE).read_to_end(&mut bytes)?;
        let scan = scan(&bytes);
        let on_disk = file.metadata()?.len();
        if on_disk > scan.len {
            file.set_len(scan.len)?;
            file.sync_all()?;
        }
        let damaged = scan.skipped + (on_disk - scan.len);
        Ok(Opened { log: Self { path: path.into(), file, len: scan.len }, records: scan.records, damaged })
    }

    /// Appends one record; `durable` waits for the disk. After an error the file is as it was.
    pub(super) fn append(&mut self, number: u64, kind: u8, payload: &[u8], durable: bool) -> io::Result<u64> {
        let record = encode(number, kind, payload);
        let start = self.len;
        let written = self.file.write_all_at(&record, start);
        if let Err(error) = written.and_then(|()| if durable { self.file.sync_data() } else { Ok(()) }) {
            // What was written of it would be cut at the next start in any case.
            drop(self.file.set_len(start));
            return Err(error);
        }
        self.len += u64::try_from(record.len()).unwrap_or(0);
        Ok(start + u64::try_from(HEADER + BODY_HEADER).unwrap_or(0))
    }

    /// Reads a payload back.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut payload = vec![0; len];
        self.file.read_exact_at(&mut payload, offset)?;
        Ok(payload)
    }

    /// Empties the file.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.len = 0;
        Ok(())
    }

    /// Replaces the file by one with these records alone; gives the payloads' new offsets. After an error the old
    /// file stays.
    pub(super) fn replace(&mut self, records: &[(u64, u8, Vec<u8>)]) -> io::Result<Vec<u64>> {
        let temporary = self.path.with_extension("tmp");
        let result = self.write_replacement(&temporary, records);
        if result.is_err() {
            drop(std::fs::remove_file(&temporary));
        }
        result
    }

    fn write_replacement(&mut self, temporary: &Path, records: &[(u64, u8, Vec<u8>)]) -> io::Result<Vec<u64>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        let mut offsets = Vec::with_capacity(records.len());
        let mut len = 0;
        let mut out = io::BufWriter::new(&file);
        for (number, kind, payload) in records {
            out.write_all(&encode(*number, *kind, payload))?;
            offsets.push(len + u64::try_from(HEADER + BODY_HEADER).unwrap_or(0));
            len += file_bytes(payload.len());
        }
        out.flush()?;
        drop(out);
        file.sync_all()?;
        std::fs::rename(temporary, &self.path)?;
        // From here on the new file is the one that the next start finds.
        self.file = file;
        self.len = len;
        if let Err(error) = crate::persist::sync_parent(&self.path) {
            tracing::warn!(%error, "the rewritten message queue may be the old one after a power failure");
        }
        Ok(offsets)
    }

    /// Bytes in the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

fn encode(number: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
    let body_len = u32::try_from(BODY_HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(HEADER + BODY_HEADER + payload.len());
    record.extend(MAGIC);
    record.extend(body_len.to_le_bytes());
    record.extend([0; 4]);
    record.extend(number.to_le_bytes());
    record.push(kind);
    record.extend(payload);
    let checksum = crc32fast::hash(&record[HEADER..]);
    record[8..HEADER].copy_from_slice(&checksum.to_le_bytes());
    record
}

struct Scan {
    records: Vec<Record>,
    /// Up to the end of the last whole record.
    len: u64,
    /// Damaged bytes before that.
    skipped: u64,
}

fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan { records: Vec::new(), len: 0, skipped: 0 };
    let mut at = 0;
    while at < bytes.len() {
        let Some((start, record)) = next_record(bytes, at) else { break };
        found.skipped += u64::try_from(start - at).unwrap_or(0);
        at = start + HEADER + BODY_HEADER + record.len;
        found.len = u64::try_from(at).unwrap_or(u64::MAX);
        found.records.push(record);
    }
    found
}

fn next_record(bytes: &[u8], from: usize) -> Option<(usize, Record)> {
    (from..bytes.len()).filter(|&at| bytes[at] == MAGIC[0]).find_map(|at| Some((at, decode(bytes, at)?)))
}

fn decode(bytes: &[u8], at: usize) -> Option<Record> {
    let header = bytes.get(at..at.checked_add(HEADER)?)?;
    let word = |range: std::ops::Range<usize>| Some(u32::from_le_bytes(header.get(range)?.try_into().ok()?));
    let body_len = usize::try_from(word(4..8)?).ok()?;
    if header[..4] != MAGIC || !(BODY_HEADER..=BODY_HEADER + MAX_PAYLOAD).contains(&body_len) {
        return None;
    }
    let start = at + HEADER;
    let body = bytes.get(start..start.checked_add(body_len)?)?;
    if crc32fast::hash(body) != word(8..12)? {
        return None;
    }
    Some(Record {
        number: u64::from_le_bytes(body[..8].try_into().ok()?),
        kind: body[8],
        offset: u64::try_from(start + BODY_HEADER).ok()?,
        len: body_len - BODY_HEADER,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file_of(payloads: &[Vec<u8>]) -> Vec<u8> {
        let numbered = payloads.iter().zip(1_u64..);
        numbered.flat_map(|(payload, number)| encode(number, 2, payload)).collect()
    }

    #[test]
    fn a_file_cut_at_any_byte_keeps_every_whole_record() {
        let payloads: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![b'a' + n; usize::from(n) * 3]).collect();
        let whole = file_of(&payloads);
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("log");
        let mut ends = vec![0];
        for payload in &payloads {
            ends.push(ends.last().unwrap() + HEADER + BODY_HEADER + payload.len());
        }
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut opened = Log::open(&path).unwrap();
            let expected = ends.iter().filter(|&&end| end <= cut).count() - 1;
            assert_eq!(opened.records.len(), expected, "cut at {cut}");
            assert_eq!(opened.damaged, (cut - ends[expected]) as u64, "cut at {cut}");
            let offset = opened.log.append(99, 2, b"after", true).unwrap();
            assert_eq!(opened.log.read(offset, 5).unwrap(), b"after");
            let again = Log::open(&path).unwrap();
            assert_eq!(again.records.len(), expected + 1, "cut at {cut}");
            assert_eq!((again.records[expected].number, again.damaged), (99, 0), "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_byte_costs_at_most_its_own_record(
            payloads in prop::collection::vec(prop::collection::vec(0x20_u8..0x7f, 0..60), 1..12),
            at in any::<prop::sample::Index>(),
            bit in 0_u32..8,
        ) {
            let mut bytes = file_of(&payloads);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let numbers: Vec<u64> = scan(&bytes).records.iter().map(|r| r.number).collect();
            let mut end = 0;
            let expected: Vec<u64> = payloads.iter().zip(1_u64..).filter_map(|(payload, number)| {
                let start = end;
                end += HEADER + BODY_HEADER + payload.len();
                (!(start..end).contains(&at)).then_some(number)
            }).collect();
            prop_assert_eq!(numbers, expected);
        }

        #[test]
        fn garbage_never_panics_and_never_is_a_record(bytes in prop::collection::vec(any::<u8>(), 0..4_000)) {
            prop_assert!(scan(&bytes).records.is_empty());
        }
    }
}
