//! nf_tables' netlink attributes, written and read.
//!
//! By hand because half of the expressions used (limit, counter, exthdr, byteorder) have no types in the netlink
//! crates and would be raw attributes there too. Layouts and numbers are those of `linux/netfilter/nf_tables.h`; every
//! number is big-endian, unlike in the rest of netlink.

/// Message types of the nf_tables subsystem.
pub(super) mod message {
    const NFTABLES: u16 = 10 << 8;
    pub(crate) const NEW_TABLE: u16 = NFTABLES;
    pub(crate) const GET_TABLE: u16 = NFTABLES | 1;
    pub(crate) const DEL_TABLE: u16 = NFTABLES | 2;
    pub(crate) const NEW_CHAIN: u16 = NFTABLES | 3;
    pub(crate) const GET_CHAIN: u16 = NFTABLES | 4;
    pub(crate) const NEW_RULE: u16 = NFTABLES | 6;
    pub(crate) const GET_RULE: u16 = NFTABLES | 7;
    pub(crate) const DEL_RULE: u16 = NFTABLES | 8;
    pub(crate) const NEW_SET: u16 = NFTABLES | 9;
    pub(crate) const GET_SET: u16 = NFTABLES | 10;
    pub(crate) const DEL_SET: u16 = NFTABLES | 11;
    pub(crate) const NEW_ELEMENT: u16 = NFTABLES | 12;
    pub(crate) const GET_ELEMENT: u16 = NFTABLES | 13;
    pub(crate) const DEL_ELEMENT: u16 = NFTABLES | 14;
}

/// Attribute numbers, by what carries them.
pub(super) mod attribute {
    pub(crate) const TABLE_NAME: u16 = 1;
    pub(crate) const CHAIN_TABLE: u16 = 1;
    pub(crate) const CHAIN_NAME: u16 = 3;
    pub(crate) const CHAIN_HOOK: u16 = 4;
    pub(crate) const CHAIN_POLICY: u16 = 5;
    pub(crate) const CHAIN_TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    pub(crate) const HOOK_DEVICES: u16 = 4;
    pub(crate) const DEVICE_NAME: u16 = 1;
    pub(crate) const RULE_TABLE: u16 = 1;
    pub(crate) const RULE_CHAIN: u16 = 2;
    pub(crate) const RULE_HANDLE: u16 = 3;
    pub(crate) const RULE_EXPRESSIONS: u16 = 4;
    pub(crate) const RULE_USERDATA: u16 = 7;
    pub(crate) const SET_TABLE: u16 = 1;
    pub(crate) const SET_NAME: u16 = 2;
    pub(crate) const SET_FLAGS: u16 = 3;
    pub(crate) const SET_KEY_TYPE: u16 = 4;
    pub(crate) const SET_KEY_LEN: u16 = 5;
    pub(crate) const SET_ID: u16 = 10;
    pub(crate) const ELEMENTS_TABLE: u16 = 1;
    pub(crate) const ELEMENTS_SET: u16 = 2;
    pub(crate) const ELEMENTS_LIST: u16 = 3;
    pub(crate) const ELEMENT_KEY: u16 = 1;
    pub(crate) const ELEMENT_TIMEOUT: u16 = 4;
    pub(crate) const ELEMENT_EXPIRATION: u16 = 5;
    pub(crate) const ELEMENT_USERDATA: u16 = 6;
    pub(crate) const LIST_ELEMENT: u16 = 1;
    pub(crate) const DATA_VALUE: u16 = 1;
}

const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = (1 << 14) - 1;

/// A list of attributes under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::enforce) struct Attributes {
    pub(in crate::enforce) bytes: Vec<u8>,
}

impl Attributes {
    /// Appends an attribute; `value` may have at most 65,531 bytes.
    pub(in crate::enforce) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(value.len() + 4).expect("attributes are built in chunks below 64 KiB");
        self.bytes.extend(len.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    pub(in crate::enforce) fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(super) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(super) fn u64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(in crate::enforce) fn nested(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NESTED, &inner.bytes)
    }

    /// A value in nf_tables' wrapping of register contents.
    pub(super) fn data(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, &Self::default().bytes(attribute::DATA_VALUE, value))
    }
}

/// The attributes in `bytes`; stops at the first that makes no sense.
pub(in crate::enforce) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (bytes.get(..2)?, bytes.get(2..4)?);
        let len = usize::from(u16::from_ne_bytes(len.try_into().ok()?));
        let kind = u16::from_ne_bytes(kind.try_into().ok()?) & TYPE_MASK;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub(in crate::enforce) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

pub(super) fn find_text(bytes: &[u8], kind: u16) -> Option<&str> {
    std::str::from_utf8(find(bytes, kind)?).ok().map(|text| text.trim_end_matches('\0'))
}

pub(super) fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(find(bytes, kind)?.try_into().ok()?))
}

pub(super) fn find_u64(bytes: &[u8], kind: u16) -> Option<u64> {
    Some(u64::from_be_bytes(find(bytes, kind)?.try_into().ok()?))
}

/// What we write into an object's user data: a comment that nft shows, and what tells us whether it is still right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Behind `ftagent:` in the comment.
    pub(super) name: String,
    /// Checksum of the object's content.
    pub(super) checksum: u32,
    /// Seconds of the wall clock at which the object stops by itself; 0: never.
    pub(super) until_secs: u64,
}

/// nft's own type for a comment, in rules and in set elements; others it skips.
const COMMENT: u8 = 0;
const CHECKSUM: u8 = 0x71;
const UNTIL: u8 = 0x72;
const PREFIX: &str = "ftagent:";

impl Mark {
    pub(super) fn encode(&self) -> Vec<u8> {
        let comment = format!("{PREFIX}{}\0", self.name);
        let mut out = Vec::with_capacity(comment.len() + 20);
        for (kind, value) in [
            (COMMENT, comment.as_bytes()),
            (CHECKSUM, &self.checksum.to_be_bytes()),
            (UNTIL, &self.until_secs.to_be_bytes()),
        ] {
            out.push(kind);
            out.push(u8::try_from(value.len()).expect("names are short"));
            out.extend(value);
        }
        out
    }

    /// Nothing if the user data is not ours.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut mark = Self::default();
        let mut ours = false;
        while let [kind, len, rest @ ..] = bytes {
            let value = rest.get(..usize::from(*len))?;
            match *kind {
                COMMENT => {
                    let text = std::str::from_utf8(value).ok()?.trim_end_matches('\0');
                    mark.name = text.strip_prefix(PREFIX)?.into();
                    ours = true;
                }
                CHECKSUM => mark.checksum = u32::from_be_bytes(value.try_into().ok()?),
                UNTIL => mark.until_secs = u64::from_be_bytes(value.try_into().ok()?),
                _ => {}
            }
            bytes = &rest[usize::from(*len)..];
        }
        ours.then_some(mark)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_aligned_and_read_back() {
        let written = Attributes::default().text(1, "inet").u8(2, 7).u32(3, 0x0102_0304).data(4, &[9; 16]);
        assert_eq!(written.bytes.len() % 4, 0);
        assert_eq!(find_text(&written.bytes, 1), Some("inet"));
        assert_eq!(find(&written.bytes, 2), Some(&[7][..]));
        assert_eq!(find_u32(&written.bytes, 3), Some(0x0102_0304));
        assert_eq!(find(find(&written.bytes, 4).unwrap(), attribute::DATA_VALUE), Some(&[9; 16][..]));
        assert_eq!(find(&written.bytes, 5), None);
    }

    #[test]
    fn marks_of_others_are_not_ours() {
        let mark = Mark { name: "17".into(), checksum: 5, until_secs: 6 };
        assert_eq!(Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(Mark::decode(b"\x00\x04ssh\0"), None);
        assert_eq!(Mark::decode(b""), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_readers_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(attributes(&bytes).count() <= bytes.len());
            drop(Mark::decode(&bytes));
        }
    }
}
