//! PURE: the capacity model, straight lines through what was measured at three sizes, carried on to larger ones.

use std::fmt::Write as _;

/// A fleet that was measured, in its steady part.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Point {
    pub(super) nodes: f64,
    /// Open files of the server.
    pub(super) connections: f64,
    /// A second; so are the seconds of traffic, which are rows of the database.
    pub(super) requests: f64,
    pub(super) samples: f64,
    pub(super) cores: f64,
    pub(super) database_cores: f64,
    pub(super) memory_mib: f64,
    pub(super) bytes_per_sec: f64,
}

/// Sizes that nobody measured here.
const BEYOND: [f64; 3] = [25_000.0, 50_000.0, 100_000.0];
/// CPUs of one process, and the share of them that it should use: a fleet comes back at once after a cut.
const CPUS: f64 = 2.0;
const SHARE: f64 = 0.6;
/// Seconds for which samples are kept by the second, unless configured otherwise.
const KEPT: f64 = 6.0 * 3_600.0;

/// `a + b · nodes`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    a: f64,
    b: f64,
}

impl Line {
    /// The line of least squares.
    fn through(points: &[Point], value: impl Fn(&Point) -> f64) -> Self {
        let n = points.len() as f64;
        let mean = |value: &dyn Fn(&Point) -> f64| points.iter().map(value).sum::<f64>() / n;
        let (x, y) = (mean(&|p| p.nodes), mean(&|p| value(p)));
        let covariance: f64 = points.iter().map(|p| (p.nodes - x) * (value(p) - y)).sum();
        let variance: f64 = points.iter().map(|p| (p.nodes - x).powi(2)).sum();
        let b = if variance > 0.0 { covariance / variance } else { 0.0 };
        Self { a: y - b * x, b }
    }

    fn at(self, nodes: f64) -> f64 {
        (self.a + self.b * nodes).max(0.0)
    }
}

fn fit(points: &[Point], nodes: f64) -> Point {
    let at = |value: fn(&Point) -> f64| Line::through(points, value).at(nodes);
    Point {
        nodes,
        connections: at(|p| p.connections),
        requests: at(|p| p.requests),
        samples: at(|p| p.samples),
        cores: at(|p| p.cores),
        database_cores: at(|p| p.database_cores),
        memory_mib: at(|p| p.memory_mib),
        bytes_per_sec: at(|p| p.bytes_per_sec),
    }
}

/// Processes of [`CPUS`] CPUs each.
fn processes(point: &Point) -> f64 {
    (point.cores / (CPUS * SHARE)).ceil().max(1.0)
}

/// What was measured and what follows, as a table in Markdown.
pub(super) fn table(database: &str, points: &[Point]) -> String {
    let mut text = format!("### {database}\n\n");
    text += "| nodes | | connections | requests/s | rows/s | CPUs, server | CPUs, database | memory | MB/h | GB in 6 h | processes |\n";
    text += "| --: | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |\n";
    let measured = points.iter().map(|point| (*point, "measured"));
    for (point, how) in measured.chain(BEYOND.map(|nodes| (fit(points, nodes), "carried on"))) {
        let Point { nodes, connections, requests, samples, cores, database_cores, memory_mib, bytes_per_sec } = point;
        let (mb, gb) = (bytes_per_sec * 3_600.0 / 1e6, bytes_per_sec * KEPT / 1e9);
        let processes = processes(&point);
        writeln!(
            text,
            "| {nodes:.0} | {how} | {connections:.0} | {requests:.0} | {samples:.0} | {cores:.2} | {database_cores:.2} | {memory_mib:.0} MiB | {mb:.0} | {gb:.1} | {processes:.0} |"
        )
        .expect("a String takes every write");
    }
    text += "\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(nodes: f64) -> Point {
        let times = |factor: f64| 1.0 + factor * nodes;
        Point {
            nodes,
            connections: times(3.0),
            requests: times(0.3),
            samples: nodes,
            cores: times(0.000_1),
            database_cores: 0.0,
            memory_mib: times(0.01),
            bytes_per_sec: times(80.0),
        }
    }

    #[test]
    fn what_lies_on_a_line_is_carried_on_along_it() {
        let points = [500.0, 2_000.0, 11_000.0].map(point);
        let far = fit(&points, 100_000.0);
        let expected = point(100_000.0);
        assert!((far.connections - expected.connections).abs() < 1e-3 && (far.cores - expected.cores).abs() < 1e-9);
        assert_eq!((processes(&far), processes(&points[0])), (10.0, 1.0), "11 CPUs at 60 % of two each");
        let text = table("SQLite", &points);
        assert_eq!((text.matches("measured").count(), text.matches("carried on").count()), (3, 3), "{text}");
    }

    #[test]
    fn one_size_alone_is_no_slope() {
        let line = Line::through(&[point(500.0)], |p| p.cores);
        assert_eq!(line.b, 0.0);
    }
}
