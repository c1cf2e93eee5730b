//! Programs of the machine: argument vectors, never a shell, in an environment of two words, with an end in any case.
//!
//! Called by `actions/runner` and `profile/run`, who say where the output goes and what becomes of it.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::clock;

/// Where programs are looked for, whoever started the agent: as in an operator's shell, so that both use the same ones.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Words that can be read, whatever an operator wrote into comments of rules.
const LC_ALL: &str = "C.UTF-8";
/// What is said of a program that is not there, behind its name and before that of its package.
pub(crate) const NOT_INSTALLED: &str = "is not installed: install the package";

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("there is no command")]
    Empty,
    #[error("{program} {NOT_INSTALLED} {}", package(program))]
    Missing { program: String },
    #[error("{program} cannot be started: {source}")]
    Failed { program: String, source: io::Error },
}

/// How a program ended.
#[derive(Debug)]
pub(crate) enum End {
    Exit(ExitStatus),
    /// Not in time: it was killed.
    Late,
    /// The kernel does not say; it was killed.
    Unknown(io::Error),
}

/// A program under way, in a group of its own. Nobody in that group outlives this value.
#[derive(Debug)]
pub(crate) struct Program {
    child: Child,
    began_ns: u64,
}

impl Program {
    /// Starts `argv` with `input` to read, and both of its outputs where the caller wants them.
    ///
    /// # Errors
    /// There is no such program, or the kernel did not start it.
    pub(crate) fn start(argv: &[String], input: &str, [out, err]: [Stdio; 2]) -> Result<Self, StartError> {
        let began_ns = clock::mono_ns();
        let [program, arguments @ ..] = argv else { return Err(StartError::Empty) };
        let missing = || StartError::Missing { program: program.clone() };
        let failed = |source: io::Error| match source.kind() {
            // The interpreter of a script.
            io::ErrorKind::NotFound => missing(),
            _ => StartError::Failed { program: program.clone(), source },
        };
        // `Command` would look in the search path of whoever started the agent.
        let mut command = Command::new(place_of(program).ok_or_else(missing)?);
        command.args(arguments).env_clear().env("PATH", PATH).env("LC_ALL", LC_ALL).current_dir("/");
        command.stdin(if input.is_empty() { Stdio::null() } else { whole(input).map_err(failed)?.into() });
        command.stdout(out).stderr(err).process_group(0);
        let child = command.spawn().map_err(failed)?;
        Ok(Self { child, began_ns })
    }

    /// Our ends of the outputs, where they are pipes.
    pub(crate) fn pipes(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits until it ends or `patience` has passed since it was started; between two looks `meanwhile` passes the time,
    /// no longer than it is told.
    pub(crate) fn wait(mut self, patience: Duration, mut meanwhile: impl FnMut(Duration)) -> End {
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let deadline_ns = self.began_ns.saturating_add(patience_ns);
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return End::Exit(status),
                Ok(None) => {}
                Err(error) => return End::Unknown(error),
            }
            let left_ns = deadline_ns.saturating_sub(clock::mono_ns());
            if left_ns == 0 {
                return End::Late;
            }
            meanwhile(Duration::from_nanos(left_ns));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Mostly nobody is left of the group. What one of it did later, no journal would know.
        killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL).ok();
        self.child.wait().ok();
    }
}

/// A file of no folder that holds `input`. It is whole before anybody reads it: nothing is held up, whoever reads how
/// much.
fn whole(input: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(input.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn place_of(program: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    PATH.split(':').map(|dir| Path::new(dir).join(program)).find(is_program)
}

/// Whether this machine has a program.
pub(crate) fn is_installed(program: &str) -> bool {
    place_of(program).is_some()
}

/// The package that has a program, in Debian's and most others' words.
fn package(program: &str) -> &str {
    match program {
        "iptables-save" | "iptables-restore" | "ip6tables" | "ip6tables-save" | "ip6tables-restore" => "iptables",
        "nft" => "nftables",
        "ip" | "tc" => "iproute2",
        "firewall-cmd" => "firewalld",
        "busctl" => "systemd",
        "fail2ban-client" => "fail2ban",
        "sysctl" => "procps",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use super::*;

    fn start(words: &[&str]) -> Result<Program, StartError> {
        let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
        Program::start(&words, "", [Stdio::piped(), Stdio::piped()])
    }

    fn sleep(_: Duration) {
        thread::sleep(Duration::from_millis(5));
    }

    #[test]
    fn the_environment_is_fixed() {
        let mut program = start(&["env"]).expect("it is there");
        let mut pipe = program.pipes().0.expect("a pipe");
        assert!(matches!(program.wait(Duration::from_secs(10), sleep), End::Exit(status) if status.success()));
        let mut said = String::new();
        pipe.read_to_string(&mut said).expect("words");
        let mut lines: Vec<&str> = said.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C.UTF-8", &format!("PATH={PATH}")]);
    }

    #[test]
    fn what_is_not_there_names_its_package() {
        let why = |words: &[&str]| start(words).expect_err("no program").to_string();
        assert_eq!(why(&["no-such-tool"]), "no-such-tool is not installed: install the package no-such-tool");
        assert_eq!(why(&[]), "there is no command");
        // A folder and a file that nobody may execute are no programs.
        assert!(why(&["/etc"]).contains(NOT_INSTALLED) && why(&["/etc/passwd"]).contains(NOT_INSTALLED));
        let all = ["ip6tables-restore", "firewall-cmd", "tc", "nft", "ipset"].map(package);
        assert_eq!(all, ["iptables", "firewalld", "iproute2", "nftables", "ipset"]);
    }

    #[test]
    fn a_script_without_its_interpreter_is_not_installed() {
        let dir = tempfile::tempdir().expect("a folder");
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/no/such/interpreter\n").expect("written");
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("changed");
        let why = start(&[script.to_str().expect("a path")]).expect_err("no interpreter");
        assert!(matches!(why, StartError::Missing { .. }), "{why}");
    }

    /// Whether anybody of a group lives; one that is dead may wait for init to take note of it.
    fn lives(group: u32) -> bool {
        // State and group of each process, behind the name.
        let is_alive = |stat: String| {
            let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
            fields.get(2) == Some(&group.to_string().as_str()) && !["Z", "X"].contains(&fields[0])
        };
        let all = std::fs::read_dir("/proc").expect("processes").flatten().map(|entry| entry.path().join("stat"));
        all.filter_map(|path| std::fs::read_to_string(path).ok()).any(is_alive)
    }

    /// Whether it is so before long: who comes while the processes are listed may be missed.
    fn soon(is_so: impl Fn() -> bool) -> bool {
        (0..100).any(|_| {
            thread::sleep(Duration::from_millis(20));
            is_so()
        })
    }

    #[test]
    fn nobody_of_its_group_outlives_it() {
        let began_ns = clock::mono_ns();
        for (script, patience_ms, is_late) in
            [("sleep 1000 & sleep 1000", 3_000, true), ("sleep 1000 & exit 0", 10_000, false)]
        {
            let program = start(&["sh", "-c", script]).expect("a shell");
            let group = program.child.id();
            assert!(soon(|| lives(group)));
            let end = program.wait(Duration::from_millis(patience_ms), sleep);
            assert_eq!(matches!(end, End::Late), is_late, "{script}: {end:?}");
            assert!(soon(|| !lives(group)), "{script}: a descendant goes on");
        }
        // Nor where nobody waits.
        let program = start(&["sleep", "1000"]).expect("it is there");
        let group = program.child.id();
        drop(program);
        assert!(soon(|| !lives(group)));
        assert!(clock::mono_ns() - began_ns < 15_000_000_000);
    }
}
