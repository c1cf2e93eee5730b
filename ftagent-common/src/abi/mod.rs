//! Everything that crosses the kernel/user boundary: map keys, map values, ring buffer records.
//!
//! House rules: `repr(C)`, integers and byte arrays alone, padding spelled out, no `bool`, no enum, no `Option`; a
//! compile-time assertion pins every size. Any change of a layout or of a meaning raises [`ABI_VERSION`]: pinned maps
//! live in a directory of that number and are never shared between versions.

mod counters;
mod flows;
mod keyed;
pub mod prefixes;
mod reason;
mod rules;
mod settings;
mod signatures;

pub use counters::*;
pub use flows::*;
pub use keyed::*;
pub use reason::*;
pub use rules::*;
pub use settings::*;
pub use signatures::*;

/// The layout's version; the name of the pin directory below the bpffs root.
pub const ABI_VERSION: u32 = 2;

/// Asserts a size and, for user space, that the type may be read from and written to a map.
macro_rules! map_type {
    ($($name:ty = $size:literal),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: `repr(C)`, integers alone, and the size above equals the sum of the fields: no padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )+};
}
pub(crate) use map_type;

map_type!(crate::packet::Ip = 16);
