//! PURE: the file in a `multipart/form-data` body (RFC 7578, RFC 2046 section 5.1).

use std::ops::Range;

/// The boundary that a content type names: 1 to 70 characters.
pub(super) fn boundary(content_type: &str) -> Option<String> {
    let mut parameters = content_type.split(';').skip(1);
    let value = parameters.find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    let sound = (1..=70).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic() || b == b' ');
    sound.then_some(value)
}

/// Where the first part with a file name lies in `body`; nothing if there is none, or if it does not end.
pub(super) fn file(body: &[u8], boundary: &str) -> Option<Range<usize>> {
    let line = format!("--{boundary}");
    let between = format!("\r\n{line}");
    let mut at =
        if body.starts_with(line.as_bytes()) { line.len() } else { find(body, between.as_bytes(), 0)? + between.len() };
    loop {
        if body.get(at..)?.starts_with(b"--") {
            return None;
        }
        // Blanks may follow the boundary.
        let head = find(body, b"\r\n", at)?;
        let (head_end, content) = if body.get(head + 2..)?.starts_with(b"\r\n") {
            (head, head + 4)
        } else {
            let end = find(body, b"\r\n\r\n", head)?;
            (end, end + 4)
        };
        let end = find(body, between.as_bytes(), content.saturating_sub(2))?.max(content);
        if names_a_file(&body[head..head_end]) {
            return Some(content..end);
        }
        at = find(body, between.as_bytes(), end.saturating_sub(2))? + between.len();
    }
}

fn names_a_file(head: &[u8]) -> bool {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let mut lines = head.split("\r\n").filter_map(|line| line.trim().strip_prefix("content-disposition:"));
    lines.any(|value| value.split(';').skip(1).any(|p| p.trim_start().starts_with("filename")))
}

/// The first place of `wanted` at or after `from`.
fn find(body: &[u8], wanted: &[u8], from: usize) -> Option<usize> {
    let first = *wanted.first()?;
    let mut at = from;
    while let Some(step) = body.get(at..)?.iter().position(|b| *b == first) {
        at += step;
        if body[at..].starts_with(wanted) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boundary_is_read_from_the_content_type() {
        for (text, expected) in [
            ("multipart/form-data; boundary=abc", Some("abc")),
            ("multipart/form-data; charset=x; Boundary=\"a b\"", Some("a b")),
            ("multipart/form-data", None),
            ("multipart/form-data; boundary=", None),
            ("multipart/form-data; boundary=a\u{7f}", None),
        ] {
            assert_eq!(boundary(text).as_deref(), expected, "{text}");
        }
        assert_eq!(boundary(&format!("multipart/form-data; boundary={}", "a".repeat(71))), None);
    }

    #[test]
    fn the_file_is_what_lies_between_its_lines() {
        let part = "content-disposition: form-data; name=\"file\"; filename=\"a.pcap\"\r\ncontent-type: x/y\r\n\r\n";
        let other = "Content-Disposition: form-data; name=\"note\"\r\n\r\nhello\r\n";
        for (name, body, expected) in [
            ("one", format!("--b\r\n{part}BYTES\r\n--b--\r\n"), Some("BYTES")),
            ("preamble", format!("hi\r\n--b\r\n{part}BYTES\r\n--b--"), Some("BYTES")),
            ("second", format!("--b\r\n{other}--b \r\n{part}\r\nBY\r\n\r\n--b--"), Some("\r\nBY\r\n")),
            ("alike", format!("--b\r\n{part}A\r\n-b\r\n--B\r\n--b--"), Some("A\r\n-b\r\n--B")),
            ("empty", format!("--b\r\n{part}\r\n--b--"), Some("")),
            ("no file", format!("--b\r\n{other}--b--\r\n"), None),
            ("no end", format!("--b\r\n{part}BYTES"), None),
            ("no head", "--b\r\n\r\nBYTES\r\n--b--".to_owned(), None),
            ("another boundary", format!("--c\r\n{part}BYTES\r\n--c--"), None),
            ("nothing", String::new(), None),
        ] {
            let found = file(body.as_bytes(), "b").map(|range| body[range].to_owned());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(proptest::sample::select(b"\r\n-b:x=;".to_vec()), 0..80)) {
            if let Some(range) = file(&body, "b") {
                proptest::prop_assert!(body.get(range).is_some());
            }
        }
    }
}
