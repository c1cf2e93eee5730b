//! `tc_police_interface`.

use serde::{Deserialize, Serialize};

use super::names::InterfaceName;
use super::{Ground, Parameters, within};
use crate::api::ParameterError;
use crate::api::preview::{Preview, argv};

/// The place of our filter among those of the interface: behind those that people number, which begin at 1.
const PREFERENCE: &str = "49187";

/// Drops what an interface receives above a rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TcPoliceInterface {
    /// 1 to 15 characters.
    #[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[A-Za-z][A-Za-z0-9_.-]{0,14}$"))]
    pub interface: InterfaceName,
    /// Bits per second, 8,000 to 1,000,000,000,000.
    #[cfg_attr(feature = "openapi", schema(minimum = 8_000, maximum = 1_000_000_000_000_u64))]
    pub bps: u64,
    /// Bytes that may come at once, 2,048 to 4,294,967,295; what comes in ten milliseconds by default.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(minimum = 2_048, maximum = 4_294_967_295_u64))]
    pub burst_bytes: Option<u32>,
}

impl TcPoliceInterface {
    /// A hundredth of a second's bytes, within the bounds; less than some packets would let nothing through.
    fn burst(&self) -> u64 {
        self.burst_bytes.map_or_else(|| (self.bps / 800).clamp(65_536, u64::from(u32::MAX)), u64::from)
    }
}

impl Parameters for TcPoliceInterface {
    fn kind(&self) -> &'static str {
        "tc_police_interface"
    }

    fn tool(&self) -> &'static str {
        "tc"
    }

    fn check(&self) -> Result<(), ParameterError> {
        within("bps", self.bps, 8_000, 1_000_000_000_000)?;
        within("burst_bytes", self.burst_bytes.map_or(2_048, u64::from), 2_048, u32::MAX.into())
    }

    fn show(&self, _: &Ground<'_>, shown: &mut Preview) {
        let interface = self.interface.as_str();
        let make = argv(&["tc", "qdisc", "add", "dev", interface, "clsact"]);
        let object = format!("qdisc clsact of {interface}, made unless it is there");
        shown.step(make, argv(&["tc", "qdisc", "del", "dev", interface, "clsact"]), object);
        shown.unless.push(argv(&["tc", "filter", "show", "dev", interface, "ingress"]));
        let (rate, burst) = (format!("{}bit", self.bps), self.burst().to_string());
        let filter = ["filter", "add", "dev", interface, "ingress", "pref", PREFERENCE, "protocol", "all", "matchall"];
        let police = ["action", "police", "rate", &rate, "burst", &burst, "conform-exceed", "drop"];
        let run = argv(&[["tc"].as_slice(), &filter, &police].concat());
        let undo = argv(&["tc", "filter", "del", "dev", interface, "ingress", "pref", PREFERENCE]);
        shown.step(
            run,
            undo,
            format!("ingress filter {PREFERENCE} of {interface}: police {rate}, burst {burst} bytes"),
        );
        shown.unless.push(Vec::new());
        shown.warnings.push(format!(
            "everything that {interface} receives shares the rate: wanted traffic is dropped with the rest, sessions of \
             operators and the control plane's connection too"
        ));
        shown.warnings.push(
            "shown for a kernel that has clsact and police; a node whose kernel has not must do it another way, and \
             only the node can tell"
                .to_owned(),
        );
    }
}
