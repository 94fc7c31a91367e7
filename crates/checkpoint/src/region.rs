//! What a rank's state consists of: named regions of memory, and a typed tree for the rest.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use crate::tree::Tree;

/// Most regions a rank may have.
pub const REGIONS_MAX: usize = 65_536;

/// Everything that one rank saves: its regions, in the order of the stream, and its tree.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Layout {
    /// The regions; their bytes, one after the other, are the stream.
    pub regions: Vec<Region>,
    /// What is not a tensor.
    pub tree: Tree,
}

/// A named piece of a rank's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its name, one of a kind within the rank, as `model/layers.0.weight`.
    pub name: String,
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; empty for a scalar.
    #[serde(default)]
    pub shape: Vec<u64>,
    /// Its size.
    pub bytes: u64,
    /// Whether a save without it is one.
    #[serde(default)]
    pub need: Need,
    /// Whether each rank holds its own or all hold the same.
    #[serde(default)]
    pub spread: Spread,
}

/// Whether a save without a region is a save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It is; the region may be left out when time is short.
    BestEffort,
    /// It is not.
    #[default]
    #[serde(other)]
    Required,
}

/// Whether each rank holds its own copy of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spread {
    /// All ranks hold the same bytes, and one of them, the donor, hands them over.
    Replicated,
    /// Each rank has its own.
    #[default]
    #[serde(other)]
    Own,
}

/// Type of a region's elements, by its usual short name.
///
/// A name that this version does not know is kept as it is: bytes can be saved and given back
/// without knowing what they mean.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Dtype(Cow<'static, str>);

/// Why a layout is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Too many regions.
    #[error("state has {found} regions. At most {REGIONS_MAX} are taken.")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A region has no name.
    #[error("a region has no name")]
    Unnamed,
    /// Two regions share a name.
    #[error("region `{name}` is there twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// Its size is not what its shape says.
    #[error("region `{name}` has {bytes} bytes, its shape and type make {expected}")]
    Size {
        /// Which region.
        name: String,
        /// Its size as given.
        bytes: u64,
        /// Its size by shape and type, if they can be multiplied.
        expected: Expected,
    },
    /// All regions together are beyond counting.
    #[error("state is larger than 2^63 bytes")]
    TooLarge,
}

/// A size by shape and type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// So many bytes.
    Bytes(u64),
    /// More than can be counted.
    Overflow,
}

impl std::fmt::Display for Expected {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(formatter, "{bytes}"),
            Self::Overflow => formatter.write_str("more than 2^64"),
        }
    }
}

impl Layout {
    /// Size of the stream: that of all regions together.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().fold(0, |sum, region| sum.saturating_add(region.bytes))
    }

    /// Each region with the place in the stream where it begins.
    pub fn placed(&self) -> impl Iterator<Item = (u64, &Region)> {
        self.regions.iter().scan(0_u64, |next, region| {
            let offset = *next;
            *next = next.saturating_add(region.bytes);
            Some((offset, region))
        })
    }

    /// Checks that names are unique and sizes are what shapes and types say.
    pub fn check(&self) -> Result<(), LayoutError> {
        if self.regions.len() > REGIONS_MAX {
            return Err(LayoutError::TooMany { found: self.regions.len() });
        }
        let mut names = BTreeSet::new();
        let mut sum = 0_u64;
        for region in &self.regions {
            region.check()?;
            if !names.insert(&region.name) {
                return Err(LayoutError::Twice { name: region.name.clone() });
            }
            sum = sum.checked_add(region.bytes).ok_or(LayoutError::TooLarge)?;
        }
        if i64::try_from(sum).is_err() {
            return Err(LayoutError::TooLarge);
        }
        Ok(())
    }
}

impl Region {
    /// A required region of each rank's own, as large as its shape says.
    ///
    /// A type that is not known counts one byte an element.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[u64]) -> Self {
        let each = dtype.bytes_each().unwrap_or(1);
        let bytes = shape.iter().fold(each, |product, side| product.saturating_mul(*side));
        let (need, spread) = (Need::default(), Spread::default());
        Self { name: name.into(), dtype, shape: shape.to_vec(), bytes, need, spread }
    }

    fn check(&self) -> Result<(), LayoutError> {
        if self.name.is_empty() {
            return Err(LayoutError::Unnamed);
        }
        let Some(each) = self.dtype.bytes_each() else { return Ok(()) };
        let product = self.shape.iter().try_fold(each, |product, side| product.checked_mul(*side));
        if product == Some(self.bytes) {
            return Ok(());
        }
        let expected = product.map_or(Expected::Overflow, Expected::Bytes);
        Err(LayoutError::Size { name: self.name.clone(), bytes: self.bytes, expected })
    }
}

impl Dtype {
    /// Bytes as they are.
    pub const U8: Self = Self(Cow::Borrowed("u8"));
    /// 32-bit unsigned integers, little-endian, as all that follow.
    pub const U32: Self = Self(Cow::Borrowed("u32"));
    /// 64-bit unsigned integers.
    pub const U64: Self = Self(Cow::Borrowed("u64"));
    /// 32-bit signed integers.
    pub const I32: Self = Self(Cow::Borrowed("i32"));
    /// 64-bit signed integers.
    pub const I64: Self = Self(Cow::Borrowed("i64"));
    /// 32-bit floats.
    pub const F32: Self = Self(Cow::Borrowed("f32"));
    /// 64-bit floats.
    pub const F64: Self = Self(Cow::Borrowed("f64"));

    /// The type of this name.
    pub fn named(name: impl Into<String>) -> Self {
        Self(Cow::Owned(name.into()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Bytes of one element, if the type is known here.
    pub fn bytes_each(&self) -> Option<u64> {
        match self.name() {
            "bool" | "u8" | "i8" | "f8_e4m3" | "f8_e5m2" => Some(1),
            "u16" | "i16" | "f16" | "bf16" => Some(2),
            "u32" | "i32" | "f32" => Some(4),
            "u64" | "i64" | "f64" | "c64" => Some(8),
            "c128" => Some(16),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(regions: &[Region]) -> Layout {
        Layout { regions: regions.to_vec(), tree: Tree::Null }
    }

    #[test]
    fn a_layout_that_cannot_be_is_refused_by_name() {
        let weights = Region::new("weights", Dtype::F32, &[2, 3]);
        assert_eq!(layout(std::slice::from_ref(&weights)).check(), Ok(()));
        assert_eq!(
            layout(&[weights.clone(), weights.clone()]).check(),
            Err(LayoutError::Twice { name: "weights".into() })
        );
        let lying = Region { bytes: 25, ..weights.clone() };
        assert!(matches!(
            layout(&[lying]).check(),
            Err(LayoutError::Size { expected: Expected::Bytes(24), .. })
        ));
        let huge = Region { shape: vec![u64::MAX, 2], ..weights };
        assert!(matches!(
            layout(&[huge]).check(),
            Err(LayoutError::Size { expected: Expected::Overflow, .. })
        ));
        let raw = |name: &str| Region::new(name, Dtype::U8, &[u64::MAX / 2]);
        assert_eq!(layout(&[raw("a"), raw("b"), raw("c")]).check(), Err(LayoutError::TooLarge));
    }

    #[test]
    fn regions_lie_one_after_the_other() {
        let layout =
            layout(&[Region::new("a", Dtype::F64, &[]), Region::new("b", Dtype::U8, &[5])]);
        let places: Vec<u64> = layout.placed().map(|(offset, _)| offset).collect();
        assert_eq!((places, layout.bytes()), (vec![0, 8], 13));
    }

    #[test]
    fn what_a_newer_writer_adds_is_read_as_far_as_it_is_known() {
        let text = r#"{"name":"w","dtype":"f4","bytes":7,"need":"never-heard-of","color":1}"#;
        let region: Region = serde_json::from_str(text).unwrap();
        assert_eq!((region.dtype.name(), region.need), ("f4", Need::Required));
        assert_eq!(layout(&[region]).check(), Ok(()));
    }
}
