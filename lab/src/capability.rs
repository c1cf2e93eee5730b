//! Whether this process may build a lab at all; a test that cannot run says why.

/// Prints why `test` is skipped and returns true, unless this process runs as root.
///
/// `FTAGENT_REQUIRE_ROOT=1` turns the skip into a panic, for machines on which nothing may be skipped.
pub fn skip_without_root(test: &str) -> bool {
    if nix::unistd::geteuid().is_root() {
        return false;
    }
    assert!(std::env::var_os("FTAGENT_REQUIRE_ROOT").is_none(), "{test} needs root and FTAGENT_REQUIRE_ROOT is set");
    println!("skipped: {test} needs root (network namespaces, BPF)");
    true
}
