use super::*;
use crate::engine::web::Method;

const ADDRESS: &str = "198.51.100.7";

/// What is looked at of an entry: address, method, status, bytes, milliseconds, with a query, agent named, asset.
type Looked = (String, Method, u16, u64, Option<u32>, bool, bool, bool);

fn looked(e: &Entry) -> Looked {
    (e.peer.to_string(), e.method, e.status, e.bytes, e.millis, e.query.is_some(), e.agent != 0, e.asset)
}

fn of(method: Method, status: u16, bytes: u64, millis: Option<u32>, query: bool, agent: bool, asset: bool) -> Looked {
    (ADDRESS.to_owned(), method, status, bytes, millis, query, agent, asset)
}

#[test]
fn every_server_s_lines_are_read_and_recognised() {
    use Method::{Get, Other, Post};
    let nginx = Format::Json(Box::new(Fields::nginx()));
    let caddy = Format::Json(Box::new(Fields::caddy()));
    // (name, format, line, expected); each is read by its format and by `auto`.
    let table: Vec<(&str, Format, &str, Looked)> = vec![
        (
            "nginx combined",
            Format::Combined,
            r#"198.51.100.7 - - [21/Nov/2026:10:00:00 +0000] "GET /a/b.html?x=1 HTTP/1.1" 200 612 "-" "Mozilla/5.0 (X11)""#,
            of(Get, 200, 612, None, true, true, false),
        ),
        (
            "common, with a user",
            Format::Combined,
            r#"198.51.100.7 - frank smith [10/Oct/2000:13:55:36 -0700] "GET /apache_pb.gif HTTP/1.0" 200 2326"#,
            of(Get, 200, 2_326, None, false, true, true),
        ),
        (
            "Apache, virtual host, escaped quotes, no bytes",
            Format::Combined,
            r#"www.example.com:443 198.51.100.7 - - [10/Oct/2000:13:55:36 -0700] "POST /a\"b HTTP/1.1" 304 - "http://x/\"" "a \"quoted\" agent""#,
            of(Post, 304, 0, None, false, true, false),
        ),
        (
            "no agent, time and client behind",
            Format::Combined,
            r#"198.51.100.7 - - [10/Oct/2000:13:55:36 -0700] "PURGE / HTTP/2.0" 499 0 "-" "-" "192.0.2.1, 192.0.2.2" 0.023"#,
            of(Other, 499, 0, Some(23), false, false, false),
        ),
        (
            "TLS to a plain port",
            Format::Combined,
            r#"198.51.100.7 - - [10/Oct/2000:13:55:36 -0700] "\x16\x03\x01\x02\x00" 400 157 "-" "-""#,
            of(Other, 400, 157, None, false, false, false),
        ),
        (
            "nothing was asked",
            Format::Combined,
            r#"198.51.100.7 - - [10/Oct/2000:13:55:36 -0700] "-" 408 0 "-" "-""#,
            of(Other, 408, 0, None, false, false, false),
        ),
        (
            "haproxy",
            Format::Haproxy,
            r#"Feb  6 12:14:14 localhost haproxy[14389]: 198.51.100.7:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {1wt.eu} {} "GET /index.css?v=2 HTTP/1.1""#,
            of(Get, 200, 2_750, Some(109), true, true, true),
        ),
        (
            "haproxy, given up, cut short",
            Format::Haproxy,
            r#"198.51.100.7:33317 [06/Feb/2009:12:14:14.655] http-in~ b/<NOSRV> -1/-1/-1/-1/+50 -1 0 - - CR-- 2/2/0/0/0 0/0 "GET /very/long"#,
            of(Get, 499, 0, Some(50), false, true, false),
        ),
        (
            "haproxy, the request never came",
            Format::Haproxy,
            r#"198.51.100.7:33317 [06/Feb/2009:12:14:14.655] http-in b/<NOSRV> -1/-1/-1/-1/10002 -1 212 - - cR-- 2/2/0/0/0 0/0 "<BADREQ>""#,
            of(Other, 408, 212, Some(10_002), false, true, false),
        ),
        (
            "caddy",
            caddy,
            r#"{"level":"info","ts":1646861401.5241024,"logger":"http.log.access","msg":"handled request","request":{"remote_ip":"198.51.100.7","remote_port":"41342","proto":"HTTP/2.0","method":"GET","host":"localhost","uri":"/x.js?a","headers":{"User-Agent":["curl/7.82.0"],"Accept":["*/*"]}},"bytes_read":0,"user_id":"","duration":0.000929675,"size":10900,"status":200}"#,
            of(Get, 200, 10_900, Some(0), true, true, true),
        ),
        (
            "nginx in JSON, all texts",
            nginx.clone(),
            r#"{"time":"x","remote_addr":"198.51.100.7","request":"POST /login HTTP/2.0","status":"401","body_bytes_sent":"55","request_time":"0.250","http_user_agent":"","http_x_forwarded_for":"-"}"#,
            of(Post, 401, 55, Some(250), false, false, false),
        ),
        (
            "nginx in JSON, numbers, no answer of an upstream",
            nginx,
            r#"{"remote_addr":"198.51.100.7","request_method":"GET","request_uri":"/?q","status":499,"bytes_sent":0,"request_time":1.5,"http_user_agent":"x"}"#,
            of(Get, 499, 0, Some(1_500), true, true, false),
        ),
    ];
    for (name, format, line, expected) in table {
        for format in [format, Format::Auto] {
            let entry = format.read(line.as_bytes()).unwrap_or_else(|| panic!("{name} is not read as {format:?}"));
            assert_eq!(looked(&entry), expected, "{name} as {}", format.as_str());
        }
    }
}

#[test]
fn names_of_fields_can_be_told() {
    let fields = Fields {
        address: Some("http.client".to_owned()),
        uri: Some("u".to_owned()),
        method: Some("m".to_owned()),
        status: Some("s".to_owned()),
        server: Some("here".to_owned()),
        ..Fields::default()
    };
    let line = br#"{"http":{"client":"[2001:db8::7]:4711"},"u":"/a","m":"GET","s":200,"here":"192.0.2.80"}"#;
    let entry = Format::Json(Box::new(fields)).read(line).expect("read");
    assert_eq!(entry.peer.to_string(), "2001:db8::7");
    assert_eq!(entry.server, Some("192.0.2.80".parse().expect("an address")));
    assert_ne!(entry.agent, 0, "what is never logged is not missing");
}

#[test]
fn hostile_lines_are_no_requests_and_cost_no_time() {
    let long = |piece: &str| piece.repeat(8_000 / piece.len());
    let lines: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"\0\0\0\0".to_vec(),
        b"\xff\xfe\xfd [x] \"\xff\" 200 1".to_vec(),
        b"{".to_vec(),
        b"{\"remote_addr\":\"not an address\",\"request_uri\":\"/\"}".to_vec(),
        b"{\"remote_addr\":[[[[\"198.51.100.7\"]]]]}".to_vec(),
        long("{\"a\":").into_bytes(),
        long("[").into_bytes(),
        b"host.example - - [x] \"GET / HTTP/1.1\" 200 1".to_vec(),
        format!("{ADDRESS} - - [x] \"{}", long("\\\"")).into_bytes(),
        format!("{ADDRESS} - - [{}", long("]")).into_bytes(),
        format!("{ADDRESS} - - [x] \"GET / HTTP/1.1\" 9999999 1").into_bytes(),
        format!("{ADDRESS}:1 [x] a b 1/1/1/1/1 200 1 - - ---- 1/1/1/1/1 1/1 {}", long("{a} ")).into_bytes(),
        long("1/").into_bytes(),
    ];
    for line in &lines {
        for format in [Format::Auto, Format::Combined, Format::Haproxy, Format::Json(Box::new(Fields::common()))] {
            assert_eq!(format.read(line), None, "{} as {}", String::from_utf8_lossy(line), format.as_str());
        }
    }
    let began = crate::clock::mono_ns();
    for line in lines.iter().cycle().take(lines.len() * 20) {
        assert_eq!(Format::Auto.read(line), None);
    }
    let each_us = (crate::clock::mono_ns() - began) / 1_000 / (lines.len() as u64 * 20);
    assert!(each_us < 20_000, "{each_us} µs a line");
}

#[test]
fn bytes_that_are_no_text_are_a_path_like_others() {
    let read = |path: &[u8]| {
        let mut line = format!("{ADDRESS} - - [x] \"GET ").into_bytes();
        line.extend_from_slice(path);
        line.extend_from_slice(b" HTTP/1.1\" 404 0 \"-\" \"\xff\xff\"");
        Format::Auto.read(&line).expect("read")
    };
    assert_eq!(read(b"/\xc3\x28").path, read(b"/\xc3\x28").path);
    assert_ne!(read(b"/\xc3\x28").path, read(b"/\xc3\x29").path);
}

#[test]
fn clients_behind_proxies_are_the_last_that_no_proxy_added() {
    let mut entry = Format::Auto.read(format!("{ADDRESS} - - [x] \"GET / HTTP/1.1\" 200 1").as_bytes()).expect("read");
    let is_proxy = |ip: IpAddr| ip.to_string().starts_with("10.");
    let mut client = |forwarded: &str| {
        entry.forwarded = Some(forwarded.to_owned());
        entry.client_behind(is_proxy).map(|ip| ip.to_string())
    };
    assert_eq!(client("192.0.2.66, 192.0.2.1, 10.0.0.1").as_deref(), Some("192.0.2.1"), "what it claims is no proof");
    assert_eq!(client("10.0.0.1"), None);
    assert_eq!(client("unknown, \"[2001:db8::1]:80\"").as_deref(), Some("2001:db8::1"));
    assert_eq!(client(&"x,".repeat(10_000)), None);
}

#[test]
fn search_engines_name_themselves() {
    let read = |agent: &str| {
        Format::Auto
            .read(format!("{ADDRESS} - - [x] \"GET / HTTP/1.1\" 200 1 \"-\" \"{agent}\"").as_bytes())
            .expect("read")
    };
    assert!(read("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)").crawler);
    assert!(!read("Mozilla/5.0 (X11; Linux x86_64)").crawler);
}
