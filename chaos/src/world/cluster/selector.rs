//! Label and field selectors, as queries write them and as objects hold them.

use serde_json::Value;

use crate::world::cluster::object::entries;
use crate::world::cluster::object::is_true;
use crate::world::cluster::object::items;
use crate::world::cluster::object::label;
use crate::world::cluster::object::text;
use crate::world::cluster::refusal::Refusal;
use crate::world::cluster::resource::EVENT;
use crate::world::cluster::resource::EVENTS_EVENT;
use crate::world::cluster::resource::INTERRUPTION;
use crate::world::cluster::resource::NODE;
use crate::world::cluster::resource::POD;
use crate::world::cluster::resource::Resource;

/// What a list or a watch wants to see.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Clone, Debug)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// Parses `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    /// 400 where the text is no selector, or the kind has no such selectable field.
    pub fn parse(resource: Resource, labels: &str, fields: &str) -> Result<Self, Refusal> {
        let labels = split(labels).into_iter().map(requirement).collect::<Result<Vec<_>, _>>()?;
        let fields = split(fields).into_iter().map(requirement).collect::<Result<Vec<_>, _>>()?;
        for field in &fields {
            if field.values.is_empty() {
                let why = format!("invalid selector: '{}'; can't understand it", field.key);
                return Err(Refusal::bad_request(why));
            }
            if !is_selectable(resource, &field.key) {
                let why = format!("field label not supported: {}", field.key);
                return Err(Refusal::bad_request(why));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether an object is one of those wanted.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = self.labels.iter().all(|wanted| {
            let map = object.pointer("/metadata/labels");
            let value = map.and_then(|map| map.get(&wanted.key)).and_then(Value::as_str);
            wanted.allows(value)
        });
        labels && self.fields.iter().all(|wanted| wanted.allows(Some(&field(object, &wanted.key))))
    }
}

impl Requirement {
    fn allows(&self, value: Option<&str>) -> bool {
        let listed = value.is_some_and(|value| self.values.iter().any(|known| known == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

fn is_selectable(resource: Resource, key: &str) -> bool {
    let of_kind: &[&str] = match resource {
        POD => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
        ],
        NODE => &["spec.unschedulable"],
        INTERRUPTION => &["spec.node"],
        EVENT => &["involvedObject.kind", "involvedObject.name", "involvedObject.uid", "reason"],
        EVENTS_EVENT => &["regarding.kind", "regarding.name", "regarding.uid", "reason"],
        _ => &[],
    };
    key == "metadata.name" || key == "metadata.namespace" || of_kind.contains(&key)
}

fn field(object: &Value, key: &str) -> String {
    let path = format!("/{}", key.replace('.', "/"));
    if key == "spec.unschedulable" {
        return is_true(object, &path).to_string();
    }
    text(object, &path).to_owned()
}

/// Splits at commas that are not inside parentheses.
fn split(query: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (index, letter) in query.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(query[start..index].trim());
                start = index + 1;
            }
            _ => (),
        }
    }
    parts.push(query[start..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

fn requirement(part: &str) -> Result<Requirement, Refusal> {
    let one = |key: &str, operator, value: &str| Requirement {
        key: key.trim().to_owned(),
        operator,
        values: vec![value.trim().to_owned()],
    };
    let listed = |separator: &str, operator| {
        let (key, values) = part.split_once(separator)?;
        let values = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        Some(Requirement { key: key.trim().to_owned(), operator, values })
    };
    if let Some(found) = listed(" notin ", Operator::NotIn).or_else(|| listed(" in ", Operator::In))
    {
        return Ok(found);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(one(key, Operator::NotIn, value));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        if value.contains(['(', ')']) {
            return Err(Refusal::bad_request(format!("unable to parse requirement: {part}")));
        }
        return Ok(one(key, Operator::In, value));
    }
    if part.contains(['(', ')', ' ']) {
        return Err(Refusal::bad_request(format!("unable to parse requirement: {part}")));
    }
    let bare = |key: &str, operator| Requirement { key: key.to_owned(), operator, values: vec![] };
    match part.strip_prefix('!') {
        Some(key) => Ok(bare(key, Operator::DoesNotExist)),
        None => Ok(bare(part, Operator::Exists)),
    }
}

/// Whether a `LabelSelector` that an object holds takes these labels. An absent one takes nothing,
/// an empty one everything.
pub fn selects(selector: Option<&Value>, object: &Value) -> bool {
    let Some(selector) = selector.filter(|selector| selector.is_object()) else { return false };
    let labels = entries(selector, "/matchLabels").all(|(key, value)| label(object, key) == value);
    labels && items(selector, "/matchExpressions").iter().all(|one| expression(one, object))
}

fn expression(expression: &Value, object: &Value) -> bool {
    let key = text(expression, "/key");
    let map = object.pointer("/metadata/labels");
    let value = map.and_then(|map| map.get(key)).and_then(Value::as_str);
    satisfies(expression, value)
}

/// Whether a value satisfies one expression of a selector, an affinity or a NodeClaim:
/// `operator` and `values`.
pub fn satisfies(expression: &Value, value: Option<&str>) -> bool {
    let values = items(expression, "/values");
    let listed = value.is_some_and(|value| values.iter().any(|known| known == value));
    let compared = || {
        let left: i64 = value?.parse().ok()?;
        let right: i64 = values.first()?.as_str()?.parse().ok()?;
        Some(left.cmp(&right))
    };
    match text(expression, "/operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared().is_some_and(std::cmp::Ordering::is_gt),
        "Lt" => compared().is_some_and(std::cmp::Ordering::is_lt),
        "Gte" => compared().is_some_and(std::cmp::Ordering::is_ge),
        "Lte" => compared().is_some_and(std::cmp::Ordering::is_le),
        _ => false,
    }
}
