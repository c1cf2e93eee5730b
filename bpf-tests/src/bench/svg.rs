//! Two kinds of plots, written as SVG by hand: lines over a logarithmic axis, and bars.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 190.0;
const TOP: f64 = 44.0;
const BOTTOM: f64 = 54.0;
/// Colours that differ for colour-blind readers too (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// One line of a plot.
pub struct Series {
    pub name: String,
    /// In the order of x. An x of 0 stands at the left edge.
    pub points: Vec<(f64, f64)>,
}

/// Lines; x is logarithmic from 100 on, 0 has a place of its own at the left.
pub fn lines(title: &str, x_label: &str, y_label: &str, series: &[Series]) -> String {
    let all = || series.iter().flat_map(|s| &s.points);
    let top = nice(all().map(|p| p.1).fold(0.0, f64::max));
    let decades = all().map(|p| decade(p.0)).fold(1.0, f64::max);
    let x = |value: f64| LEFT + decade(value) / decades * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value.clamp(0.0, top) / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = start(title, WIDTH, HEIGHT);
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let at = y(value);
        writeln!(svg, r##"<line x1="{LEFT}" x2="{:.1}" y1="{at:.1}" y2="{at:.1}" stroke="#ddd"/>"##, WIDTH - RIGHT)
            .expect("text");
        text(&mut svg, (LEFT - 6.0, at + 4.0), "end", &format!("{value:.0}"));
    }
    let mut ticks: Vec<f64> = all().map(|p| p.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        text(&mut svg, (x(tick), HEIGHT - BOTTOM + 18.0), "middle", &short(tick));
    }
    for (line, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<String> = line.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        writeln!(svg, r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, points.join(" "))
            .expect("text");
        for point in &line.points {
            writeln!(svg, r#"<circle cx="{:.1}" cy="{:.1}" r="3" fill="{colour}"/>"#, x(point.0), y(point.1))
                .expect("text");
        }
    }
    for ((line, colour), row) in series.iter().zip(COLOURS.iter().cycle()).zip(0u32..) {
        let at = TOP + 12.0 + 20.0 * f64::from(row);
        let left = WIDTH - RIGHT + 12.0;
        writeln!(svg, r#"<rect x="{left}" y="{:.1}" width="12" height="4" fill="{colour}"/>"#, at - 6.0).expect("text");
        text(&mut svg, (left + 18.0, at), "start", &line.name);
    }
    text(&mut svg, (LEFT, HEIGHT - 12.0), "start", x_label);
    text(&mut svg, (8.0, TOP - 8.0), "start", y_label);
    svg.push_str("</svg>\n");
    svg
}

/// Horizontal bars, one for each row, in the order given.
pub fn bars(title: &str, unit: &str, rows: &[(String, f64)]) -> String {
    const STEP: f64 = 24.0;
    const LABELS: f64 = 260.0;
    let height = TOP + STEP * rows.len() as f64 + 16.0;
    let top = rows.iter().map(|r| r.1).fold(f64::MIN_POSITIVE, f64::max);
    let mut svg = start(title, WIDTH, height);
    for ((label, value), row) in rows.iter().zip(0u32..) {
        let at = TOP + STEP * f64::from(row);
        let width = (value.max(0.0) / top * (WIDTH - LABELS - 90.0)).max(1.0);
        let colour = if label.starts_with("ftagent") { COLOURS[1] } else { COLOURS[0] };
        text(&mut svg, (LABELS - 8.0, at + 14.0), "end", label);
        writeln!(svg, r#"<rect x="{LABELS}" y="{at:.1}" width="{width:.1}" height="18" fill="{colour}"/>"#)
            .expect("text");
        let said = format!("{} {unit}", super::report::figure(*value));
        text(&mut svg, (LABELS + width + 6.0, at + 14.0), "start", &said);
    }
    svg.push_str("</svg>\n");
    svg
}

fn start(title: &str, width: f64, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    writeln!(svg, r#"<text x="8" y="20" font-size="14" font-weight="bold">{}</text>"#, escaped(title)).expect("text");
    svg
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, said: &str) {
    writeln!(svg, r#"<text x="{:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>"#, at.0, at.1, escaped(said))
        .expect("text");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// How far right a value lies: 0 for none, 1 for a hundred and less, 2 for a thousand.
fn decade(value: f64) -> f64 {
    if value <= 0.0 { 0.0 } else { (value.log10() - 1.0).max(1.0) }
}

/// A round number of 1, 2 or 5 times a power of ten, at least `value`.
fn nice(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].iter().map(|step| step * power).find(|step| *step >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.0} M", v / 1e6),
        v if v >= 1e3 => format!("{:.0} k", v / 1e3),
        v => format!("{v:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_stands_where_its_values_say() {
        let points = vec![(0.0, 0.0), (1_000.0, 50.0), (1_000_000.0, 100.0)];
        let svg = lines("cost", "entries", "ns", &[Series { name: "hit".to_owned(), points }]);
        // The left end of the axis, two fifths of it, and the right end at full height.
        assert!(svg.contains(r#"points="70.0,346.0 254.0,195.0 530.0,44.0""#), "{svg}");
        assert!(svg.contains(">1 k<") && svg.contains(">1 M<") && svg.ends_with("</svg>\n"), "{svg}");
    }

    #[test]
    fn the_longest_bar_fills_the_row_and_names_are_escaped() {
        let svg = bars("drop", "ns", &[("a <b>".to_owned(), 100.0), ("ftagent".to_owned(), 50.0)]);
        assert!(svg.contains(r#"width="370.0" height="18""#) && svg.contains(r#"width="185.0""#), "{svg}");
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("50.0 ns"), "{svg}");
    }

    #[test]
    fn axes_end_on_round_numbers() {
        assert_eq!((nice(0.0), nice(42.0), nice(100.0), nice(170.0)), (1.0, 50.0, 100.0, 200.0));
        assert_eq!((short(262_144.0), short(7.0)), ("262 k".to_owned(), "7".to_owned()));
    }
}
