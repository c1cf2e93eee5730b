//! Where the kernel asks our rules: pure.

use super::wire::{Attributes, attribute as a};

/// The table's family, and where its base chain is hooked in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// `inet`, before connection tracking, for whatever comes in by whichever device.
    #[default]
    Prerouting,
    /// `netdev`: where these devices hand their frames over, before the IP stack has looked at them, sorted. Several need
    /// kernel 5.5.
    Ingress(Vec<String>),
}

/// Before connection tracking puts fragments together (-400): they are dropped at less cost, and fragments can be
/// matched as such. `NF_IP_PRI_RAW_BEFORE_DEFRAG` of the kernel.
const BEFORE_DEFRAG: i32 = -450;
/// Before what others put there with the priorities that have names.
const FIRST: i32 = -500;
/// `NF_INET_PRE_ROUTING` and `NF_NETDEV_INGRESS`.
const HOOK: u32 = 0;

/// The hook of a base chain, as it should be or as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    pub(super) number: u32,
    pub(super) priority: i32,
    /// Sorted.
    pub(super) devices: Vec<String>,
}

impl Place {
    /// The table's family: `NFPROTO_INET` or `NFPROTO_NETDEV`.
    pub(super) fn family(&self) -> u8 {
        match self {
            Self::Prerouting => 1,
            Self::Ingress(_) => 5,
        }
    }

    /// How nft calls the family.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Prerouting => "inet",
            Self::Ingress(_) => "netdev",
        }
    }

    /// The same without devices that are not there.
    pub(in crate::enforce) fn present(&self, is_there: impl Fn(&str) -> bool) -> Self {
        match self {
            Self::Prerouting => Self::Prerouting,
            Self::Ingress(devices) => Self::Ingress(devices.iter().filter(|name| is_there(name)).cloned().collect()),
        }
    }

    pub(super) fn devices(&self) -> &[String] {
        match self {
            Self::Prerouting => &[],
            Self::Ingress(devices) => devices,
        }
    }

    pub(super) fn hook(&self) -> Hook {
        match self {
            Self::Prerouting => Hook { number: HOOK, priority: BEFORE_DEFRAG, devices: Vec::new() },
            Self::Ingress(devices) => Hook { number: HOOK, priority: FIRST, devices: devices.clone() },
        }
    }
}

impl Hook {
    /// The attributes that make it.
    pub(super) fn encode(&self) -> Attributes {
        let priority = u32::from_be_bytes(self.priority.to_be_bytes());
        let hook = Attributes::default().u32(a::HOOK_NUMBER, self.number).u32(a::HOOK_PRIORITY, priority);
        if self.devices.is_empty() {
            return hook;
        }
        let names = self.devices.iter().fold(Attributes::default(), |list, name| list.text(a::DEVICE_NAME, name));
        hook.nested(a::HOOK_DEVICES, &names)
    }
}
