//! The token bucket of `tc_police_interface`: a program of its own in a classic filter of an interface.
//!
//! Its rate and whom it spares are of the program: another rate is another program. It is held by its filter alone, and
//! goes with that, whoever deletes it.

use std::mem::ManuallyDrop;
use std::net::IpAddr;

use aya::maps::lpm_trie::Key;
use aya::maps::{LpmTrie, MapData};
use aya::programs::SchedClassifier;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcAttachType, TcHandle};
use aya::{Ebpf, EbpfLoader, Pod};
use ftagent_common::abi::Rate;
use ipnet::IpNet;

use super::adapt;
use super::kernel::Support;
use super::program::chain;
use super::undisturbed::load_program;
use crate::object;

/// The program's name in the object, and so the filter's.
const NAME: &str = "ftagent_bucket";
/// Of ours among the filters of a preference.
const HANDLE: TcHandle = TcHandle::new(0, 1);
/// Of a byte's cost behind the point, so that fast rates are as exact as slow ones.
const COST_BITS: u32 = 16;

/// What an interface may receive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub interface: String,
    /// The filter's place among those at the interface's ingress; there must be `clsact`.
    pub preference: u16,
    /// Bits per second.
    pub bps: u64,
    /// Bytes that may come at once.
    pub burst_bytes: u32,
    /// Sources that pass and take nothing of the rate.
    pub spared: Vec<IpNet>,
}

impl Bucket {
    /// What a byte costs and how far the state may run ahead of the clock, as the program takes them.
    fn rate(&self) -> (u64, u64) {
        let cost = (u128::from(Rate::UNITS_PER_SEC) << COST_BITS) / u128::from((self.bps / 8).max(1));
        let burst = (cost * u128::from(self.burst_bytes)) >> COST_BITS;
        // What is ahead by more than half of the range counts as behind.
        (u64::try_from(cost).unwrap_or(u64::MAX), u64::try_from(burst).unwrap_or(u64::MAX).min(u64::MAX / 4))
    }

    /// Loads the program and attaches it; it stays when this process ends.
    ///
    /// # Errors
    /// In the kernel's words.
    pub fn attach(&self) -> Result<(), String> {
        if !object::is_built() {
            return Err("this program was built without it: run `cargo xtask setup` and build again".to_owned());
        }
        let (cost, burst) = self.rate();
        let (four, six): (Vec<_>, Vec<_>) = self.spared.iter().map(IpNet::trunc).partition(|net| net.addr().is_ipv4());
        let support = Support::here();
        let mut loader = EbpfLoader::new();
        loader.override_global("COST", &cost, true).override_global("BURST", &burst, true);
        for (switch, value) in support.switches() {
            loader.override_global(switch, value, false);
        }
        for (map, nets) in [("SPARED4", &four), ("SPARED6", &six)] {
            loader.map_max_entries(map, u32::try_from(nets.len()).unwrap_or(u32::MAX).max(1));
        }
        let mut ebpf = loader.load(&adapt::for_kernel(object::TC_BUCKET, &support)).map_err(|e| chain(&e))?;
        spare(&mut ebpf, "SPARED4", &four, |ip| match ip {
            IpAddr::V4(ip) => Some(ip.octets()),
            IpAddr::V6(_) => None,
        })?;
        spare(&mut ebpf, "SPARED6", &six, |ip| match ip {
            IpAddr::V6(ip) => Some(ip.octets()),
            IpAddr::V4(_) => None,
        })?;
        let program = ebpf.program_mut(NAME).ok_or_else(|| format!("the object has no {NAME}"))?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| chain(&e))?;
        load_program(|| program.load())?;
        let options = NlOptions { priority: self.preference, handle: HANDLE, classid: None };
        let attached =
            program.attach_with_options(&self.interface, TcAttachType::Ingress, TcAttachOptions::Netlink(options));
        // Dropping the link would remove the filter: it must outlive us.
        attached.and_then(|id| program.take_link(id)).map(ManuallyDrop::new).map(drop).map_err(|e| chain(&e))
    }
}

fn spare<const N: usize>(
    ebpf: &mut Ebpf,
    map: &str,
    nets: &[IpNet],
    octets: impl Fn(IpAddr) -> Option<[u8; N]>,
) -> Result<(), String>
where
    [u8; N]: Pod,
{
    let map = ebpf.map_mut(map).ok_or_else(|| format!("the object has no {map}"))?;
    let mut trie: LpmTrie<&mut MapData, [u8; N], u32> = LpmTrie::try_from(map).map_err(|e| chain(&e))?;
    for net in nets {
        let Some(octets) = octets(net.addr()) else { continue };
        trie.insert(&Key::new(net.prefix_len().into(), octets), 1, 0).map_err(|e| chain(&e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_as_many_bytes_and_a_rate_as_many_bits() {
        const SEC_NS: u64 = 1_000_000_000;
        let bucket = |bps, burst_bytes| Bucket {
            interface: "lo".to_owned(),
            preference: 1,
            bps,
            burst_bytes,
            spared: Vec::new(),
        };
        for (bps, burst) in [
            (8_000, 2_048),
            (80_000, 4_096),
            (1_000_000_000, 1_250_000),
            (33_000_000_000, u32::MAX),
            (700_000_000_000, u32::MAX),
        ] {
            let (cost, ahead) = bucket(bps, burst).rate();
            let frame = 1_000;
            // As the program has it.
            let rate = Rate { cost: (frame * cost) >> COST_BITS, burst: ahead, per_byte: 0, padding: 0 };
            assert!(cost.checked_mul(1 << 20).is_some(), "{bps}: no frame's cost is cut");
            let pass = |from: &mut u64, now_ns| {
                let mut bytes = 0;
                while let Some(state) = rate.conform(*from, now_ns, frame) {
                    *from = state;
                    bytes += frame;
                    // Enough to know.
                    if bytes > 20_000_000_000 {
                        break;
                    }
                }
                bytes
            };
            let mut state = 0;
            let at_once = pass(&mut state, SEC_NS);
            // One frame goes in while there is any room at all; costs are rounded down.
            let most = (f64::from(burst) * 1.001) as u64 + 2 * frame;
            assert!((u64::from(burst)..=most).contains(&at_once), "{bps}: {at_once} of {burst}");
            // A second later there is room for a second's bytes, and never for more than the burst.
            let later = pass(&mut state, 2 * SEC_NS);
            let expected = (bps / 8).min(burst.into());
            let most = (expected as f64 * 1.001) as u64 + 2 * frame;
            assert!((expected.saturating_sub(frame)..=most).contains(&later), "{bps}: {later} of {expected}");
        }
        assert!(bucket(8_000, u32::MAX).rate().1 < u64::MAX / 2);
    }
}
