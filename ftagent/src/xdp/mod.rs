//! The datapath from user space: the only place that knows aya and map layouts.
//!
//! * [`pins`] and [`program`]: where things live, loading and attaching; [`tc`]: as a classic filter; [`variant`]: for
//!   frames in one buffer or in several; `relief`: what replaces what, and in which order.
//! * [`kernel`] and [`adapt`]: what this kernel has, and what is left out without it.
//! * `undisturbed`: why signals wait while a program is loaded.
//! * [`bucket`]: the rate of an interface, where the kernel has no policer.
//! * [`egress`] and [`gate`]: what is learnt from what leaves, and what is dropped for it.
//! * [`table`] and [`maps`]: the maps, typed.
//! * [`counters`] and [`samples`]: what the kernel saw, as the engine's inputs.
//! * [`prefixes`]: large lists as tables of their own.
//! * [`compile`]: rules as map entries; a pure function.

pub mod adapt;
pub mod bucket;
pub mod compile;
pub mod counters;
pub mod egress;
mod families;
pub mod gate;
pub mod info;
pub mod kernel;
pub mod maps;
pub mod near;
mod nested;
pub mod pins;
pub mod places;
pub mod prefixes;
pub mod program;
mod relief;
pub mod rulebook;
pub mod samples;
pub mod table;
pub mod tc;
mod undisturbed;
pub mod variant;
pub mod writer;
