//! The first process of a kernel that was booted for the matrix: file systems, modules, the rows, power off.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;

use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::{Tools, print, run};

/// Modules in the order in which they can be loaded, one path a line.
const MODULES: &str = "/modules.list";

/// Whether this process is the first one.
pub fn is_first() -> bool {
    std::process::id() == 1
}

/// Does all that a first process does here; returns only if the machine cannot be switched off.
pub fn main() {
    let began = crate::clock::now();
    let failed = prepare();
    let kernel = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    print(&serde_json::json!({ "kernel": kernel, "left_out": failed }));
    let tools = Tools { ftagent: "/bin/ftagent".into(), ip: "/bin/ip".into(), tc: "/bin/tc".into() };
    // Words that the kernel does not know are for its first process.
    let words = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let ok = run(&tools, words.split_whitespace().find_map(|word| word.strip_prefix("matrix_row=")));
    print(&serde_json::json!({ "done": ok, "secs": began.elapsed().as_secs() }));
    // Whoever reads the console wants the last line.
    nix::unistd::sync();
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    eprintln!("cannot power off: {error}");
}

/// Mounts what programs expect and loads the modules; returns what could not be done.
fn prepare() -> Vec<String> {
    let mut failed = Vec::new();
    let systems = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tmpfs", "/run"),
        ("bpf", "/sys/fs/bpf"),
    ];
    for (kind, at) in systems {
        fs::create_dir_all(at).ok();
        if let Err(error) = mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>) {
            failed.push(format!("mount {at}: {error}"));
        }
    }
    let list = fs::read_to_string(MODULES).unwrap_or_default();
    for path in list.lines().filter(|line| !line.is_empty()) {
        if let Err(why) = load(Path::new(path)) {
            failed.push(format!("{path}: {why}"));
        }
    }
    failed
}

fn load(path: &Path) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let none = CString::default();
    match finit_module(&file, &none, ModuleInitFlags::empty()) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}
