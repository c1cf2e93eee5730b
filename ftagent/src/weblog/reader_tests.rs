use std::io::Write as _;

use super::*;
use crate::weblog::formats::Format;

const SEC: u64 = 1_000_000_000;

fn line(address: &str) -> String {
    format!("{address} - - [x] \"GET / HTTP/1.1\" 200 5 \"-\" \"x\" \"192.0.2.9\"\n")
}

fn work(path: &Path) -> Work {
    let log = AccessLog { path: path.to_owned(), format: Format::Auto, target: None, behind_proxy: false };
    Work { logs: vec![log], trusted_proxies: vec![], first_address: Some("203.0.113.5".parse().expect("an address")) }
}

fn append(path: &Path, text: &str) {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a file");
    file.write_all(text.as_bytes()).expect("room");
}

#[test]
fn lines_become_requests_of_their_targets() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.log");
    append(&path, "");
    let mut work = work(&path);
    work.trusted_proxies = vec!["10.0.0.0/8".parse().expect("a prefix")];
    let mut desk = Desk::new(work);
    desk.look(0);
    append(&path, &(line("198.51.100.7") + &line("10.0.0.1") + "nonsense\n" + &line("0.0.0.0")));
    let told = desk.look(SEC);
    let seen: Vec<(String, bool)> = told.batch.requests.iter().map(|r| (r.source.to_string(), r.proxied)).collect();
    assert_eq!(seen, [("198.51.100.7".to_owned(), false), ("192.0.2.9".to_owned(), true)]);
    assert!(told.batch.requests.iter().all(|r| r.target.to_string() == "203.0.113.5"));
    assert_eq!((told.logs[0].malformed, told.logs[0].counts.lines), (2, 4));
}

#[test]
fn more_lines_than_are_read_are_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.log");
    append(&path, "");
    let mut desk = Desk::new(work(&path));
    desk.look(0);
    append(&path, &line("198.51.100.7").repeat(LINES_PER_LOOK + 500));
    let told = desk.look(SEC);
    assert_eq!(told.batch.requests.len(), LINES_PER_LOOK);
    assert_eq!(told.batch.unread.values().sum::<u64>(), 500);
    assert_eq!(told.logs[0].unread, 500);
}

#[test]
fn patterns_find_new_files_and_are_bounded() {
    let dir = tempfile::tempdir().expect("a directory");
    for n in 0..40 {
        append(&dir.path().join(format!("{n}.log")), "old\n");
    }
    append(&dir.path().join("other.txt"), "old\n");
    let mut desk = Desk::new(work(&dir.path().join("*.log")));
    let told = desk.look(0);
    assert_eq!((told.logs.len(), told.too_many, told.batch.requests.len()), (40, false, 0));
    append(&dir.path().join("new.log"), &line("198.51.100.7"));
    assert!(desk.look(SEC).batch.requests.is_empty(), "it is looked for every few seconds");
    assert_eq!(desk.look(6 * SEC).batch.requests.len(), 1, "from its first line");
    for n in 0..100 {
        append(&dir.path().join(format!("more-{n}.log")), "");
    }
    let told = desk.look(12 * SEC);
    assert_eq!((told.logs.len(), told.too_many), (MAX_FILES, true));
}

#[test]
fn a_new_configuration_does_not_lose_the_place() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.log");
    append(&path, "old\n");
    let mut desk = Desk::new(work(&path));
    desk.look(0);
    append(&path, &line("198.51.100.7"));
    let mut changed = work(&path);
    changed.logs[0].target = Some("192.0.2.80".parse().expect("an address"));
    desk.configure(changed);
    let told = desk.look(SEC);
    assert_eq!(told.batch.requests.first().map(|r| r.target.to_string()).as_deref(), Some("192.0.2.80"));
    desk.configure(Work::default());
    assert!(desk.look(2 * SEC).logs.is_empty());
}

#[tokio::test]
async fn the_thread_tells_what_it_finds_and_ends_when_it_is_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("a.log");
    let (reader, mut told) = Reader::start(work(&path), crate::clock::mono_ns).expect("a thread");
    let first = told.recv().await.expect("a look");
    assert!(first.logs[0].problem.as_ref().is_some_and(|p| p.contains("does not exist")));
    append(&path, &line("198.51.100.7"));
    let found = async {
        loop {
            if !told.recv().await.expect("a look").batch.requests.is_empty() {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), found).await.expect("it is found soon");
    tokio::task::spawn_blocking(move || drop(reader)).await.expect("it ends");
}
