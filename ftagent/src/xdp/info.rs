//! What the kernel knows of pinned links and programs.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::table::sys_bpf;

const OBJ_GET: i64 = 7;
const OBJ_GET_INFO_BY_FD: i64 = 15;
const LINK_DETACH: i64 = 34;
/// `enum bpf_link_type`.
const LINK_TYPE_XDP: u32 = 6;
const LINK_TYPE_TCX: u32 = 11;

/// A pinned link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub id: u32,
    pub program_id: u32,
    /// The interface's index; none for other kinds of link, 0 when the interface is gone.
    pub interface: Option<u32>,
}

/// The head of `struct bpf_link_info`; interface links keep the index first in their part.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program_id: u32,
    padding: u32,
    interface: u32,
    rest: [u32; 27],
}

/// Reads what is pinned at `path`.
///
/// # Errors
/// When nothing is pinned there or the kernel refuses.
pub fn link(path: &Path) -> io::Result<Link> {
    let fd = object(path)?;
    let mut info = LinkInfo::default();
    let mut attr = [0u8; 16];
    attr[0..4].copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
    attr[4..8].copy_from_slice(&(size_of::<LinkInfo>() as u32).to_ne_bytes());
    attr[8..16].copy_from_slice(&((&raw mut info) as u64).to_ne_bytes());
    sys_bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let has_interface = matches!(info.kind, LINK_TYPE_XDP | LINK_TYPE_TCX);
    Ok(Link { id: info.id, program_id: info.program_id, interface: has_interface.then_some(info.interface) })
}

/// Takes the program of the link pinned at `path` off its interface now. Without its pin it would go after a grace period of
/// the kernel (Linux 5.9; before, that is all there is).
///
/// # Errors
/// When no link is pinned there or the kernel refuses.
pub fn detach(path: &Path) -> io::Result<()> {
    let fd = object(path)?;
    let mut attr = [0u8; 16];
    attr[0..4].copy_from_slice(&fd.as_raw_fd().to_ne_bytes());
    sys_bpf(LINK_DETACH, &mut attr).map(drop)
}

fn object(path: &Path) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let mut attr = [0u8; 16];
    attr[0..8].copy_from_slice(&(name.as_ptr() as u64).to_ne_bytes());
    // SAFETY: `attr` is the layout of this command and `name` outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attr.as_mut_ptr(), attr.len()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call gave us a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Gives memory that was freed back to the machine: loading programs takes some megabytes for half a second, and the
/// allocator would keep them.
pub fn trim_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers; the allocator's own locks guard it.
    unsafe {
        libc::malloc_trim(0);
    }
}
