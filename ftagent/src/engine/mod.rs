//! The engine: everything the agent decides, as a pure function of state, input and `now`.
//!
//! Called by the daemon's one loop; knows no clock, task, socket or file. Rates become baselines, an excess becomes
//! an incident, an incident becomes rules, and the rules leave when the attack does.
//!
//! ```text
//! Input -> sample -> baseline -> detect -> classify -> incident -> policy -> guard -> rules -> Command
//! ```

mod input;
mod rules;
mod settings;

pub use input::*;
pub use rules::*;
pub use settings::*;
