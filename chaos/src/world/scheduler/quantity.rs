//! Amounts of resources, as Kubernetes writes them.

use std::collections::BTreeMap;

use serde_json::Value;

/// Amounts by resource name, in thousandths.
pub type Amounts = BTreeMap<String, i128>;

/// Reads a quantity, in thousandths: `500m`, `4`, `16Gi`.
pub fn parse(quantity: &Value) -> Option<i128> {
    if let Some(number) = quantity.as_i64() {
        return Some(i128::from(number) * 1000);
    }
    let text = quantity.as_str()?;
    let split = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let padded: String = fraction.chars().chain("000".chars()).take(3).collect();
    let thousandths = whole.parse::<i128>().ok()? * 1000 + padded.parse::<i128>().ok()?;
    let kilo = |power| 1000_i128.pow(power);
    let kibi = |power| 1024_i128.pow(power);
    let factor = match unit {
        "m" => return Some(thousandths / 1000),
        "" => 1,
        "k" => kilo(1),
        "M" => kilo(2),
        "G" => kilo(3),
        "T" => kilo(4),
        "Ki" => kibi(1),
        "Mi" => kibi(2),
        "Gi" => kibi(3),
        "Ti" => kibi(4),
        _ => return None,
    };
    Some(thousandths * factor)
}

/// The amounts of a map of quantities; what is no quantity counts as nothing.
pub fn amounts(map: Option<&Value>) -> Amounts {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), parse(value)?))).collect()
}

/// Adds `more` to `sum`.
pub fn add(sum: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *sum.entry(name.clone()).or_default() += amount;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn quantities_are_read_in_thousandths() {
        let cases = [
            (json!("500m"), Some(500)),
            (json!(2), Some(2000)),
            (json!("1.5"), Some(1500)),
            (json!("2Ki"), Some(2_048_000)),
            (json!("1G"), Some(1_000_000_000_000)),
            (json!("many"), None),
        ];
        for (written, expected) in cases {
            assert_eq!(parse(&written), expected, "{written}");
        }
    }
}
