//! A kernel on disk: found in its suite, downloaded once, unpacked below the target folder.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::Kernel;
use super::apt::{Archive, Package};

/// Depends on the newest kernel for virtual machines: the same features as the others, in a third of their size.
const META: &str = "linux-image-cloud-amd64";

/// An unpacked kernel.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    release: String,
    pub(crate) vmlinuz: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

impl Image {
    /// The image in `folder`, downloaded if it is not there.
    pub(crate) fn ensure(kernel: &Kernel, folder: &Path, refresh: bool) -> Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            bail!("the kernels of the matrix are for x86-64, and so are our programs in them");
        }
        let record = folder.join("image.json");
        let recorded = fs::read(&record).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        if let Some(image) = recorded.filter(|image| !refresh && image.vmlinuz.is_file() && image.modules.is_dir()) {
            return Ok(image);
        }
        eprintln!("kernels: {}: looking for it in {}", kernel.name, kernel.suite);
        let suites: Vec<&str> = std::iter::once(kernel.suite).chain(kernel.security).collect();
        let archive = Archive::open(&folder.join("apt"), &suites)?;
        let image = image_package(&archive.package(META)?)?;
        let packages = parts(&image, &archive.package(&image)?);
        let root = folder.join("root");
        // A newer kernel does not go into the folder of an older one.
        fs::remove_dir_all(&root).ok();
        fs::create_dir_all(&root)?;
        archive.unpack(&packages, &root)?;
        let found = Self::find(&root, image.trim_start_matches("linux-image-"))?;
        fs::write(&record, serde_json::to_vec_pretty(&found)?)?;
        Ok(found)
    }

    /// Looks where Debian's packages put things; newer ones have all under usr/lib/modules.
    fn find(root: &Path, release: &str) -> Result<Self> {
        let first = |paths: [String; 2]| paths.into_iter().map(|path| root.join(path)).find(|path| path.exists());
        let vmlinuz = first([format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")])
            .with_context(|| format!("the package of {release} holds no vmlinuz"))?;
        let modules = first([format!("lib/modules/{release}/kernel"), format!("usr/lib/modules/{release}/kernel")])
            .with_context(|| format!("the package of {release} holds no modules"))?;
        Ok(Self { release: release.to_owned(), vmlinuz, modules })
    }
}

/// The package of the kernel itself.
fn image_package(meta: &Package) -> Result<String> {
    let is_versioned = |name: &&String| {
        name.strip_prefix("linux-image-").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let found = meta.depends.iter().find(is_versioned).cloned();
    found.with_context(|| format!("{META} {} depends on no kernel", meta.version))
}

/// That package, and those into which newer ones are split.
fn parts(image: &str, package: &Package) -> Vec<String> {
    let split = package.depends.iter().filter(|d| d.starts_with("linux-binary-") || d.starts_with("linux-modules-"));
    std::iter::once(image.to_owned()).chain(split.cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(depends: &[&str]) -> Package {
        Package { version: "1".into(), depends: depends.iter().map(|d| (*d).to_owned()).collect() }
    }

    #[test]
    fn a_kernel_is_one_package_or_several() {
        let meta = package(&["linux-base-cloud-amd64", "linux-image-7.2.13+deb14-cloud-amd64"]);
        let image = image_package(&meta).expect("a kernel");
        assert_eq!(image, "linux-image-7.2.13+deb14-cloud-amd64");
        let split =
            package(&["linux-binary-7.2.13+deb14-cloud-amd64", "kmod", "linux-modules-7.2.13+deb14-cloud-amd64"]);
        assert_eq!(parts(&image, &split).len(), 3);
        assert_eq!(parts(&image, &package(&["kmod", "linux-base"])), [image]);
        assert!(image_package(&package(&["linux-image-amd64"])).is_err());
    }
}
