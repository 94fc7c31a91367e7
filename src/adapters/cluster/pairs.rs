//! A few names with values, in no more room than they need.
//!
//! A map of the standard library makes room for eleven at once: for the annotations and the
//! resources of a pod about 900 bytes, and there are fifty thousand pods.

use std::borrow::Borrow;
use std::collections::BTreeMap;

/// Names with values, sorted by name; each name once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pairs<V>(Box<[(Box<str>, V)]>);

impl<V> Pairs<V> {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&V> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| value)
    }

    /// All names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }
}

impl Pairs<Box<str>> {
    /// The same as a map, for who reads it whole.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    }
}

impl<K: Borrow<str>, V> FromIterator<(K, V)> for Pairs<V> {
    fn from_iter<T: IntoIterator<Item = (K, V)>>(pairs: T) -> Self {
        let pairs = pairs.into_iter().map(|(name, value)| (Box::from(name.borrow()), value));
        // A map sorts, and keeps the last of each name.
        let sorted: BTreeMap<Box<str>, V> = pairs.collect();
        Self(sorted.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_whatever_the_order_was() {
        let pairs: Pairs<u64> = [("b", 2), ("a", 1), ("c", 3)].into_iter().collect();
        assert_eq!(pairs.get("c"), Some(&3));
        assert_eq!(pairs.get("d"), None);
        assert_eq!(pairs.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
