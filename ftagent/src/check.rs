//! `ftagent check`: can this machine run the agent, and what would degrade. Changes nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::below;
use crate::config::Config;
use crate::enforce::gate::Syncookies;
use crate::host::host_facts;
use crate::object;
use crate::xdp::adapt::declares;
use crate::xdp::kernel::Support;
use crate::xdp::pins::Pins;
use crate::xdp::program::{AttachChoice, memory, missing_capabilities};

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub subject: String,
    /// Without it the agent does not start.
    pub ok: bool,
    pub detail: String,
}

/// Looks at everything that the agent needs under `config`.
pub async fn check(config: &Config) -> Vec<Finding> {
    let mut findings = vec![datapath()];
    findings.extend(kernel(&Support::here()));
    findings.extend([privileges(), bpffs(config), jit(), btf()]);
    findings.extend(interfaces(config).await);
    findings.push(finding("SYN cookies", Ok(Syncookies::new(&config.state_dir).prospect())));
    findings.push(map_memory(config));
    findings.push(finding(
        "fall-back",
        Ok(config.fallback.iter().map(|rung| rung.as_str()).collect::<Vec<_>>().join(", then ")),
    ));
    findings.extend(config.crowdsec.iter().map(|crowdsec| finding("crowdsec", Ok(crowdsec.text()))));
    for (subject, dir) in [("state directory", &config.state_dir), ("runtime directory", &config.runtime_dir)] {
        findings.push(directory(subject, dir));
    }
    findings
}

/// The findings as text, one line each.
pub fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = if finding.ok { "ok  " } else { "FAIL" };
        // Writing to a string cannot fail.
        _ = writeln!(text, "{mark}  {:width$}  {}", finding.subject, finding.detail);
    }
    text
}

fn finding(subject: &str, result: Result<String, String>) -> Finding {
    let ok = result.is_ok();
    Finding { subject: subject.to_owned(), ok, detail: result.unwrap_or_else(|why| why) }
}

fn datapath() -> Finding {
    let result = if object::is_built() {
        Ok(format!("{} bytes", object::DATAPATH.len()))
    } else {
        Err("this program was built without it: run `cargo xtask setup` and build again".to_owned())
    };
    finding("datapath", result)
}

/// The kernel, and one line for each feature of ours that it lacks.
fn kernel(support: &Support) -> Vec<Finding> {
    let mut findings = vec![finding("kernel", support.refusal().map_or_else(|| Ok(support.release.clone()), Err))];
    let missing = support.missing(declares);
    findings.extend(missing.iter().map(|entry| finding(&format!("kernel {}", support.version()), Ok(entry.lack()))));
    findings
}

fn privileges() -> Finding {
    let missing = missing_capabilities();
    let result = if missing.is_empty() {
        Ok("CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are there".to_owned())
    } else {
        Err(format!("{} missing: run as root, or by the service with its capabilities", missing.join(", ")))
    };
    finding("privileges", result)
}

fn bpffs(config: &Config) -> Finding {
    let result = Pins::below(&config.bpffs).map(|_| config.bpffs.display().to_string()).map_err(|e| e.to_string());
    finding("bpffs", result)
}

fn jit() -> Finding {
    let result = match std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").as_deref().map(str::trim) {
        Ok("0") => Err("off: the datapath would be interpreted; sysctl net.core.bpf_jit_enable=1".to_owned()),
        Ok(_) => Ok("on".to_owned()),
        // Kernels built with the JIT always on have no switch.
        Err(_) => Ok("no switch: always on".to_owned()),
    };
    finding("BPF JIT", result)
}

fn btf() -> Finding {
    let there = std::path::Path::new("/sys/kernel/btf/vmlinux").exists();
    let detail = if there { "of the running kernel" } else { "not there; the datapath does not need the kernel's" };
    finding("BTF", Ok(detail.to_owned()))
}

/// Each interface, and where its program would go. A bond that takes none natively is found out at the start alone.
async fn interfaces(config: &Config) -> Vec<Finding> {
    let links = match host_facts().await {
        Ok(facts) => facts.interfaces,
        Err(error) => return vec![finding("interfaces", Err(error.to_string()))],
    };
    let devices = match below::devices(&config.wanted(), &links, &BTreeSet::new(), &[]) {
        Ok(devices) => devices,
        Err(error) => return vec![finding("interfaces", Err(error.to_string()))],
    };
    let one = |(name, choice): &(String, AttachChoice)| {
        let served = devices.iter().filter(|device| device.serves.contains(name));
        let at: Vec<String> = served.filter(|d| d.plan.name != *name).map(|d| format!(" at {}", d.plan.name)).collect();
        let result = match links.iter().find(|link| link.name == *name) {
            Some(link) => Ok(format!("index {}, to be attached {choice:?}", link.index).to_lowercase() + &at.concat()),
            None => Err("does not exist: see `ip link`".to_owned()),
        };
        finding(&format!("interface {name}"), result)
    };
    config.interfaces.iter().map(one).collect()
}

fn map_memory(config: &Config) -> Finding {
    let result = match memory(&config.datapath.sizes) {
        Ok(bytes) if bytes > config.datapath.max_memory_bytes => Err(format!(
            "{bytes} bytes at most, over datapath.max_memory_bytes = {}: raise it or lower datapath.max_*",
            config.datapath.max_memory_bytes
        )),
        Ok(bytes) => Ok(format!("{:.1} MiB when every map is full", bytes as f64 / 1_048_576.0)),
        Err(error) => Err(error.to_string()),
    };
    finding("map memory", result)
}

fn directory(subject: &str, dir: &std::path::Path) -> Finding {
    let nearest = dir.ancestors().find(|d| d.exists());
    let result = match nearest {
        Some(there) if nix::unistd::access(there, nix::unistd::AccessFlags::W_OK).is_err() => {
            Err(format!("{} cannot be written", there.display()))
        }
        Some(there) if there == dir => Ok(dir.display().to_string()),
        Some(_) => Ok(format!("{} will be made", dir.display())),
        None => Err(format!("{} has no existing parent", dir.display())),
    };
    finding(subject, result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernel_is_told_line_by_line_what_it_goes_without() {
        if !object::is_built() {
            println!("skipped: built without a compiler for BPF");
            return;
        }
        let findings = kernel(&Support::of_release("5.10.0-46-cloud-amd64"));
        assert!(findings.iter().all(|finding| finding.ok), "{findings:?}");
        let text = text(&findings);
        let line = "kernel 5.10  compare-and-swap in BPF not available (needs 5.12): CPUs that use one limit";
        assert!(text.contains(line), "{text}");
        assert_eq!(kernel(&Support::of_release("7.2.0")).len(), 1, "nothing is missing on a new one");
        assert!(!kernel(&Support::of_release("4.19.0"))[0].ok);
    }
}
