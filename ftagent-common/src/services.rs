//! Facts about ports and services that kernel and user space must agree on.

use crate::vocab::AttackFamily;

/// The service that answers from a UDP port and whose answers are used for reflection, or none.
///
/// Ports are IANA's, but for DHDiscover (37810), Ubiquiti discovery (10001) and Apple Remote Desktop (3283), which
/// come from published measurements of amplification.
pub const fn amplification_of_port(src_port: u16) -> Option<AttackFamily> {
    use AttackFamily as F;
    Some(match src_port {
        17 => F::QotdAmplification,
        19 => F::ChargenAmplification,
        53 => F::DnsAmplification,
        69 => F::TftpAmplification,
        111 => F::RpcbindAmplification,
        123 => F::NtpAmplification,
        137 | 138 => F::NetbiosAmplification,
        161 => F::SnmpAmplification,
        389 => F::CldapAmplification,
        500 => F::IsakmpAmplification,
        520 => F::Ripv1Amplification,
        1194 => F::OpenvpnAmplification,
        1900 => F::SsdpAmplification,
        3283 => F::ArdAmplification,
        3702 => F::WsdAmplification,
        5353 => F::MdnsAmplification,
        5683 => F::CoapAmplification,
        10001 => F::UbntAmplification,
        11211 => F::MemcachedAmplification,
        37810 => F::DvrAmplification,
        _ => return None,
    })
}

/// Whether the kernel counts UDP from `src_port` in the class `reflector`.
#[inline(always)]
pub fn is_reflector_port(src_port: u16) -> bool {
    // The compiler knows that a port has 16 bits and leaves the mask out; verifiers before 6.8 do not know it of a number
    // whose bytes were swapped, so that the compiler must not either.
    let word = core::hint::black_box(u32::from(src_port) >> 6) as usize & (REFLECTORS.len() - 1);
    REFLECTORS[word] & (1 << (src_port & 63)) != 0
}

/// A bit for each port: one load, where comparing with each service's would take a dozen branches.
static REFLECTORS: [u64; 1_024] = {
    let mut bits = [0; 1_024];
    let mut port: u16 = 1;
    while port != 0 {
        if amplification_of_port(port).is_some() {
            bits[(port >> 6) as usize] |= 1 << (port & 63);
        }
        port = port.wrapping_add(1);
    }
    bits
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_services_answer_from_their_ports() {
        assert_eq!(amplification_of_port(123), Some(AttackFamily::NtpAmplification));
        assert_eq!(amplification_of_port(27015), None, "a game server's port is no reflector by itself");
        assert!(!is_reflector_port(443));
        for port in 0..=u16::MAX {
            assert_eq!(is_reflector_port(port), amplification_of_port(port).is_some(), "{port}");
        }
    }
}
