//! Names and numbers of the outside world, parsed once and never raw text after.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// Why a text is not the name it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {noun}. It is {rule}")]
pub struct NotAName {
    /// What it was meant to be, with its article.
    pub noun: &'static str,
    /// What was read, cut to 80 characters.
    pub text: String,
    /// What is allowed.
    pub rule: &'static str,
}

impl NotAName {
    fn new(noun: &'static str, text: &str, rule: &'static str) -> Self {
        Self { noun, text: text.chars().take(80).collect(), rule }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident: $noun:literal, $rule:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAName;

            fn from_str(text: &str) -> Result<Self, NotAName> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NotAName::new($noun, text, $rule))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NotAName;

            fn try_from(text: String) -> Result<Self, NotAName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    };
}

name! {
    /// An EC2 instance, such as `i-0123456789abcdef0`; it names the record of an interruption.
    ///
    /// Source: EC2 User Guide, "Resource IDs" (8 or 17 hexadecimal digits).
    InstanceId: "an instance id", "`i-` and 8 or 17 lower-case hexadecimal digits", is_instance_id
}

name! {
    /// A Kubernetes Node.
    NodeName: "a node name", "a DNS subdomain of at most 253 characters", is_subdomain
}

name! {
    /// A Kubernetes namespace.
    Namespace: "a namespace", "a DNS label of at most 63 characters", is_label
}

name! {
    /// The name of a pod in its namespace; the next incarnation may have the same.
    PodName: "a pod name", "a DNS subdomain of at most 253 characters", is_subdomain
}

name! {
    /// The UID of one incarnation of a pod.
    PodUid: "a pod uid", "1 to 64 letters, digits and dashes", |text| is_plain(text, 64)
}

name! {
    /// A physical GPU, such as `GPU-8a2f…`.
    GpuUuid: "a GPU uuid", "`GPU-` and 1 to 64 letters, digits and dashes",
    |text| text.strip_prefix("GPU-").is_some_and(|rest| is_plain(rest, 64))
}

name! {
    /// A Karpenter NodeClaim.
    ClaimName: "a claim name", "a DNS subdomain of at most 253 characters", is_subdomain
}

name! {
    /// What a checkpoint belongs to, within its namespace; also a folder in the bucket.
    JobKey: "a job key",
    "1 to 128 letters, digits, `.`, `_` and `-`, with a letter or digit at both ends", is_job_key
}

name! {
    /// The cluster, as EKS names it.
    ClusterName: "a cluster name", "1 to 100 letters, digits, `-` and `_`", is_cluster_name
}

name! {
    /// An availability zone, such as `us-east-2a`.
    Zone: "a zone", "lower-case letters, digits and dashes", |text| is_label(text)
}

name! {
    /// An EC2 instance type, such as `g5.12xlarge`.
    InstanceType: "an instance type", "lower-case letters, digits, dashes and one or more dots",
    |text| text.contains('.') && is_subdomain(text)
}

name! {
    /// An AWS region, such as `us-east-2`.
    Region: "a region", "lower-case letters, digits and dashes", |text| is_label(text)
}

/// One incarnation of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: PodName,
    /// Its UID, without which we would touch the next incarnation.
    pub uid: PodUid,
}

impl fmt::Display for PodRef {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// `spec.providerID` of a Node or NodeClaim on EC2: `aws:///<zone>/<instance>`.
///
/// Source: cloud-provider-aws, "The Node Name and Provider ID".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProviderId {
    /// The zone that the instance is in.
    pub zone: Zone,
    /// The instance.
    pub instance: InstanceId,
}

impl FromStr for ProviderId {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        text.strip_prefix("aws:///")
            .and_then(|rest| rest.split_once('/'))
            .and_then(|(zone, instance)| {
                Some(Self { zone: zone.parse().ok()?, instance: instance.parse().ok()? })
            })
            .ok_or_else(|| {
                NotAName::new("a provider id", text, "`aws:///`, a zone, `/` and an instance id")
            })
    }
}

impl TryFrom<String> for ProviderId {
    type Error = NotAName;

    fn try_from(text: String) -> Result<Self, NotAName> {
        text.parse()
    }
}

impl From<ProviderId> for String {
    fn from(id: ProviderId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for ProviderId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "aws:///{}/{}", self.zone, self.instance)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($number:ty)) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub $number);

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = NotAName;

            fn from_str(text: &str) -> Result<Self, NotAName> {
                text.parse().map(Self).map_err(|_| {
                    NotAName::new("a number of this kind", text, "a whole number, zero or more")
                })
            }
        }
    };
}

number! {
    /// The place of a process among those that train one model, from 0.
    Rank(u32)
}

number! {
    /// The number of a manifest in the history of a job key, from 1.
    Epoch(u64)
}

number! {
    /// How many training steps are completed.
    Step(u64)
}

impl Epoch {
    /// The first of a history.
    pub const FIRST: Self = Self(1);

    /// The one after this, which a save commits or a restore claims.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

fn is_instance_id(text: &str) -> bool {
    text.strip_prefix("i-").is_some_and(|digits| {
        matches!(digits.len(), 8 | 17)
            && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn is_subdomain(text: &str) -> bool {
    let labels_hold = text.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    });
    labels_hold && text.len() <= 253 && has_plain_ends(text)
}

fn is_label(text: &str) -> bool {
    text.len() <= 63 && !text.contains('.') && is_subdomain(text)
}

fn is_plain(text: &str, longest: usize) -> bool {
    !text.is_empty()
        && text.len() <= longest
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_job_key(text: &str) -> bool {
    text.len() <= 128
        && has_plain_ends(text)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn is_cluster_name(text: &str) -> bool {
    text.len() <= 100
        && text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn has_plain_ends(text: &str) -> bool {
    let plain = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    plain(text.bytes().next()) && plain(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_id_has_8_or_17_digits() {
        for good in ["i-0123abcd", "i-0123456789abcdef0"] {
            assert_eq!(good.parse::<InstanceId>().unwrap().as_str(), good);
        }
        for bad in ["", "i-", "i-0123ABCD", "i-012345678", "x-0123abcd", "i-0123456789abcdef0 "] {
            bad.parse::<InstanceId>().unwrap_err();
        }
    }

    #[test]
    fn a_provider_id_names_zone_and_instance() {
        let id: ProviderId = "aws:///us-east-2a/i-0123456789abcdef0".parse().unwrap();
        assert_eq!(id.zone.as_str(), "us-east-2a");
        assert_eq!(id.to_string(), "aws:///us-east-2a/i-0123456789abcdef0");
        for bad in ["aws://us-east-2a/i-0123abcd", "aws:///i-0123abcd", "gce:///a/i-0123abcd"] {
            bad.parse::<ProviderId>().unwrap_err();
        }
    }

    #[test]
    fn a_job_key_cannot_leave_its_folder() {
        for good in ["a", "job-1.worker_0", "0a1b2c3d-0000-0000-0000-000000000000.ps"] {
            good.parse::<JobKey>().unwrap();
        }
        for bad in ["", ".", "..", "a/b", "-a", "a\0b", &"a".repeat(129)] {
            bad.parse::<JobKey>().unwrap_err();
        }
    }

    #[test]
    fn a_fault_says_what_is_allowed() {
        let error = "gpu 1".parse::<NodeName>().unwrap_err();
        let expected =
            "`gpu 1` is not a node name. It is a DNS subdomain of at most 253 characters";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn ids_are_keys_of_a_record() {
        let uid: PodUid = "0a1b".parse().unwrap();
        let map = std::collections::BTreeMap::from([(uid, Epoch::FIRST.next())]);
        let text = serde_json::to_string(&map).unwrap();
        assert_eq!(text, r#"{"0a1b":2}"#);
        assert_eq!(
            serde_json::from_str::<std::collections::BTreeMap<PodUid, Epoch>>(&text).unwrap(),
            map
        );
    }
}
