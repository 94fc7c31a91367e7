//! Karpenter's NodePools: their limits, and what they ask of every node.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::adapters::cluster::Cluster;
use crate::adapters::cluster::ClusterError;
use crate::adapters::cluster::objects::Kind;
use crate::adapters::cluster::objects::Object;

/// What we read of a NodePool.
#[derive(Clone, Debug)]
pub struct Pools;

/// A pool's wanted state.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PoolSpec {
    /// What all its nodes together may have, as quantities; empty for no limit.
    #[serde(default)]
    pub limits: BTreeMap<String, Value>,
    /// What each of its claims is made from.
    #[serde(default)]
    pub template: Value,
}

/// A pool's actual state.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PoolStatus {
    /// What all its nodes together have.
    #[serde(default)]
    pub resources: BTreeMap<String, Value>,
}

impl Kind for Pools {
    type Spec = PoolSpec;
    type Status = PoolStatus;
    type Scope = kube::core::ClusterResourceScope;
    const KIND: &'static str = "NodePool";
    const GROUP: &'static str = "karpenter.sh";
    const VERSION: &'static str = "v1";
    const PLURAL: &'static str = "nodepools";
}

/// Reads one pool from the server itself.
pub async fn read(
    cluster: &Cluster,
    name: &str,
    bound: Duration,
) -> Result<Option<Object<Pools>>, ClusterError> {
    cluster.read(&format!("/apis/karpenter.sh/v1/nodepools/{name}"), bound).await
}

/// A Kubernetes quantity in thousandths of its unit; `None` if it is none.
///
/// Source: Kubernetes API, "Quantity".
pub fn milli(quantity: &Value) -> Option<u128> {
    let text = match quantity {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (digits, unit) = text.split_at(end.unwrap_or(text.len()));
    let thousandths: u128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: u128 = whole.parse().ok()?;
    let mut sum = whole.checked_mul(thousandths)?;
    let mut place = thousandths;
    for digit in part.chars() {
        place /= 10;
        sum += u128::from(digit.to_digit(10)?) * place;
    }
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_with_their_units() {
        let rows = [
            (json!("8"), Some(8000)),
            (json!(8), Some(8000)),
            (json!("500m"), Some(500)),
            (json!("1.5"), Some(1500)),
            (json!("2Gi"), Some(2_147_483_648_000)),
            (json!("1k"), Some(1_000_000)),
            (json!("many"), None),
            (json!(null), None),
        ];
        for (quantity, expected) in rows {
            assert_eq!(milli(&quantity), expected, "{quantity}");
        }
    }
}
