//! The configuration of nodes, as many of them share it.

use std::sync::{Arc, OnceLock};

use ftagent_common::api::NodeConfig;

/// What nodes of one workspace should do: the same for each that no rule or entry names, apart from the version.
#[derive(Debug, Default)]
pub struct SharedConfig {
    /// Its version means nothing.
    config: NodeConfig,
    /// What follows the version in JSON, written once for all who share it.
    rest: OnceLock<String>,
}

impl SharedConfig {
    pub fn new(config: NodeConfig) -> Self {
        Self { config: NodeConfig { version: 0, ..config }, rest: OnceLock::new() }
    }

    fn rest(&self) -> &str {
        self.rest.get_or_init(|| {
            let text = serde_json::to_string(&self.config).expect("wire types have string keys and always serialise");
            let rest = text.strip_prefix(r#"{"version":0,"#).expect("the version is the first field");
            rest.to_owned()
        })
    }
}

/// The configuration of one node.
#[derive(Clone, Debug)]
pub struct VersionedConfig {
    pub version: u64,
    pub shared: Arc<SharedConfig>,
}

impl VersionedConfig {
    /// As the wire has it.
    pub fn to_wire(&self) -> NodeConfig {
        NodeConfig { version: self.version, ..self.shared.config.clone() }
    }

    /// The stream's line: `StreamMessage::Config` in JSON, with its line feed.
    pub fn line(&self) -> Vec<u8> {
        let (version, rest) = (self.version, self.shared.rest());
        format!("{{\"type\":\"config\",\"config\":{{\"version\":{version},{rest}}}\n").into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::{DetectionOverrides, StreamMessage};

    use super::*;

    #[test]
    fn the_line_is_the_message() {
        let detection = DetectionOverrides { multiplier: Some(4.0), ..DetectionOverrides::default() };
        let shared = Arc::new(SharedConfig::new(NodeConfig { version: 9, detection, ..NodeConfig::default() }));
        for version in [0, 1, u64::MAX] {
            let config = VersionedConfig { version, shared: shared.clone() };
            let mut expected = serde_json::to_vec(&StreamMessage::Config { config: config.to_wire() }).expect("JSON");
            expected.push(b'\n');
            assert_eq!(String::from_utf8(config.line()), String::from_utf8(expected));
        }
    }
}
