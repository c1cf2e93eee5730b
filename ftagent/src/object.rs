//! The compiled BPF programs, as `build.rs` made them.

/// Bytes at an address that an ELF reader may expect.
#[repr(C, align(8))]
struct Aligned<Bytes: ?Sized>(Bytes);

static DATAPATH_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/datapath.o")));
static TC_BUCKET_FILE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/tc_bucket.o")));

/// The datapath: an ELF object with BTF, 8-byte aligned; empty when it was not built.
pub static DATAPATH: &[u8] = &DATAPATH_FILE.0;

/// The token bucket of `tc_police_interface`, likewise.
pub static TC_BUCKET: &[u8] = &TC_BUCKET_FILE.0;

/// Whether the objects are there.
///
/// They are not when this program was built without a compiler for BPF: `cargo xtask setup` installs one.
pub fn is_built() -> bool {
    !DATAPATH.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_object_is_an_aligned_elf_file_for_bpf() {
        if !is_built() {
            println!("skipped: built without a compiler for BPF");
            return;
        }
        for object in [DATAPATH, TC_BUCKET] {
            assert_eq!(object.as_ptr().align_offset(8), 0);
            assert_eq!(object[..4], *b"\x7fELF");
            // e_machine, in the byte order of the machine: EM_BPF.
            assert_eq!(u16::from_ne_bytes([object[18], object[19]]), 247);
        }
    }

    #[test]
    fn the_build_is_complete_where_it_must_be() {
        let required = std::env::var_os("FTAGENT_REQUIRE_EBPF").is_some_and(|value| value == "1");
        assert!(is_built() || !required, "FTAGENT_REQUIRE_EBPF=1 and no object");
    }
}
