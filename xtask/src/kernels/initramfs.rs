//! The root file system of a kernel of the matrix: our programs, their libraries, modules. Nothing else is needed.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::Programs;
use super::modules::Module;
use crate::process;

/// `stat(2)`: kinds of files, with their permissions.
const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const DEVICE: u32 = 0o020_600;

/// Writes the archive, uncompressed: the emulator copies it faster than the emulated machine could unpack it.
pub(crate) fn write(path: &Path, programs: &Programs, modules: &[Module]) -> Result<()> {
    let mut tree = Tree::default();
    for (inside, here) in &programs.files {
        tree.file(inside, stripped(here, path)?);
        for library in libraries(here)? {
            let bytes = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
            tree.file(&library.display().to_string(), bytes);
        }
    }
    let mut list = String::new();
    for module in modules {
        let inside = format!("modules/{}.ko", module.name);
        list.push_str(&format!("/{inside}\n"));
        tree.file(&inside, module.bytes.clone());
    }
    tree.file("modules.list", list.into_bytes());
    let file = fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    tree.write(io::BufWriter::new(file)).with_context(|| format!("cannot write {}", path.display()))
}

/// The program without what only a debugger reads, or as it is where nothing can strip it.
fn stripped(program: &Path, beside: &Path) -> Result<Vec<u8>> {
    let to = beside.with_extension("stripped");
    let strip = Command::new("strip").arg("-o").arg(&to).arg(program).output();
    let from = if strip.is_ok_and(|output| output.status.success()) { &to } else { program };
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::remove_file(&to).ok();
    Ok(bytes)
}

/// The shared libraries that a program loads, its loader included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = process::capture(Command::new("ldd").arg(program));
    // A static program is no error here: `ldd` says so and fails.
    Ok(paths_of(&said.unwrap_or_default()))
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)` or `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn paths_of(ldd: &str) -> Vec<PathBuf> {
    let paths = ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

/// Entries by their path, without the leading slash.
#[derive(Default)]
struct Tree {
    entries: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Tree {
    /// Adds a file and the folders above it.
    fn file(&mut self, path: &str, bytes: Vec<u8>) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.insert(path[..at].to_owned(), (FOLDER, Vec::new()));
        }
        self.entries.insert(path.to_owned(), (FILE, bytes));
    }

    /// Writes the format `newc` of cpio(5): a header of fixed-width hexadecimal numbers, the name, the bytes, both
    /// padded to four. A folder sorts before what it holds, as it must.
    fn write(&self, mut out: impl Write) -> io::Result<()> {
        // The first process has its standard output here, before it can mount anything.
        let console = [("dev", FOLDER, &[][..], 0), ("dev/console", DEVICE, &[][..], 5 << 8 | 1)];
        let files = self.entries.iter().map(|(path, (mode, bytes))| (path.as_str(), *mode, &bytes[..], 0));
        let end = [("TRAILER!!!", 0, &[][..], 0)];
        for (inode, (path, mode, bytes, device)) in (1u32..).zip(console.into_iter().chain(files).chain(end)) {
            let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
            let name = path.len() + 1;
            let (major, minor) = (device >> 8, device & 0xff);
            write!(out, "070701{inode:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{size:08x}", 0, 0, 1, 0)?;
            write!(out, "{:08x}{:08x}{major:08x}{minor:08x}{name:08x}{:08x}{path}\0", 0, 0, 0)?;
            out.write_all(&[0; 3][..(4 - (110 + name) % 4) % 4])?;
            out.write_all(bytes)?;
            out.write_all(&[0; 3][..(4 - bytes.len() % 4) % 4])?;
        }
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_folders_and_ends_with_the_trailer() {
        let mut tree = Tree::default();
        tree.file("/lib64/x/loader.so", b"12345".to_vec());
        let mut bytes = Vec::new();
        tree.write(&mut bytes).expect("written");
        assert_eq!(bytes.len() % 4, 0);
        let mut names = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let field = |n: usize| {
                let hex = std::str::from_utf8(&bytes[at + 6 + n * 8..at + 14 + n * 8]).expect("digits");
                usize::from_str_radix(hex, 16).expect("a number")
            };
            assert_eq!(&bytes[at..at + 6], b"070701");
            let (size, name) = (field(6), field(11));
            names.push(String::from_utf8_lossy(&bytes[at + 110..at + 110 + name - 1]).into_owned());
            at = (at + 110 + name).next_multiple_of(4);
            if names.last().is_some_and(|n| n == "lib64/x/loader.so") {
                assert_eq!(&bytes[at..at + size], b"12345");
            }
            at = (at + size).next_multiple_of(4);
        }
        assert_eq!(names, ["dev", "dev/console", "lib64", "lib64/x", "lib64/x/loader.so", "TRAILER!!!"]);
    }

    #[test]
    fn libraries_are_read_from_what_ldd_says() {
        let said = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibm.so.6 => /lib/x/libm.so.6 (0x7f)\n\t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(paths_of(said), [Path::new("/lib/x/libm.so.6"), Path::new("/lib64/ld.so.2")]);
        assert!(paths_of("\tstatically linked\n").is_empty());
    }
}
