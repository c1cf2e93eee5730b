//! Questions to the kernel, each answered by one system call that changes nothing.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::Feature;
use crate::xdp::table::sys_bpf;
use crate::xdp::undisturbed::Undisturbed;

/// `enum bpf_cmd`.
const PROG_LOAD: i64 = 5;
const PROG_QUERY: i64 = 16;
/// `enum bpf_prog_type`.
const XDP: u32 = 6;
/// `enum bpf_attach_type`.
const TCX_INGRESS: u32 = 46;
/// Numbers of `enum bpf_func_id`.
const XDP_LOAD_BYTES: i32 = 189;
const TCP_RAW_GEN_SYNCOOKIE_IPV4: i32 = 204;
/// In the network namespace of the caller: the loopback device.
const LOOPBACK: u32 = 1;

/// Whether the kernel has `feature`; none if it cannot be asked, for want of privileges above all.
pub(super) fn has(feature: Feature) -> Option<bool> {
    let _calm = Undisturbed::begin();
    match feature {
        Feature::LoadBytes => helper(XDP_LOAD_BYTES),
        Feature::SynCookies => helper(TCP_RAW_GEN_SYNCOOKIE_IPV4),
        Feature::CompareAndSwap => answer(load(&[STORE_ZERO, ZERO_R0, COMPARE_AND_SWAP, EXIT]).map_err(|e| e.0)),
        Feature::TcxLinks => answer(query_tcx()),
        // An empty map would have to be made; whoever uses batches sees the refusal and goes on without.
        Feature::TrieBatches => None,
    }
}

/// One instruction: opcode, registers (source in the upper half), offset, immediate.
type Instruction = (u8, u8, i16, i32);

const EXIT: Instruction = (0x95, 0, 0, 0);
const ZERO_R0: Instruction = (0xb7, 0, 0, 0);
/// `*(u64 *)(r10 - 8) = 0`
const STORE_ZERO: Instruction = (0x7a, 10, -8, 0);
/// `r0 = cmpxchg_64(r10 - 8, r0, r0)`
const COMPARE_AND_SWAP: Instruction = (0xdb, 10, -8, 0xf1);

/// Whether XDP programs may call a helper. It is called without its arguments: a kernel that knows it complains of
/// those, one that does not complains of the helper.
fn helper(id: i32) -> Option<bool> {
    match load(&[(0x85, 0, 0, id), ZERO_R0, EXIT]) {
        Ok(()) => Some(true),
        Err((error, _)) if error.kind() == io::ErrorKind::PermissionDenied && is_denied(&error) => None,
        Err((_, log)) if log.is_empty() => None,
        Err((_, log)) => {
            const UNKNOWN: [&str; 3] = ["invalid func ", "unknown func ", "program of this type cannot use helper "];
            Some(!UNKNOWN.iter().any(|words| log.contains(words)))
        }
    }
}

fn answer(result: io::Result<()>) -> Option<bool> {
    match result {
        Ok(()) => Some(true),
        Err(error) if is_denied(&error) => None,
        Err(_) => Some(false),
    }
}

/// The kernel did not look at the question. The verifier's refusals are EACCES or EINVAL.
fn is_denied(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS | libc::ENOMEM | libc::EAGAIN))
}

/// Loads the shortest program there is.
#[cfg(test)]
pub(in crate::xdp) fn trivial() -> io::Result<()> {
    load(&[ZERO_R0, EXIT]).map_err(|(error, _)| error)
}

/// The head of `union bpf_attr` for loading a program.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Loads a program and lets it go again; on failure what the verifier said.
fn load(program: &[Instruction]) -> Result<(), (io::Error, String)> {
    let mut code = Vec::with_capacity(program.len() * 8);
    for (opcode, registers, offset, immediate) in program {
        code.extend([*opcode, *registers]);
        code.extend(offset.to_ne_bytes());
        code.extend(immediate.to_ne_bytes());
    }
    let mut log = vec![0u8; 4_096];
    let license = c"Dual MIT/GPL";
    let attr = Load {
        kind: XDP,
        count: program.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: `attr` is the layout of this command; what it points to lives until the call is over.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attr, size_of::<Load>()) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
        return Err((error, String::from_utf8_lossy(&log[..end]).into_owned()));
    }
    // SAFETY: the call gave us a descriptor that nobody else has.
    drop(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    Ok(())
}

/// Asks which programs hang on the loopback device's TCX hook, which older kernels do not know.
fn query_tcx() -> io::Result<()> {
    let mut attr = [0u8; 64];
    attr[0..4].copy_from_slice(&LOOPBACK.to_ne_bytes());
    attr[4..8].copy_from_slice(&TCX_INGRESS.to_ne_bytes());
    match sys_bpf(PROG_QUERY, &mut attr) {
        // Known, and nothing was ever attached there.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_answers_as_its_version_says_or_not_at_all() {
        let name = nix::sys::utsname::uname().expect("a name");
        let support = super::super::Support::of_release(&name.release().to_string_lossy());
        for entry in super::super::TABLE {
            match has(entry.feature) {
                Some(answer) => assert!(answer || !support.has(entry.feature), "{}", entry.name),
                None => println!("skipped: {} cannot be asked for here", entry.name),
            }
        }
    }
}
