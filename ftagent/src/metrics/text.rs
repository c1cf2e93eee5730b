//! Prometheus' text format 0.0.4.

use std::fmt::Write;

pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page under construction.
#[derive(Debug, Default)]
pub(super) struct Text {
    out: String,
    /// The family that rows belong to.
    name: &'static str,
}

impl Text {
    /// Begins a family; its rows follow.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let word = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        self.push(format_args!("# HELP {name} {help}\n# TYPE {name} {word}\n"));
    }

    /// One sample of the family.
    pub(super) fn row(&mut self, labels: &[(&str, &str)], value: u64) {
        self.sample("", labels, &value.to_string());
    }

    /// The samples of a histogram without labels; `counts` are those of single buckets, one more than `bounds`.
    pub(super) fn histogram(&mut self, bounds: &[String], counts: &[u64], sum: &str) {
        let mut cumulated = 0;
        let infinite = "+Inf".to_owned();
        for (bound, count) in bounds.iter().chain([&infinite]).zip(counts) {
            cumulated += count;
            self.sample("_bucket", &[("le", bound)], &cumulated.to_string());
        }
        self.sample("_sum", &[], sum);
        self.sample("_count", &[], &cumulated.to_string());
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: &str) {
        let name = self.name;
        self.push(format_args!("{name}{suffix}"));
        for (n, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            self.push(format_args!("{}{label}=\"{value}\"", if n == 0 { '{' } else { ',' }));
        }
        let end = if labels.is_empty() { "" } else { "}" };
        self.push(format_args!("{end} {value}\n"));
    }

    fn push(&mut self, arguments: std::fmt::Arguments<'_>) {
        self.out.write_fmt(arguments).expect("writing to a String never fails");
    }
}

/// `value` × 10^-`digits` without the rounding of floating point.
pub(super) fn decimal(value: u64, digits: u32) -> String {
    let unit = 10_u64.pow(digits);
    let fraction = format!("{:0width$}", value % unit, width = digits as usize);
    let fraction = fraction.trim_end_matches('0');
    if fraction.is_empty() { (value / unit).to_string() } else { format!("{}.{fraction}", value / unit) }
}
