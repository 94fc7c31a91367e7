//! The typed tree: what a rank saves beside its tensors, without pickle.

use serde::Deserialize;
use serde::Serialize;

/// A value that is not a tensor, or a structure of such values.
///
/// As JSON, each is an object of one key that names its type (`{"int": 3}`), and `"null"`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tree {
    /// Nothing.
    #[default]
    Null,
    /// True or false.
    Bool(bool),
    /// A whole number of 64 bits.
    Int(i64),
    /// A whole number that needs more, in decimal.
    Big(String),
    /// A float, kept exactly; NaN is one NaN.
    Float(#[serde(with = "exact")] f64),
    /// Text.
    Str(String),
    /// Bytes, in base64.
    Bytes(#[serde(with = "bytes")] Vec<u8>),
    /// Values in order.
    List(Vec<Tree>),
    /// Keys and values in the order in which they were put in. Keys are scalars.
    Map(Vec<(Tree, Tree)>),
    /// A tensor: the region of this name.
    Region(String),
    /// Something that a newer writer knows. Kept as it is, and never given to a program.
    #[serde(untagged)]
    Unknown(serde_json::Value),
}

impl Tree {
    /// A map with text for keys.
    pub fn map<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Map(entries.map(|(key, value)| (Self::Str(key.to_owned()), value)).into())
    }

    /// The value of a key, if this is a map that has it.
    pub fn entry(&self, key: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        let matches = |name: &Self| matches!(name, Self::Str(name) if name == key);
        entries.iter().find(|(name, _)| matches(name)).map(|(_, value)| value)
    }

    /// The path of the first thing in it that this version does not know.
    pub fn unknown(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some(String::new()),
            Self::List(values) => values
                .iter()
                .enumerate()
                .find_map(|(place, value)| Some(format!("/{place}{}", value.unknown()?))),
            Self::Map(entries) => entries
                .iter()
                .enumerate()
                .find_map(|(place, (key, value))| unknown_entry(place, key, value)),
            Self::Null
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Big(_)
            | Self::Float(_)
            | Self::Str(_)
            | Self::Bytes(_)
            | Self::Region(_) => None,
        }
    }
}

fn unknown_entry(place: usize, key: &Tree, value: &Tree) -> Option<String> {
    if key.unknown().is_some() {
        return Some(format!("/{place}"));
    }
    let rest = value.unknown()?;
    match key {
        Tree::Str(name) => Some(format!("/{name}{rest}")),
        Tree::Int(number) => Some(format!("/{number}{rest}")),
        Tree::Null
        | Tree::Bool(_)
        | Tree::Big(_)
        | Tree::Float(_)
        | Tree::Bytes(_)
        | Tree::List(_)
        | Tree::Map(_)
        | Tree::Region(_)
        | Tree::Unknown(_) => Some(format!("/{place}{rest}")),
    }
}

/// Floats as text: Rust and Python both print the shortest text that reads back the same.
mod exact {
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;
    use serde::de::Error;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    pub(super) fn serialize<S: Serializer>(float: &f64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(float)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::Deserialize;
    use serde::Deserializer;
    use serde::Serializer;
    use serde::de::Error;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(tree: &Tree, text: &str) {
        assert_eq!(serde_json::to_string(tree).unwrap(), text);
        assert_eq!(&serde_json::from_str::<Tree>(text).unwrap(), tree);
    }

    #[test]
    fn each_value_is_written_so() {
        check(&Tree::Null, r#""null""#);
        check(&Tree::Bool(true), r#"{"bool":true}"#);
        check(&Tree::Int(-3), r#"{"int":-3}"#);
        check(
            &Tree::Big("340282366920938463463374607431768211455".into()),
            r#"{"big":"340282366920938463463374607431768211455"}"#,
        );
        check(&Tree::Float(0.1), r#"{"float":"0.1"}"#);
        check(&Tree::Float(-0.0), r#"{"float":"-0"}"#);
        check(&Tree::Float(f64::INFINITY), r#"{"float":"inf"}"#);
        check(&Tree::Str("a\"b".into()), r#"{"str":"a\"b"}"#);
        check(&Tree::Bytes(vec![0, 255]), r#"{"bytes":"AP8="}"#);
        check(&Tree::List(vec![Tree::Int(1), Tree::Null]), r#"{"list":[{"int":1},"null"]}"#);
        check(
            &Tree::Map(vec![(Tree::Int(0), Tree::Region("m/0".into()))]),
            r#"{"map":[[{"int":0},{"region":"m/0"}]]}"#,
        );
    }

    #[test]
    fn what_is_not_known_is_kept_and_named() {
        let text = r#"{"map":[[{"str":"loader"},{"list":["null",{"tensor2":[1]}]}]]}"#;
        let tree: Tree = serde_json::from_str(text).unwrap();
        assert_eq!(tree.unknown().as_deref(), Some("/loader/1"));
        assert_eq!(serde_json::to_string(&tree).unwrap(), text);
    }

    #[test]
    fn a_tree_too_deep_is_refused() {
        let deep = format!("{}\"null\"{}", r#"{"list":["#.repeat(500), "]}".repeat(500));
        assert!(serde_json::from_str::<Tree>(&deep).is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_float_is_kept_to_the_bit(bits: u64) {
            let float = f64::from_bits(bits);
            let text = serde_json::to_string(&Tree::Float(float)).unwrap();
            let Tree::Float(read) = serde_json::from_str(&text).unwrap() else { panic!() };
            proptest::prop_assert!(read.to_bits() == bits || (read.is_nan() && float.is_nan()));
        }
    }
}
