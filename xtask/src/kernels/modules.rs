//! The modules that the rows of the matrix need, in the order in which they can be loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// Those that are built in, in one kernel or another, are not among its files.
const WANTED: &[&str] = &[
    "veth",
    "8021q",
    "bonding",
    "sch_ingress",
    "cls_bpf",
    "cls_matchall",
    "cls_flower",
    "cls_u32",
    "act_police",
    "act_gact",
    "act_mirred",
    "sch_tbf",
    "ifb",
    "nf_tables",
    "nft_limit",
    "nft_counter",
    "nft_reject_inet",
    "nft_set_hash",
    "af_packet",
];

/// A module, ready to be loaded.
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// The wanted modules below `folder`, each after those it depends on.
pub(crate) fn closure(folder: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(folder, &mut files)?;
    let mut loaded = Vec::new();
    let mut seen = BTreeSet::new();
    for name in WANTED {
        add(name, &files, &mut seen, &mut loaded)?;
    }
    Ok(loaded)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    seen: &mut BTreeSet<String>,
    loaded: &mut Vec<Module>,
) -> Result<()> {
    if !seen.insert(name.to_owned()) {
        return Ok(());
    }
    let Some(path) = files.get(name) else { return Ok(()) };
    let bytes = read(path)?;
    for needed in depends(&bytes) {
        add(&needed, files, seen, loaded)?;
    }
    loaded.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// Every module below `folder`, by the name that the kernel gives it.
fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if let Some((name, _)) = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.split_once(".ko")) {
            files.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

/// The module as the kernel takes it.
fn read(path: &Path) -> Result<Vec<u8>> {
    let program = match path.extension().and_then(|e| e.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        other => bail!("{}: modules packed as {other:?} cannot be read", path.display()),
    };
    let mut command = Command::new(process::find_program(program).with_context(|| format!("there is no {program}"))?);
    let output = command.arg("-dc").arg(path).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} cannot read {}", path.display());
    }
    Ok(output.stdout)
}

/// What a module says in `.modinfo` that it needs: words between zero bytes, one of which is `depends=a,b`.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[at + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_after_those_it_depends_on() {
        let folder = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fs::create_dir_all(folder.join("net")).expect("a folder");
        let write = |name: &str, depends: &str| {
            fs::write(folder.join(name), format!("ELF\0license=GPL\0depends={depends}\0name=x\0")).expect("a file");
        };
        write("net/8021q.ko", "mrp,garp-x");
        write("net/mrp.ko", "");
        write("garp-x.ko", "stp");
        write("stp.ko", "");
        let names: Vec<String> = closure(&folder).expect("modules").into_iter().map(|m| m.name).collect();
        fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(names, ["mrp", "stp", "garp_x", "8021q"]);
    }
}
