//! What is shown of flow exporters.

use super::text::{Kind, Text};
use crate::flows::{ExporterStatus, ListenerStatus};

/// A family of the exporters: name, kind, help, and its value.
type Family = (&'static str, Kind, &'static str, fn(&ExporterStatus) -> u64);

const FAMILIES: &[Family] = &[
    ("ftagent_exporter_datagrams_total", Kind::Counter, "Datagrams of the exporter.", |e| e.counts.datagrams),
    ("ftagent_exporter_received_bytes_total", Kind::Counter, "Bytes of its datagrams.", |e| e.counts.bytes),
    ("ftagent_exporter_records_total", Kind::Counter, "Sampled packets and flow records read.", |e| e.counts.records),
    ("ftagent_exporter_counted_records_total", Kind::Counter, "Records towards protected addresses that count.", |e| {
        e.counts.counted
    }),
    ("ftagent_exporter_malformed_datagrams_total", Kind::Counter, "Datagrams of another version or structure.", |e| {
        e.counts.malformed
    }),
    (
        "ftagent_exporter_unknown_template_sets_total",
        Kind::Counter,
        "Sets of records whose template is not known.",
        |e| e.counts.unknown_templates,
    ),
    (
        "ftagent_exporter_other_interface_records_total",
        Kind::Counter,
        "Records taken at egress or at an interface that does not count.",
        |e| e.counts.other_interfaces,
    ),
    (
        "ftagent_exporter_skipped_records_total",
        Kind::Counter,
        "Records beyond the bounds of a datagram or of memory, and samples of no IP packet.",
        |e| e.counts.skipped.saturating_add(e.counts.unplaced),
    ),
    ("ftagent_exporter_restarts_total", Kind::Counter, "Sequences that began anew.", |e| e.counts.restarts),
    ("ftagent_exporter_silent", Kind::Gauge, "1 while nothing comes of the exporter.", |e| e.silent.into()),
    ("ftagent_exporter_templates", Kind::Gauge, "Templates of the exporter that are known.", |e| e.templates),
    ("ftagent_exporter_sampling_rate", Kind::Gauge, "One packet in so many is looked at; 0 before the first.", |e| {
        e.sampling_rate.unwrap_or(0).into()
    }),
    ("ftagent_exporter_packets_per_second", Kind::Gauge, "Packets towards protected addresses, corrected.", |e| e.pps),
    ("ftagent_exporter_bytes_per_second", Kind::Gauge, "Bytes towards protected addresses, corrected.", |e| e.bps / 8),
];

pub(super) fn exporters(text: &mut Text, listeners: &[ListenerStatus]) {
    text.family("ftagent_exporter_refused_datagrams_total", Kind::Counter, "Datagrams of addresses not allowed.");
    for listener in listeners {
        text.row(&[("listen", &listener.listen.to_string())], listener.refused);
    }
    let all = || listeners.iter().flat_map(|l| l.exporters.iter().map(|e| (l.listen.to_string(), e)));
    for (name, kind, help, value) in FAMILIES {
        text.family(name, *kind, help);
        for (listen, exporter) in all() {
            text.row(&[("listen", &listen), ("exporter", &exporter.address.to_string())], value(exporter));
        }
    }
    text.family("ftagent_exporter_lost_total", Kind::Counter, "Missing by gaps in sequence numbers.");
    for (listen, exporter) in all() {
        let (address, counts) = (exporter.address.to_string(), &exporter.counts);
        for (unit, lost) in [("datagrams", counts.lost_datagrams), ("records", counts.lost_records)] {
            text.row(&[("listen", &listen), ("exporter", &address), ("unit", unit)], lost);
        }
    }
    text.family("ftagent_exporter_seconds_since_seen", Kind::Gauge, "Age of the newest datagram.");
    for (listen, exporter) in all() {
        if let Some(secs) = exporter.last_seen_secs {
            text.row(&[("listen", &listen), ("exporter", &exporter.address.to_string())], secs);
        }
    }
    text.family("ftagent_exporter_clock_skew_seconds", Kind::Gauge, "Distance of the exporter's clock from ours.");
    for (listen, exporter) in all() {
        if let Some(skew) = exporter.clock_skew_secs {
            text.row(&[("listen", &listen), ("exporter", &exporter.address.to_string())], skew.unsigned_abs());
        }
    }
}
