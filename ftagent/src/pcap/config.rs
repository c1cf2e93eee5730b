//! `[pcap]` of the configuration.

use std::num::NonZeroU64;

use ftagent_common::abi::SAMPLE_BYTES;
use serde::Deserialize;

use super::file::Bounds;
use super::shelf::Retention;

/// The file's keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawPcap {
    enabled: bool,
    pre_seconds: u32,
    memory_bytes: u64,
    max_packets: u64,
    max_bytes: u64,
    snap_bytes: u32,
    keep_days: u32,
    max_disk_bytes: u64,
    part_seconds: u32,
    max_parts: u32,
    upload: bool,
    upload_bytes_per_second: u64,
}

impl Default for RawPcap {
    fn default() -> Self {
        Self {
            enabled: true,
            pre_seconds: 5,
            memory_bytes: 8 << 20,
            max_packets: 10_000,
            max_bytes: 50_000_000,
            snap_bytes: SNAP_BYTES,
            keep_days: 14,
            max_disk_bytes: 1_000_000_000,
            part_seconds: 300,
            max_parts: 4,
            upload: true,
            upload_bytes_per_second: 2 << 20,
        }
    }
}

/// The kernel copies no more of a frame.
const SNAP_BYTES: u32 = SAMPLE_BYTES as u32;

/// What captures are made of, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcapConfig {
    /// Seconds before an incident that its capture holds.
    pub pre_secs: u32,
    /// Memory of the samples of these seconds.
    pub memory_bytes: usize,
    /// Of one part.
    pub bounds: Bounds,
    /// Seconds after which a part ends while the attack goes on.
    pub part_secs: u32,
    /// Parts of one attack.
    pub max_parts: u32,
    /// Bytes per second at which captures go to the control plane, if there is one; absent where they stay.
    pub upload_bytes_per_sec: Option<NonZeroU64>,
    pub retention: Retention,
}

/// Checks `[pcap]`; nothing, where there are to be no captures.
///
/// # Errors
/// The key, and what is wrong with its value.
pub fn check_pcap(raw: &RawPcap) -> Result<Option<PcapConfig>, (&'static str, String)> {
    let within = |key, value: u64, low: u64, high: u64| {
        if (low..=high).contains(&value) { Ok(()) } else { Err((key, format!("must be {low} to {high}, got {value}"))) }
    };
    within("pcap.pre_seconds", raw.pre_seconds.into(), 1, 60)?;
    within("pcap.memory_bytes", raw.memory_bytes, 1 << 20, 1 << 30)?;
    within("pcap.max_packets", raw.max_packets, 100, 10_000_000)?;
    within("pcap.max_bytes", raw.max_bytes, 100_000, 10_000_000_000)?;
    // Less would cut headers off; the kernel copies no more.
    within("pcap.snap_bytes", raw.snap_bytes.into(), 64, SNAP_BYTES.into())?;
    within("pcap.keep_days", raw.keep_days.into(), 1, 3_650)?;
    within("pcap.part_seconds", raw.part_seconds.into(), 10, 86_400)?;
    within("pcap.max_parts", raw.max_parts.into(), 1, 100)?;
    // A chunk of 2 MiB takes 32 s then.
    within("pcap.upload_bytes_per_second", raw.upload_bytes_per_second, 64 << 10, 1 << 30)?;
    if raw.max_disk_bytes < raw.max_bytes {
        return Err(("pcap.max_disk_bytes", format!("must be at least pcap.max_bytes ({})", raw.max_bytes)));
    }
    Ok(raw.enabled.then_some(PcapConfig {
        pre_secs: raw.pre_seconds,
        memory_bytes: usize::try_from(raw.memory_bytes).unwrap_or(usize::MAX),
        bounds: Bounds { max_packets: raw.max_packets, max_bytes: raw.max_bytes, snap_bytes: raw.snap_bytes },
        part_secs: raw.part_seconds,
        max_parts: raw.max_parts,
        upload_bytes_per_sec: NonZeroU64::new(raw.upload_bytes_per_second).filter(|_| raw.upload),
        retention: Retention { days: raw.keep_days, bytes: raw.max_disk_bytes },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_bounds_are_named() {
        let table = [
            ("", None),
            ("enabled = false", None),
            ("pre_seconds = 0", Some("pcap.pre_seconds")),
            ("snap_bytes = 256", Some("pcap.snap_bytes")),
            ("max_packets = 1", Some("pcap.max_packets")),
            ("max_disk_bytes = 1000000", Some("pcap.max_disk_bytes")),
            ("keep_days = 0", Some("pcap.keep_days")),
            ("part_seconds = 1", Some("pcap.part_seconds")),
            ("max_parts = 0", Some("pcap.max_parts")),
            ("upload_bytes_per_second = 1000", Some("pcap.upload_bytes_per_second")),
            ("upload = false", None),
        ];
        for (text, expected) in table {
            let raw: RawPcap = toml::from_str(text).unwrap();
            assert_eq!(check_pcap(&raw).err().map(|(key, _)| key), expected, "{text}");
        }
        assert!(toml::from_str::<RawPcap>("snaplen = 5").is_err());
        assert_eq!(check_pcap(&toml::from_str("enabled = false").unwrap()), Ok(None));
    }
}
