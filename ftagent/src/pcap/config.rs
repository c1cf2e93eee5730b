//! `[pcap]` of the configuration.

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
    pub bounds: Bounds,
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
    if raw.max_disk_bytes < raw.max_bytes {
        return Err(("pcap.max_disk_bytes", format!("must be at least pcap.max_bytes ({})", raw.max_bytes)));
    }
    Ok(raw.enabled.then_some(PcapConfig {
        pre_secs: raw.pre_seconds,
        memory_bytes: usize::try_from(raw.memory_bytes).unwrap_or(usize::MAX),
        bounds: Bounds { max_packets: raw.max_packets, max_bytes: raw.max_bytes, snap_bytes: raw.snap_bytes },
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
        ];
        for (text, expected) in table {
            let raw: RawPcap = toml::from_str(text).unwrap();
            assert_eq!(check_pcap(&raw).err().map(|(key, _)| key), expected, "{text}");
        }
        assert!(toml::from_str::<RawPcap>("snaplen = 5").is_err());
        assert_eq!(check_pcap(&toml::from_str("enabled = false").unwrap()), Ok(None));
    }
}
