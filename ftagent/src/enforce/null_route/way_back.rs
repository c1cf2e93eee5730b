//! `net.ipv4.conf.*.rp_filter`: whether the kernel drops what comes from a source that it would not answer.
//!
//! With 2 (loose) it drops what no route leads back to, as to a blackhole, and minds no detours. Changed where it is off
//! while null routes are in force; what it was stands in the state directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::daemon::boot_id;

const LOOSE: &str = "2";

#[derive(Clone, Debug)]
pub(super) struct WayBack {
    settings: PathBuf,
    saved: PathBuf,
    /// Names this boot: what was before an earlier one is nothing to go back to.
    boot: String,
}

impl WayBack {
    pub(super) fn new(state_dir: &Path) -> Self {
        Self { settings: "/proc/sys/net/ipv4/conf".into(), saved: state_dir.join("rp_filter"), boot: boot_id() }
    }

    fn setting(&self, device: &str) -> PathBuf {
        self.settings.join(device).join("rp_filter")
    }

    fn read(&self, device: &str) -> io::Result<String> {
        fs::read_to_string(self.setting(device)).map(|text| text.trim().to_owned())
    }

    /// Whether what comes by the device is checked; the larger of two settings holds.
    fn is_checked(&self, device: &str) -> io::Result<bool> {
        Ok(self.read("all")? != "0" || self.read(device)? != "0")
    }

    /// Why what comes by one of the devices is not checked and will not be, if so.
    pub(super) fn obstacle(&self, devices: &[String]) -> Option<String> {
        devices.iter().find_map(|device| match self.is_checked(device) {
            Ok(true) => None,
            Ok(false) => {
                let path = self.setting(device);
                let fixed = nix::unistd::access(&path, nix::unistd::AccessFlags::W_OK).is_err();
                fixed.then(|| format!("{} cannot be written", path.display()))
            }
            Err(error) => Some(format!("{}: {error}", self.setting(device).display())),
        })
    }

    /// Has what comes by these devices checked.
    pub(super) fn hold(&self, devices: &[String]) -> io::Result<()> {
        for device in devices {
            if self.is_checked(device)? {
                continue;
            }
            let mut saved = self.saved()?;
            if !saved.iter().any(|(name, _)| name == device) {
                saved.push((device.clone(), self.read(device)?));
                // First what to go back to: a crash in between leaves nothing that is not undone.
                self.save(&saved)?;
            }
            fs::write(self.setting(device), LOOSE)?;
        }
        Ok(())
    }

    /// Sets back what was changed, unless somebody else changed it since.
    pub(super) fn release(&self) -> io::Result<()> {
        if !self.saved.exists() {
            return Ok(());
        }
        let saved = self.saved()?;
        for (device, before) in &saved {
            match self.read(device) {
                Ok(now) if now == LOOSE => fs::write(self.setting(device), before)?,
                Ok(_) => {}
                // Its interface went away.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        fs::remove_file(&self.saved)
    }

    /// Names and values; a line that makes no sense names nothing that we could set back.
    fn saved(&self) -> io::Result<Vec<(String, String)>> {
        let text = match fs::read_to_string(&self.saved) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let is_value = |value: &str| matches!(value, "0" | "1" | "2");
        let is_name = |name: &str| !name.is_empty() && !name.contains('/') && name != "..";
        let mut lines = text.lines();
        if lines.next() != Some(&self.boot) {
            return Ok(Vec::new());
        }
        let lines = lines.filter_map(|line| line.split_once(' '));
        Ok(lines
            .filter(|(name, value)| is_name(name) && is_value(value))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect())
    }

    fn save(&self, saved: &[(String, String)]) -> io::Result<()> {
        let lines: String = saved.iter().map(|(name, value)| format!("{name} {value}\n")).collect();
        let text = format!("{}\n{lines}", self.boot);
        let beside = self.saved.with_extension("new");
        fs::write(&beside, text)?;
        fs::rename(&beside, &self.saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_comes_back_unless_somebody_changed_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let boot = "one".to_owned();
        let way_back = WayBack { settings: dir.path().join("conf"), saved: dir.path().join("rp_filter"), boot };
        let set = |device: &str, value: &str| {
            fs::create_dir_all(way_back.settings.join(device)).expect("a directory");
            fs::write(way_back.setting(device), format!("{value}\n")).expect("written");
        };
        let devices = ["eth0".to_owned(), "eth1.7".to_owned()];
        [("all", "0"), ("eth0", "0"), ("eth1.7", "1")].iter().for_each(|(device, value)| set(device, value));
        assert_eq!(way_back.obstacle(&devices), None);
        way_back.hold(&devices).expect("held");
        let values = || devices.clone().map(|device| way_back.read(&device).expect("a value"));
        assert_eq!(values(), ["2", "1"], "what is checked stays as it is");
        way_back.hold(&devices).expect("held again");
        way_back.release().expect("released");
        assert_eq!(values(), ["0", "1"]);
        assert!(!way_back.saved.exists());
        way_back.release().expect("nothing to do");

        way_back.hold(&devices).expect("held");
        set("eth0", "1");
        way_back.release().expect("released");
        assert_eq!(values(), ["1", "1"], "somebody else's");

        set("eth0", "0");
        way_back.hold(&devices).expect("held");
        fs::remove_dir_all(way_back.settings.join("eth0")).expect("the interface went");
        way_back.release().expect("released");
        assert!(way_back.obstacle(&devices).is_some_and(|why| why.contains("eth0")));

        set("eth0", "0");
        way_back.hold(&devices).expect("held");
        let later = WayBack { boot: "another".to_owned(), ..way_back.clone() };
        later.release().expect("nothing to set back");
        assert_eq!(values()[0], "2", "what the machine began with");
        assert!(!later.saved.exists());

        set("eth0", "0");
        set("all", "1");
        way_back.hold(&devices).expect("held");
        assert_eq!(values()[0], "0", "the larger holds");
    }
}
