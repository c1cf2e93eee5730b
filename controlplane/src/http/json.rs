//! Reading JSON as the document describes it, where serde is more generous or narrower.
//!
//! ```text
//! serde_json --> Strict --> serde_path_to_error --> the type
//! ```
//! * A structure is read from an object only; serde takes a list of its fields' values too.
//! * A key that comes twice is refused in maps as well; serde does so for structures, and takes the last one for maps.
//! * An integer is an integer however it is spelled: JSON Schema has it that `5.0` is one.

use std::collections::HashSet;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{DeserializeSeed, Deserializer, Error, IntoDeserializer as _, MapAccess, SeqAccess, Visitor};

/// Up to this size every whole number has its own `f64`.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A deserializer, visitor, seed or access that reads strictly.
pub(super) struct Strict<T>(pub(super) T);

/// A visitor of a map whose keys must differ.
struct Unique<V>(V);

macro_rules! forward {
    ($($method:ident($($argument:ident: $ty:ty),*))+) => {
        $(fn $method<V: Visitor<'de>>(self, $($argument: $ty,)* visitor: V) -> Result<V::Value, Self::Error> {
            self.0.$method($($argument,)* Strict(visitor))
        })+
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    forward! {
        deserialize_bool() deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128() deserialize_f32()
        deserialize_f64() deserialize_char() deserialize_str() deserialize_string() deserialize_bytes()
        deserialize_byte_buf() deserialize_option() deserialize_unit() deserialize_unit_struct(name: &'static str)
        deserialize_newtype_struct(name: &'static str) deserialize_seq() deserialize_tuple(length: usize)
        deserialize_tuple_struct(name: &'static str, length: usize) deserialize_identifier() deserialize_ignored_any()
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(Unique(visitor))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.0.deserialize_map(Unique(visitor))
    }

    /// A map is what an object can be and a list cannot; the structure itself refuses keys that come twice.
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_map(Strict(visitor))
    }

    /// `serde_json` calls what is no word here an error of syntax, as if it had not been JSON.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.0.deserialize_any(Word(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident($ty:ty))+) => {
        $(fn $method<E: Error>(self, value: $ty) -> Result<V::Value, E> {
            self.0.$method(value)
        })+
    };
}

macro_rules! visits_all_but_maps {
    () => {
        type Value = V::Value;

        visit! {
            visit_bool(bool) visit_i64(i64) visit_i128(i128) visit_u64(u64) visit_u128(u128) visit_char(char)
            visit_str(&str) visit_string(String) visit_bytes(&[u8]) visit_byte_buf(Vec<u8>)
            visit_borrowed_str(&'de str) visit_borrowed_bytes(&'de [u8])
        }

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.expecting(f)
        }

        fn visit_f64<E: Error>(self, value: f64) -> Result<V::Value, E> {
            if value.fract() != 0.0 || value.abs() > EXACT {
                return self.0.visit_f64(value);
            }
            #[expect(clippy::cast_possible_truncation, reason = "a whole number within EXACT")]
            let whole = value as i64;
            match u64::try_from(whole) {
                Ok(whole) => self.0.visit_u64(whole),
                Err(_) => self.0.visit_i64(whole),
            }
        }

        fn visit_none<E: Error>(self) -> Result<V::Value, E> {
            self.0.visit_none()
        }

        fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
            self.0.visit_unit()
        }

        fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
            self.0.visit_some(Strict(inner))
        }

        fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
            self.0.visit_newtype_struct(Strict(inner))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<V::Value, A::Error> {
            self.0.visit_seq(Strict(list))
        }
    };
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<V> {
    visits_all_but_maps!();

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Strict(map))
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Unique<V> {
    visits_all_but_maps!();

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(UniqueKeys { map, seen: HashSet::new() })
    }
}

/// Whatever is inside is read strictly too.
impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Strict(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Strict(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Strict(seed))
    }
}

/// A visitor of an enum, all of which are words or objects with one key.
struct Word<V>(V);

impl<'de, V: Visitor<'de>> Visitor<'de> for Word<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<V::Value, E> {
        self.0.visit_enum(word.into_deserializer())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(MapAccessDeserializer::new(Strict(map)))
    }
}

/// A map that is left when a key comes a second time.
struct UniqueKeys<A> {
    map: A,
    seen: HashSet<String>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for UniqueKeys<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        let Some(key) = self.map.next_key::<String>()? else { return Ok(None) };
        if !self.seen.insert(key.clone()) {
            return Err(A::Error::custom("a key comes twice"));
        }
        let key: StringDeserializer<A::Error> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.map.next_value_seed(Strict(seed))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        inner: Option<Inner>,
        #[serde(default)]
        many: Vec<Inner>,
        #[serde(default)]
        words: BTreeMap<String, u64>,
        tagged: Option<Tagged>,
        word: Option<Word>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        One,
        Other(u8),
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        number: Option<i32>,
        rate: Option<f64>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
    enum Tagged {
        Plain {},
        Timed { secs: u32 },
    }

    fn read(text: &str) -> Result<Outer, String> {
        let mut json = serde_json::Deserializer::from_str(text);
        Outer::deserialize(Strict(&mut json)).map_err(|e| e.to_string())
    }

    #[test]
    fn structures_come_from_objects_and_keys_come_once() {
        for text in [
            r#"{}"#,
            r#"{"inner":{}}"#,
            r#"{"inner":{"number":-7,"rate":0.5},"many":[{"rate":3}]}"#,
            r#"{"words":{"a":1,"b":2},"tagged":{"type":"plain"}}"#,
            r#"{"word":"one"}"#,
            r#"{"word":{"other":1}}"#,
        ] {
            assert!(read(text).is_ok(), "{text}: {:?}", read(text));
        }
        for (text, why) in [
            (r#"[null,[],{},null]"#, "invalid type: sequence"),
            (r#"{"inner":[1,2]}"#, "invalid type: sequence"),
            (r#"{"many":[[1,2]]}"#, "invalid type: sequence"),
            (r#"{"inner":{"number":1,"number":2}}"#, "duplicate field"),
            (r#"{"words":{"a":1,"a":2}}"#, "a key comes twice"),
            (r#"{"tagged":{"type":"timed","secs":1,"secs":2}}"#, "a key comes twice"),
            (r#"{"tagged":{"type":"plain","secs":1}}"#, "unknown field"),
            (r#"{"word":7.5}"#, "invalid type: floating point `7.5`, expected enum Word"),
            (r#"{"word":["one"]}"#, "invalid type: sequence, expected enum Word"),
            (r#"{"word":"two"}"#, "unknown variant `two`"),
            (r#"{"word":{"other":1,"one":null}}"#, "trailing comma"),
            (r#"{"inner":{"number":1.5}}"#, "invalid type: floating point"),
            (r#"{"inner":{"number":1e300}}"#, "invalid type: floating point"),
            (r#"{"words":{"a":-1.0}}"#, "invalid value: integer `-1`"),
        ] {
            let refused = read(text).expect_err(text);
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }

    #[test]
    fn a_whole_number_is_one_however_it_is_spelled() {
        let read =
            read(r#"{"inner":{"number":-5.0,"rate":2.0},"words":{"a":1e3},"tagged":{"type":"timed","secs":9.0}}"#);
        let read = read.expect("whole numbers");
        assert_eq!(read.inner, Some(Inner { number: Some(-5), rate: Some(2.0) }));
        assert_eq!((read.words["a"], read.tagged), (1_000, Some(Tagged::Timed { secs: 9 })));
    }
}
