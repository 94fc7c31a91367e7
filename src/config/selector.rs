//! Which nodes are ours to care for, as a label selector says it.

use std::collections::BTreeMap;

/// Labels of Karpenter, of managed node groups and of older tools that say a node is on Spot.
const SPOT: [(&str, &str); 3] = [
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("node.kubernetes.io/lifecycle", "spot"),
];

/// What the resources of a GPU begin with.
const GPU: &str = "nvidia.com/";

/// Labels that say a node has GPUs, before its device plugin says so.
const GPU_LABELS: [&str; 2] = ["nvidia.com/gpu.present", "karpenter.k8s.aws/instance-gpu-count"];

/// Which nodes are ours to care for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeSelector {
    /// Nodes on Spot capacity that have GPUs: where nothing is configured.
    GpuSpot,
    /// Nodes whose labels meet every requirement.
    Labels(Vec<Requirement>),
}

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    label: String,
    test: Test,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl NodeSelector {
    /// Reads what `kubectl -l` takes; nothing means GPU Spot nodes.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim().is_empty() {
            return Some(Self::GpuSpot);
        }
        let requirements: Option<Vec<Requirement>> = parts(text).map(requirement).collect();
        requirements.map(Self::Labels)
    }

    /// Whether a node with these labels and extended resources is ours.
    pub fn takes(
        &self,
        labels: &BTreeMap<String, String>,
        resources: &BTreeMap<String, u64>,
    ) -> bool {
        match self {
            Self::GpuSpot => {
                let label = |name: &str| labels.get(name).map(String::as_str);
                let spot = SPOT.iter().any(|(name, value)| label(name) == Some(value));
                let counted =
                    resources.iter().any(|(name, count)| name.starts_with(GPU) && *count > 0);
                spot && (counted || GPU_LABELS.iter().any(|name| label(name).is_some()))
            }
            Self::Labels(requirements) => requirements.iter().all(|one| one.holds(labels)),
        }
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.label);
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::In(values) => value.is_some_and(|value| values.contains(value)),
            Test::NotIn(values) => !value.is_some_and(|value| values.contains(value)),
        }
    }
}

/// The requirements: between commas that stand in no brackets.
fn parts(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.split(move |letter| {
        inside = match letter {
            '(' => true,
            ')' => false,
            _ => inside,
        };
        letter == ',' && !inside
    })
    .map(str::trim)
}

fn requirement(whole: &str) -> Option<Requirement> {
    let (label, test) = if let Some((label, values)) = whole.split_once(" notin ") {
        (label, Test::NotIn(set(values)?))
    } else if let Some((label, values)) = whole.split_once(" in ") {
        (label, Test::In(set(values)?))
    } else if let Some((label, value)) = whole.split_once("!=") {
        (label, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((label, value)) = whole.split_once("==").or_else(|| whole.split_once('=')) {
        (label, Test::In(vec![value.trim().to_owned()]))
    } else if let Some(label) = whole.strip_prefix('!') {
        (label, Test::Absent)
    } else {
        (whole, Test::Exists)
    };
    let label = label.trim();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-._/".contains(letter);
    let named = !label.is_empty() && label.chars().all(plain);
    named.then(|| Requirement { label: label.to_owned(), test })
}

fn set(text: &str) -> Option<Vec<String>> {
    let inner = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(selector: &str, labels: &[(&str, &str)], gpus: u64, expected: bool) {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let resources = BTreeMap::from([("nvidia.com/gpu".to_owned(), gpus)]);
        let selector = NodeSelector::parse(selector).unwrap();
        assert_eq!(selector.takes(&labels.collect(), &resources), expected);
    }

    #[test]
    fn nothing_means_gpu_spot_nodes() {
        let spot = ("karpenter.sh/capacity-type", "spot");
        check("", &[spot], 8, true);
        check("", &[spot, ("nvidia.com/gpu.present", "true")], 0, true);
        check("", &[spot], 0, false);
        check("", &[("karpenter.sh/capacity-type", "on-demand")], 8, false);
        check("", &[("eks.amazonaws.com/capacityType", "SPOT")], 1, true);
    }

    #[test]
    fn every_requirement_must_hold() {
        let labels = [("team", "vision"), ("tier", "1")];
        check("team=vision, tier in (1,2)", &labels, 0, true);
        check("team==vision,tier!=1", &labels, 0, false);
        check("tier notin (2, 3),!gone", &labels, 0, true);
        check("team,missing", &labels, 0, false);
        check("missing!=x", &labels, 0, true);
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for text in ["a=b,,c", "a in 1,2", "=x", "a b", "a in (1"] {
            assert_eq!(NodeSelector::parse(text), None, "{text}");
        }
    }
}
