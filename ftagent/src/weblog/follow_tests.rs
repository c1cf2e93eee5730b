use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A directory with a file that is followed.
struct Desk {
    dir: tempfile::TempDir,
    follower: Follower,
    now_ns: u64,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let follower = Follower::new(&dir.path().join("access.log"));
        Self { dir, follower, now_ns: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, name: &str, text: impl AsRef<[u8]>) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path(name)).expect("a file");
        file.write_all(text.as_ref()).expect("room");
    }

    fn look(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        self.now_ns += 1_000_000_000;
        self.follower.look(self.now_ns, &mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
        lines
    }
}

#[test]
fn only_what_is_new_is_read_and_half_lines_wait_for_their_end() {
    let mut desk = Desk::new();
    desk.append("access.log", "old\nolder\n");
    assert!(desk.look().is_empty(), "what was there before is nobody's attack");
    desk.append("access.log", "one\r\ntw");
    assert_eq!(desk.look(), ["one"]);
    desk.append("access.log", "o\n\nthree\n");
    assert_eq!(desk.look(), ["two", "", "three"]);
    assert!(desk.look().is_empty());
    assert_eq!(desk.follower.counts, Counts { lines: 4, ..Counts::default() });
}

#[test]
fn a_line_that_was_begun_before_is_not_taken_for_a_whole_one() {
    let mut desk = Desk::new();
    desk.append("access.log", "beginning of ");
    desk.look();
    desk.append("access.log", "a line\nnext\n");
    assert_eq!(desk.look(), ["next"]);
}

#[test]
fn a_renamed_file_is_read_to_its_end_and_its_heir_from_its_beginning() {
    let mut desk = Desk::new();
    desk.append("access.log", "");
    desk.look();
    desk.append("access.log", "1\n");
    fs::rename(desk.path("access.log"), desk.path("access.log.1")).expect("renamed");
    desk.append("access.log.1", "2\n");
    assert_eq!(desk.look(), ["1", "2"]);
    assert!(
        desk.follower.problem.as_ref().is_some_and(|p| p.contains("does not exist")),
        "nobody made the new one yet"
    );
    desk.append("access.log.1", "3\n");
    desk.append("access.log", "4\n");
    assert_eq!(desk.look(), ["3", "4"]);
    // A worker that has not opened the new file yet.
    desk.append("access.log.1", "5\n");
    desk.append("access.log", "6\n");
    assert_eq!(desk.look(), ["5", "6"]);
    assert_eq!((desk.follower.counts.rotations, &desk.follower.problem), (1, &None));
}

#[test]
fn an_emptied_file_is_read_anew_even_when_it_grew_past_the_old_place() {
    let mut desk = Desk::new();
    desk.append("access.log", "");
    desk.look();
    desk.append("access.log", "first\nsecond\n");
    assert_eq!(desk.look().len(), 2);
    fs::copy(desk.path("access.log"), desk.path("copy")).expect("copied");
    fs::write(desk.path("access.log"), "3\n").expect("emptied");
    assert_eq!(desk.look(), ["3"]);
    // Emptied and filled beyond the old place between two looks.
    fs::write(desk.path("access.log"), "fourth line\nfifth line\n").expect("emptied");
    assert_eq!(desk.look(), ["fourth line", "fifth line"]);
    assert_eq!(desk.follower.counts.rotations, 2);
}

#[test]
fn a_file_that_appears_later_is_read_from_its_first_line() {
    let mut desk = Desk::new();
    assert!(desk.look().is_empty());
    assert!(desk.follower.problem.as_ref().is_some_and(|p| p.contains("does not exist yet")));
    desk.append("access.log", "1\n");
    assert_eq!(desk.look(), ["1"]);
    assert_eq!(desk.follower.problem, None);
}

#[test]
fn a_link_is_followed_when_it_points_elsewhere() {
    let mut desk = Desk::new();
    desk.append("a", "old\n");
    symlink(desk.path("a"), desk.path("access.log")).expect("a link");
    desk.look();
    desk.append("a", "1\n");
    assert_eq!(desk.look(), ["1"]);
    desk.append("b", "2\n");
    symlink(desk.path("b"), desk.path("new")).expect("a link");
    fs::rename(desk.path("new"), desk.path("access.log")).expect("replaced");
    assert_eq!(desk.look(), ["2"]);
}

#[test]
fn long_lines_are_skipped_and_counted() {
    let mut desk = Desk::new();
    desk.append("access.log", "");
    desk.look();
    desk.append("access.log", "x".repeat(3 * MAX_LINE));
    assert!(desk.look().is_empty());
    desk.append("access.log", "y".repeat(200_000) + "\nshort\n");
    assert_eq!(desk.look(), ["short"]);
    assert_eq!(desk.follower.counts.too_long, 1);
    assert!(desk.follower.open.as_ref().is_some_and(|o| o.half.capacity() <= 4 * MAX_LINE), "nothing of it is kept");
}

#[test]
fn too_much_that_waits_is_skipped_but_for_its_end() {
    let mut desk = Desk::new();
    desk.append("access.log", "");
    desk.look();
    let line = "z".repeat(99) + "\n";
    desk.append("access.log", line.repeat(400_000));
    let lines = desk.look();
    assert_eq!(lines.len(), KEPT_BACKLOG as usize / 100, "40 MB waited");
    assert!(lines.iter().all(|l| l.len() == 99), "from a whole line on");
    assert!(desk.follower.counts.skipped_bytes > 38_000_000);
    desk.append("access.log", "next\n");
    assert_eq!(desk.look(), ["next"]);
}

#[test]
fn one_look_reads_no_more_than_its_share() {
    let mut desk = Desk::new();
    desk.append("access.log", "");
    desk.look();
    desk.append("access.log", ("z".repeat(99) + "\n").repeat(100_000));
    let first = desk.look().len();
    assert!(first as u64 * 100 <= READ_BYTES + 65_536 && first > 40_000, "{first}");
    assert_eq!(first + desk.look().len() + desk.look().len(), 100_000);
}

#[test]
fn what_cannot_be_read_is_said() {
    let mut desk = Desk::new();
    fs::create_dir(desk.path("access.log")).expect("a directory");
    desk.look();
    assert!(desk.follower.problem.as_ref().is_some_and(|p| p.contains("no regular file")));
    fs::remove_dir(desk.path("access.log")).expect("gone");
    nix::unistd::mkfifo(&desk.path("access.log"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    desk.look();
    assert!(desk.follower.problem.as_ref().is_some_and(|p| p.contains("no regular file")), "and it did not wait");
    fs::remove_file(desk.path("access.log")).expect("gone");
    desk.append("access.log", "1\n");
    fs::set_permissions(desk.path("access.log"), fs::Permissions::from_mode(0o000)).expect("changed");
    desk.look();
    if nix::unistd::geteuid().is_root() {
        println!("skipped: root may read everything");
    } else {
        assert!(desk.follower.problem.as_ref().is_some_and(|p| p.contains("permission denied")));
    }
    let denied = explain(&io::Error::from(io::ErrorKind::PermissionDenied));
    assert!(denied.contains("permission denied") && denied.contains("adm"));
}
