//! Captures of incidents: what is taken, in which pieces, and how it is shown.

use serde::Serialize;
use uuid::Uuid;

use super::operator::hex;
use super::problem::Check;
use super::{Problem, Timestamp};

/// The largest chunk, and the largest capture that comes as one: 2 MiB.
pub const CHUNK_BYTES: u64 = 2 << 20;
/// Captures an hour and node.
pub const UPLOADS_PER_HOUR: u32 = 10;
/// Uploads that a node has under way; one more and the one that stood still longest is forgotten.
pub const MAX_UNDER_WAY: i64 = 4;

/// The form of a capture's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PcapFormat {
    Pcap,
    Pcapng,
}

impl PcapFormat {
    /// By the file's first bytes, at least 24 of them; nothing if it is no capture.
    pub fn of(head: &[u8]) -> Option<Self> {
        match head.get(..4)? {
            // Seconds with microseconds or nanoseconds, in either byte order; the header has 24 bytes.
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1] => (head.len() >= 24).then_some(Self::Pcap),
            // A section header, with the magic of its byte order behind its length.
            [0x0a, 0x0d, 0x0d, 0x0a] => {
                let order = head.get(8..12)?;
                let known = order == [0x1a, 0x2b, 0x3c, 0x4d] || order == [0x4d, 0x3c, 0x2b, 0x1a];
                (known && head.len() >= 24).then_some(Self::Pcapng)
            }
            _ => None,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pcap => "pcap",
            Self::Pcapng => "pcapng",
        }
    }
}

impl std::str::FromStr for PcapFormat {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Pcap, Self::Pcapng].into_iter().find(|f| f.as_str() == word).ok_or(())
    }
}

/// One chunk of an upload, as a node announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewChunk {
    pub incident: Uuid,
    /// The node's word for the upload: 1 to 64 of letters, digits, `-` and `_`. Never part of a path.
    pub upload: String,
    /// From 0.
    pub index: u32,
    /// How many there are.
    pub total: u32,
    /// Of which part of a long attack this is the capture, from 1.
    pub part: u32,
    /// Packets in the capture, if the node says so.
    pub packets: Option<u64>,
    /// Of the whole capture, if the node says so.
    pub sha256: Option<[u8; 32]>,
}

impl NewChunk {
    /// Checks what was announced against captures of at most `max_bytes`.
    ///
    /// # Errors
    /// Names the headers that are wrong.
    pub fn check(self, max_bytes: u64) -> Result<Self, Problem> {
        let most = u32::try_from(max_bytes.div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX);
        let mut check = Check::default();
        let sound = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        check.that((1..=64).contains(&self.upload.len()) && self.upload.bytes().all(sound), "X-Upload-Id", || {
            "must be 1 to 64 of letters, digits, - and _".to_owned()
        });
        check.that((1..=most).contains(&self.total), "X-Chunk-Total", || {
            format!("must be 1 to {most}, got {}: captures have at most {max_bytes} bytes", self.total)
        });
        check.that(self.index < self.total, "X-Chunk-Index", || {
            format!("must be below X-Chunk-Total ({}), got {}", self.total, self.index)
        });
        check.that((1..=10_000).contains(&self.part), "X-Capture-Part", || {
            format!("must be 1 to 10000, got {}", self.part)
        });
        check.done().map(|()| self)
    }
}

/// A capture as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Pcap {
    pub id: i64,
    pub incident_id: i64,
    pub incident: Uuid,
    /// The node that captured it.
    pub node: Uuid,
    pub node_name: String,
    /// Long attacks are captured in parts, from 1.
    pub part: u32,
    /// As the node counted them; absent if it did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets: Option<u64>,
    pub format: PcapFormat,
    pub bytes: u64,
    /// 64 hex digits.
    pub sha256: String,
    /// When its last byte arrived.
    pub created_at: Timestamp,
}

impl Pcap {
    /// A name for the file: of the incident's short id and the part.
    pub fn file_name(&self) -> String {
        let short = &self.incident.simple().to_string()[..8];
        format!("inc_{short}-{}.{}", self.part, self.format.as_str())
    }
}

/// How a hash is shown.
pub fn sha256_text(hash: &[u8; 32]) -> String {
    hex(hash)
}

/// Reads what [`sha256_text`] writes.
pub fn parse_sha256(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

/// What a node has left of its captures an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    pub remaining: u32,
    /// When one more is allowed, or when the oldest of the hour no longer counts.
    pub reset: Timestamp,
}

impl Quota {
    /// Of the times of the newest captures of the last hour, newest first.
    pub fn of(newest_first: &[Timestamp], now: Timestamp) -> Self {
        let mut counted = newest_first.iter().take(UPLOADS_PER_HOUR as usize);
        let used = u32::try_from(counted.clone().count()).unwrap_or(UPLOADS_PER_HOUR);
        let reset = counted.next_back().map_or(now, |oldest| oldest.plus_secs(3_600));
        Self { remaining: UPLOADS_PER_HOUR - used, reset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_is_known_by_its_first_bytes() {
        let padded = |head: &[u8]| [head, &[0; 24]].concat();
        for (head, expected) in [
            (&[0xd4, 0xc3, 0xb2, 0xa1][..], Some(PcapFormat::Pcap)),
            (&[0xa1, 0xb2, 0xc3, 0xd4], Some(PcapFormat::Pcap)),
            (&[0x4d, 0x3c, 0xb2, 0xa1], Some(PcapFormat::Pcap)),
            (&[0xa1, 0xb2, 0x3c, 0x4d], Some(PcapFormat::Pcap)),
            (&[0xa1, 0xb2, 0xc3, 0x4d], None),
            (&[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a], Some(PcapFormat::Pcapng)),
            (&[0x0a, 0x0d, 0x0d, 0x0a, 0, 0, 0, 28, 0x1a, 0x2b, 0x3c, 0x4d], Some(PcapFormat::Pcapng)),
            (&[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 1, 2, 3, 4], None),
            (b"MZ", None),
            (b"<html>", None),
        ] {
            assert_eq!(PcapFormat::of(&padded(head)), expected, "{head:x?}");
            assert_eq!(PcapFormat::of(head), None, "too short: {head:x?}");
        }
        assert_eq!(PcapFormat::of(b""), None);
    }

    #[test]
    fn a_chunk_has_its_place_within_the_bounds() {
        let chunk = |upload: &str, index, total, part| NewChunk {
            incident: Uuid::nil(),
            upload: upload.to_owned(),
            index,
            total,
            part,
            packets: None,
            sha256: None,
        };
        let long = "a".repeat(65);
        for (chunk, wrong) in [
            (chunk("a", 0, 1, 1), None),
            (chunk("0f9619ff-8b86-4011-b42d-00cf4fc964ff", 31, 32, 3), None),
            (chunk("a", 0, 33, 1), Some("X-Chunk-Total")),
            (chunk("a", 0, 0, 1), Some("X-Chunk-Total")),
            (chunk("a", 1, 1, 1), Some("X-Chunk-Index")),
            (chunk("a", u32::MAX, 2, 1), Some("X-Chunk-Index")),
            (chunk("", 0, 1, 1), Some("X-Upload-Id")),
            (chunk("../../etc/passwd", 0, 1, 1), Some("X-Upload-Id")),
            (chunk("a/b", 0, 1, 1), Some("X-Upload-Id")),
            (chunk("a\0", 0, 1, 1), Some("X-Upload-Id")),
            (chunk(&long, 0, 1, 1), Some("X-Upload-Id")),
            (chunk("a", 0, 1, 0), Some("X-Capture-Part")),
        ] {
            let refused = match chunk.clone().check(64 << 20) {
                Err(Problem::Invalid(fields)) => Some(fields[0].field.clone()),
                _ => None,
            };
            assert_eq!(refused.as_deref(), wrong, "{chunk:?}");
        }
    }

    #[test]
    fn ten_captures_an_hour() {
        let now = Timestamp::from_secs(10_000);
        let times: Vec<_> = (0..12).map(|n| now.plus_secs(-n * 100)).collect();
        assert_eq!(Quota::of(&[], now), Quota { remaining: 10, reset: now });
        assert_eq!(Quota::of(&times[..3], now), Quota { remaining: 7, reset: now.plus_secs(3_400) });
        assert_eq!(Quota::of(&times, now), Quota { remaining: 0, reset: now.plus_secs(2_700) });
    }

    #[test]
    fn a_hash_is_read_as_it_is_written() {
        let hash = std::array::from_fn(|n| u8::try_from(n * 7).expect("below 256"));
        assert_eq!(parse_sha256(&sha256_text(&hash)), Some(hash));
        assert_eq!(
            (parse_sha256("00"), parse_sha256(&"g".repeat(64)), parse_sha256(&"é".repeat(32))),
            (None, None, None)
        );
    }
}
