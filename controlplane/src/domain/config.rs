//! The configuration of nodes, as many of them share it.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use ftagent_common::api::NodeConfig;

/// What nodes of one workspace should do: the same for each that no rule or entry names, apart from the version.
#[derive(Debug, Default)]
pub struct SharedConfig {
    /// Its version means nothing.
    config: NodeConfig,
    /// What follows the version in the line of a stream, written once for all who share it.
    rest: OnceLock<Bytes>,
}

impl SharedConfig {
    pub fn new(config: NodeConfig) -> Self {
        Self { config: NodeConfig { version: 0, ..config }, rest: OnceLock::new() }
    }

    fn rest(&self) -> Bytes {
        let write = || {
            let mut text =
                serde_json::to_string(&self.config).expect("wire types have string keys and always serialise");
            text.push_str("}\n");
            let version = r#"{"version":0,"#;
            assert!(text.starts_with(version), "the version is the first field");
            Bytes::from(text).slice(version.len()..)
        };
        self.rest.get_or_init(write).clone()
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

    /// The stream's line, in two parts: `StreamMessage::Config` in JSON, with its line feed. A thousand streams have one
    /// copy of the second, which can be megabytes.
    pub fn line(&self) -> [Bytes; 2] {
        let begin = format!("{{\"type\":\"config\",\"config\":{{\"version\":{},", self.version);
        [begin.into(), self.shared.rest()]
    }

    /// The answer to a node that asks, in two parts as above: [`Self::to_wire`] in JSON behind `"ok": true`.
    pub fn answer(&self) -> [Bytes; 2] {
        let rest = self.shared.rest();
        // Without the end of the line and of the message in it.
        let rest = rest.slice(..rest.len() - "}\n".len());
        [format!("{{\"ok\":true,\"version\":{},", self.version).into(), rest]
    }
}

#[cfg(test)]
mod tests {
    use ftagent_common::api::{DetectionOverrides, StreamMessage};

    use super::*;

    #[test]
    fn line_and_answer_are_what_the_types_are() {
        let detection = DetectionOverrides { multiplier: Some(4.0), ..DetectionOverrides::default() };
        let shared = Arc::new(SharedConfig::new(NodeConfig { version: 9, detection, ..NodeConfig::default() }));
        for version in [0, 1, u64::MAX] {
            let config = VersionedConfig { version, shared: shared.clone() };
            let mut expected = serde_json::to_vec(&StreamMessage::Config { config: config.to_wire() }).expect("JSON");
            expected.push(b'\n');
            assert_eq!(String::from_utf8(config.line().concat()), String::from_utf8(expected));
            let answer: serde_json::Value = serde_json::from_slice(&config.answer().concat()).expect("JSON");
            let mut expected = serde_json::to_value(config.to_wire()).expect("JSON");
            expected["ok"] = true.into();
            assert_eq!(answer, expected);
        }
    }
}
