//! What no SDK of ours asks of AWS, as single signed requests: the settings of the bucket, and the
//! rules that fill the queue. Doctor looks at them, and nobody else.
//!
//! `object_store` has the signature and the credentials; an SDK for each of the two would take
//! minutes to compile.

use bytes::Bytes;
use http::HeaderMap;
use http::Method;
use http::Request;
use http::StatusCode;
use object_store::aws::AwsAuthorizer;
use object_store::aws::AwsCredentialProvider;
use object_store::client::HttpClient;
use object_store::client::HttpRequestBody;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::json;

/// Rules of one queue that are looked at, at most.
const RULES: usize = 20;

/// Asks AWS with the credentials of the bucket.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The HTTP client.
    pub http: HttpClient,
    /// Whose requests they are.
    pub credentials: AwsCredentialProvider,
    /// Where the bucket is, like `https://s3.eu-central-1.amazonaws.com/checkpoints`.
    pub bucket: String,
    /// The bucket's region, by which its requests are signed.
    pub bucket_region: String,
    /// Where EventBridge is, like `https://events.eu-central-1.amazonaws.com`.
    pub events: String,
    /// The region of the rules.
    pub region: String,
}

/// Why an answer did not come.
#[derive(Debug, thiserror::Error)]
pub enum SignedError {
    /// Nobody answered, or nobody lent credentials.
    #[error("it was not reached")]
    Away(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answered, and refuses.
    #[error("it refuses with {status}: {said}")]
    Refused {
        /// How.
        status: StatusCode,
        /// In its own words, cut.
        said: String,
    },
    /// The answer has another shape.
    #[error("its answer is not readable")]
    Unreadable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl SignedError {
    /// Whether it is the right that is missing.
    pub fn is_forbidden(&self) -> bool {
        let forbidden = [StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED];
        match self {
            // The JSON protocol says it with 400.
            Self::Refused { status, said } => {
                forbidden.contains(status) || said.contains("AccessDenied")
            }
            Self::Away(_) | Self::Unreadable(_) => false,
        }
    }
}

/// One rule of a bucket's lifecycle, as far as it takes things away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifecycleRule {
    /// Its name.
    pub id: String,
    /// What the keys that it is about begin with; empty for all.
    pub prefix: String,
    /// After how many days, or at which date, it deletes what is current.
    pub expires: Option<String>,
    /// The class that it moves objects to from which they are not read at once.
    pub archives: Option<String>,
}

/// A rule that sends events to a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRule {
    /// Its name.
    pub name: String,
    /// Whether it is switched on.
    pub state: String,
    /// What it takes, as JSON.
    pub pattern: String,
}

#[derive(Deserialize)]
struct Lifecycle {
    #[serde(rename = "Rule", default)]
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Rule {
    #[serde(rename = "ID", default)]
    id: String,
    status: String,
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    filter: Option<Filter>,
    #[serde(default)]
    expiration: Option<Expiration>,
    #[serde(rename = "Transition", default)]
    transitions: Vec<Transition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Filter {
    #[serde(default)]
    prefix: Option<String>,
    #[serde(default)]
    and: Option<Box<Filter>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Expiration {
    #[serde(default)]
    days: Option<u32>,
    #[serde(default)]
    date: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Transition {
    storage_class: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Names {
    #[serde(default)]
    rule_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    state: String,
    #[serde(default)]
    event_pattern: String,
}

impl Signed {
    /// The rules of the bucket's lifecycle that are switched on; none where it has none.
    pub async fn lifecycle(&self) -> Result<Vec<LifecycleRule>, SignedError> {
        let request = plain(Method::GET, &format!("{}?lifecycle=", self.bucket))?;
        let (status, _, body) = self.send("s3", &self.bucket_region, request).await?;
        let text = String::from_utf8_lossy(&body);
        if status == StatusCode::NOT_FOUND && text.contains("NoSuchLifecycleConfiguration") {
            return Ok(Vec::new());
        }
        accepted(status, &text)?;
        let found: Lifecycle = quick_xml::de::from_str(&text)
            .map_err(|error| SignedError::Unreadable(error.into()))?;
        let on = found.rules.into_iter().filter(|rule| rule.status == "Enabled");
        Ok(on.map(LifecycleRule::from).collect())
    }

    /// The region that the bucket says it is in, where it does.
    pub async fn region(&self) -> Result<Option<String>, SignedError> {
        let request = plain(Method::HEAD, &self.bucket)?;
        let (status, headers, _) = self.send("s3", &self.bucket_region, request).await?;
        let region = headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
        match region {
            // It says so even where it refuses: from elsewhere, or without the right to look.
            Some(region) => Ok(Some(region.to_owned())),
            None => accepted(status, "").map(|()| None),
        }
    }

    /// The rules that have the queue of this ARN for a target.
    pub async fn rules(&self, queue: &str) -> Result<Vec<EventRule>, SignedError> {
        let names: Names =
            self.ask_events("ListRuleNamesByTarget", &json!({"TargetArn": queue})).await?;
        let mut rules = Vec::new();
        for name in names.rule_names.into_iter().take(RULES) {
            let found: Described = self.ask_events("DescribeRule", &json!({"Name": name})).await?;
            rules.push(EventRule { name, state: found.state, pattern: found.event_pattern });
        }
        Ok(rules)
    }

    async fn ask_events<T: DeserializeOwned>(
        &self,
        action: &str,
        body: &Value,
    ) -> Result<T, SignedError> {
        let request = Request::post(&self.events)
            .header("content-type", "application/x-amz-json-1.1")
            .header("x-amz-target", format!("AWSEvents.{action}"))
            .body(HttpRequestBody::from(body.to_string()));
        let request = request.map_err(|error| SignedError::Away(error.into()))?;
        let (status, _, body) = self.send("events", &self.region, request).await?;
        accepted(status, &String::from_utf8_lossy(&body))?;
        serde_json::from_slice(&body).map_err(|error| SignedError::Unreadable(error.into()))
    }

    async fn send(
        &self,
        service: &str,
        region: &str,
        mut request: Request<HttpRequestBody>,
    ) -> Result<(StatusCode, HeaderMap, Bytes), SignedError> {
        let away = |error: object_store::Error| SignedError::Away(error.into());
        let credential = self.credentials.get_credential().await.map_err(away)?;
        AwsAuthorizer::new(&credential, service, region)
            .try_authorize(&mut request, None)
            .map_err(away)?;
        let answer = self.http.execute(request).await;
        let (head, body) = answer.map_err(|error| SignedError::Away(error.into()))?.into_parts();
        let body = body.bytes().await.map_err(|error| SignedError::Away(error.into()))?;
        Ok((head.status, head.headers, body))
    }
}

impl From<Rule> for LifecycleRule {
    fn from(rule: Rule) -> Self {
        let narrower = rule.filter.map(|filter| match filter.and {
            Some(and) => and.prefix,
            None => filter.prefix,
        });
        let expiration = rule.expiration.unwrap_or(Expiration { days: None, date: None });
        let days = expiration.days.map(|days| format!("after {days} days"));
        let slow = ["GLACIER", "DEEP_ARCHIVE"];
        let classes = rule.transitions.into_iter().map(|transition| transition.storage_class);
        Self {
            id: rule.id,
            prefix: rule.prefix.or(narrower.flatten()).unwrap_or_default(),
            expires: days.or(expiration.date.map(|date| format!("on {date}"))),
            archives: classes.into_iter().find(|class| slow.contains(&class.as_str())),
        }
    }
}

fn plain(method: Method, url: &str) -> Result<Request<HttpRequestBody>, SignedError> {
    let request = Request::builder().method(method).uri(url).body(HttpRequestBody::empty());
    request.map_err(|error| SignedError::Away(error.into()))
}

fn accepted(status: StatusCode, said: &str) -> Result<(), SignedError> {
    if status.is_success() {
        return Ok(());
    }
    Err(SignedError::Refused { status, said: said.chars().take(200).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_lifecycle_are_read_as_s3_writes_them() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
  <Rule><ID>old</ID><Filter><Prefix>east/</Prefix></Filter><Status>Enabled</Status>
    <Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>
    <Expiration><Days>90</Days></Expiration></Rule>
  <Rule><ID>parts</ID><Filter><And><Prefix>x/</Prefix><Tag><Key>a</Key><Value>b</Value></Tag></And></Filter>
    <Status>Enabled</Status>
    <AbortIncompleteMultipartUpload><DaysAfterInitiation>1</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
</LifecycleConfiguration>"#;
        let found: Lifecycle = quick_xml::de::from_str(text).unwrap();
        let rules: Vec<LifecycleRule> = found.rules.into_iter().map(LifecycleRule::from).collect();
        let expected = LifecycleRule {
            id: "old".to_owned(),
            prefix: "east/".to_owned(),
            expires: Some("after 90 days".to_owned()),
            archives: Some("GLACIER".to_owned()),
        };
        assert_eq!(rules[0], expected);
        let expected = LifecycleRule {
            id: "parts".to_owned(),
            prefix: "x/".to_owned(),
            ..LifecycleRule::default()
        };
        assert_eq!(rules[1], expected);
    }
}
