//! ARP and other frames that are not IP: they pass, up to a rate per CPU.

use ftagent_common::abi::{Reason, Settings};

use crate::maps;

#[inline(always)]
pub(super) fn limit(settings: &Settings, now_ns: u64, bytes: u64) -> Reason {
    let Some(cpu) = maps::CPU_STATES.get_ptr_mut(0) else { return Reason::NotIp };
    // SAFETY: the map's own memory of this CPU; a program is not interrupted by itself on its CPU.
    let cpu = unsafe { &mut *cpu };
    match settings.not_ip.conform(cpu.not_ip_state, now_ns, bytes) {
        Some(state) => {
            cpu.not_ip_state = state;
            Reason::NotIp
        }
        None => Reason::NotIpLimit,
    }
}
