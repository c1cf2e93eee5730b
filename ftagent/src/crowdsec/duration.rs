//! Durations as Go writes them, such as `3h59m59.123456789s`.

/// Ten years: what lasts longer is as good as for ever, and still a number of nanoseconds.
const MAX_NS: f64 = 10.0 * 365.0 * 86_400.0 * 1e9;

/// Nanoseconds of `text`, at most ten years; 0 for one that is over, which begins with a minus.
pub(super) fn parse(text: &str) -> Option<u64> {
    let (is_over, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number * nanoseconds(&rest[..unit])?;
        rest = &rest[unit..];
    }
    let is_empty = text.is_empty();
    (!is_empty).then_some(if is_over { 0 } else { total.min(MAX_NS) as u64 })
}

fn nanoseconds(unit: &str) -> Option<f64> {
    Some(match unit {
        "h" => 3_600e9,
        "m" => 60e9,
        "s" => 1e9,
        "ms" => 1e6,
        "us" | "µs" | "μs" => 1e3,
        "ns" => 1.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_of_go_are_read() {
        const SEC: u64 = 1_000_000_000;
        for (text, expected) in [
            ("4h0m0s", Some(4 * 3_600 * SEC)),
            ("3h59m59.5s", Some(4 * 3_600 * SEC - SEC / 2)),
            ("1m0s", Some(60 * SEC)),
            ("1.5s", Some(3 * SEC / 2)),
            ("250ms", Some(SEC / 4)),
            ("7µs", Some(7_000)),
            ("9ns", Some(9)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("-1h2m3.4s", Some(0)),
            ("87600h0m1s", Some(MAX_NS as u64)),
            ("99999999999999999999999h", Some(MAX_NS as u64)),
            ("", None),
            ("-", None),
            ("4", None),
            ("h", None),
            ("4d", None),
            ("4h 3m", None),
            ("1.2.3s", None),
            ("∞", None),
        ] {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }
}
