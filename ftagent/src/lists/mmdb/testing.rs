//! Writes small MaxMind databases for tests (format version 2.0, records of 32 bits).

use std::net::IpAddr;

use ipnet::IpNet;

/// What a record can hold here.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::lists) enum Value {
    Text(String),
    Number(u32),
    Short(u16),
    Long(u64),
    NoElements,
    Map(Vec<(String, Value)>),
}

impl Value {
    pub(in crate::lists) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(in crate::lists) fn map<const N: usize>(entries: [(&str, Value); N]) -> Self {
        Self::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// The control byte has the type in its upper three bits and a size below 29 in the others.
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) => {
                assert!(text.len() < 29, "a short text");
                out.push(2 << 5 | text.len() as u8);
                out.extend(text.as_bytes());
            }
            Self::Number(number) => {
                out.push(6 << 5 | 4);
                out.extend(number.to_be_bytes());
            }
            Self::Short(number) => {
                out.push(5 << 5 | 2);
                out.extend(number.to_be_bytes());
            }
            // Extended types: the number follows, less seven.
            Self::Long(number) => {
                out.extend([8, 9 - 7]);
                out.extend(number.to_be_bytes());
            }
            Self::NoElements => out.extend([0, 11 - 7]),
            Self::Map(entries) => {
                out.push(7 << 5 | entries.len() as u8);
                for (key, value) in entries {
                    Self::text(key).write(out);
                    value.write(out);
                }
            }
        }
    }
}

/// Where a branch of the tree leads.
#[derive(Clone, Copy)]
enum Branch {
    Nothing,
    Node(u32),
    /// Offset in the data section.
    Data(u32),
}

/// A database that is being written.
pub(in crate::lists) struct Database {
    kind: String,
    version: u16,
    nodes: Vec<[Branch; 2]>,
    data: Vec<u8>,
}

impl Database {
    pub(in crate::lists) fn v4(kind: &str) -> Self {
        Self { kind: kind.to_owned(), version: 4, nodes: vec![[Branch::Nothing; 2]], data: Vec::new() }
    }

    pub(in crate::lists) fn v6(kind: &str) -> Self {
        Self { version: 6, ..Self::v4(kind) }
    }

    /// Both branches of each of `count` nodes lead to the next one.
    pub(in crate::lists) fn braid(count: u32) -> Vec<u8> {
        let mut database = Self::v6("Braid");
        database.nodes = (1..count).map(|next| [Branch::Node(next); 2]).collect();
        database.nodes.push([Branch::Nothing; 2]);
        database.bytes()
    }

    pub(in crate::lists) fn with(mut self, net: &str, value: &Value) -> Self {
        let net: IpNet = net.parse().expect(net);
        let (bits, length) = match (net.addr(), self.version) {
            (IpAddr::V4(ip), 4) => (u128::from(u32::from(ip)) << 96, net.prefix_len()),
            (IpAddr::V4(ip), _) => (u128::from(u32::from(ip)), 96 + net.prefix_len()),
            (IpAddr::V6(ip), _) => (u128::from(ip), net.prefix_len()),
        };
        let data = Branch::Data(self.data.len() as u32);
        value.write(&mut self.data);
        let mut node = 0;
        for depth in 0..length {
            let side = (bits >> (127 - depth) & 1) as usize;
            if depth + 1 == length {
                self.nodes[node][side] = data;
                break;
            }
            node = match self.nodes[node][side] {
                Branch::Node(next) => next as usize,
                _ => {
                    self.nodes.push([Branch::Nothing; 2]);
                    let next = self.nodes.len() - 1;
                    self.nodes[node][side] = Branch::Node(next as u32);
                    next
                }
            };
        }
        self
    }

    pub(in crate::lists) fn bytes(&self) -> Vec<u8> {
        let count = self.nodes.len() as u32;
        let mut out = Vec::new();
        for branch in self.nodes.iter().flatten() {
            let record = match branch {
                Branch::Nothing => count,
                Branch::Node(node) => *node,
                Branch::Data(offset) => count + 16 + offset,
            };
            out.extend(record.to_be_bytes());
        }
        out.extend([0; 16]);
        out.extend(&self.data);
        out.extend(b"\xab\xcd\xefMaxMind.com");
        Value::map([
            ("binary_format_major_version", Value::Short(2)),
            ("binary_format_minor_version", Value::Short(0)),
            ("build_epoch", Value::Long(1_700_000_000)),
            ("ip_version", Value::Short(self.version)),
            ("node_count", Value::Number(count)),
            ("record_size", Value::Short(32)),
            ("database_type", Value::text(&self.kind)),
            ("languages", Value::NoElements),
            ("description", Value::map([])),
        ])
        .write(&mut out);
        out
    }
}
