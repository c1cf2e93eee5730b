//! Runs a program inside a network namespace of the lab; see `bpf_tests::inside`.

fn main() {
    bpf_tests::inside::exec_if_asked();
    eprintln!("this program is started by the lab, not by hand");
    std::process::exit(2);
}
