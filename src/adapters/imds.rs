//! The instance metadata service, version 2: who this instance is, and whether EC2 wants it back.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http::Request;
use http::Response;
use http::StatusCode;
use http::Uri;
use http::header::HeaderName;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::Instant;
use tower::ServiceExt;
use tower::util::BoxCloneSyncService;

use crate::error::Class;
use crate::error::Classify;

/// Where the metadata is asked for: HTTP in production, a simulator in tests.
pub type Service = BoxCloneSyncService<Request<Bytes>, Response<Bytes>, BoxError>;

/// Why a [`Service`] did not answer.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How often EC2 is asked.
///
/// AWS advises 5 s; of two minutes, four seconds are worth the requests.
pub const POLL: Duration = Duration::from_secs(1);

/// How long one request may take.
///
/// The service is on the instance itself and answers within milliseconds, or not at all.
pub const ANSWER: Duration = Duration::from_secs(1);

/// Life of the tokens that we ask for; the longest there is.
///
/// Source: EC2 User Guide, "Use the Instance Metadata Service".
const TOKEN_LIFE: Duration = Duration::from_hours(6);

/// A token is replaced this long before it ends, so that no poll meets an expired one.
const TOKEN_MARGIN: Duration = Duration::from_mins(1);

/// Longest answer that is read.
const BODY_MAX: usize = 64 * 1024;

const TOKEN_PATH: &str = "/latest/api/token";
const ACTION_PATH: &str = "/latest/meta-data/spot/instance-action";
const REBALANCE_PATH: &str = "/latest/meta-data/events/recommendations/rebalance";
const LIFE_CYCLE_PATH: &str = "/latest/meta-data/instance-life-cycle";
const DOCUMENT_PATH: &str = "/latest/dynamic/instance-identity/document";

static TOKEN_HEADER: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
static TOKEN_LIFE_HEADER: HeaderName =
    HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");

/// The metadata service with the token that it wants.
#[derive(Debug)]
pub struct Imds {
    service: Service,
    endpoint: String,
    token: Option<Token>,
}

/// What EC2 announced for this Spot instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceAction {
    /// What will be done.
    pub action: Action,
    /// When it will be done; absent if the service named no readable time.
    pub time: Option<Timestamp>,
}

/// What EC2 does with an instance that it takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The instance ends.
    Terminate,
    /// The instance stops and keeps its id.
    Stop,
    /// The instance hibernates, which begins at once.
    Hibernate,
    /// A word that we do not know; the instance is taken all the same.
    Unknown,
}

/// What the instance is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// The instance's id, `i-…`.
    pub instance_id: String,
    /// The region.
    pub region: String,
    /// The zone.
    pub availability_zone: String,
    /// The type, like `g5.xlarge`.
    #[serde(default)]
    pub instance_type: Option<String>,
    /// The account.
    #[serde(default)]
    pub account_id: Option<String>,
}

/// Whether EC2 can take the instance back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LifeCycle {
    /// It is on Spot.
    Spot,
    /// It is not.
    OnDemand,
}

/// Why the metadata service told us nothing. None of these means "no notice".
#[derive(Debug, thiserror::Error)]
pub enum ImdsError {
    /// The request for a token was not answered, which is how a hop limit looks.
    #[error(
        "the metadata service did not answer the token request. From a pod without hostNetwork \
         the instance needs a metadata hop limit of 2 or more"
    )]
    TokenUnanswered,
    /// A request was not answered in time.
    #[error("the metadata service did not answer `{path}` in time")]
    Unanswered {
        /// What was asked for.
        path: &'static str,
    },
    /// The service could not be reached.
    #[error("the metadata service was not reached")]
    Unreachable {
        /// Why.
        source: BoxError,
    },
    /// The service is switched off for this instance.
    #[error("the metadata service is switched off for this instance; notices come by queue alone")]
    SwitchedOff,
    /// The service answered with a status that says nothing about the question.
    #[error("the metadata service answered `{path}` with status {status}")]
    Refused {
        /// What was asked for.
        path: &'static str,
        /// The status.
        status: StatusCode,
    },
    /// The answer is none that we can read.
    #[error("the metadata service's answer to `{path}` is not readable")]
    Unreadable {
        /// What was asked for.
        path: &'static str,
    },
}

#[derive(Debug, Clone)]
struct Token {
    value: http::HeaderValue,
    renew_at: Instant,
}

#[derive(Deserialize)]
struct RawAction {
    action: String,
    #[serde(default)]
    time: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRebalance {
    notice_time: Timestamp,
}

/// The metadata service over HTTP.
pub fn over_http() -> Service {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(ANSWER));
    let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(connector);
    Service::new(tower::service_fn(move |request: Request<Bytes>| {
        let answer = client.request(request.map(Full::new));
        async move {
            let (head, body) = answer.await?.into_parts();
            let body = Limited::new(body, BODY_MAX).collect().await?.to_bytes();
            Ok::<_, BoxError>(Response::from_parts(head, body))
        }
    }))
}

impl Imds {
    /// The service at `endpoint`, a scheme and an authority, like `http://169.254.169.254`.
    pub fn new(service: Service, endpoint: &str) -> Self {
        Self { service, endpoint: endpoint.trim_end_matches('/').to_owned(), token: None }
    }

    /// Says what the instance is.
    pub async fn identity(&mut self) -> Result<Identity, ImdsError> {
        let body = self.get(DOCUMENT_PATH).await?;
        let body = body.ok_or(ImdsError::Unreadable { path: DOCUMENT_PATH })?;
        serde_json::from_slice(&body).map_err(|_| ImdsError::Unreadable { path: DOCUMENT_PATH })
    }

    /// Says whether the instance is on Spot.
    pub async fn life_cycle(&mut self) -> Result<LifeCycle, ImdsError> {
        match self.get(LIFE_CYCLE_PATH).await? {
            Some(word) if word.trim_ascii() == b"spot" => Ok(LifeCycle::Spot),
            Some(_) | None => Ok(LifeCycle::OnDemand),
        }
    }

    /// What EC2 announced, or `None` while it wants nothing.
    pub async fn instance_action(&mut self) -> Result<Option<InstanceAction>, ImdsError> {
        self.get(ACTION_PATH).await?.map(|body| instance_action(&body)).transpose()
    }

    /// When EC2 recommended to rebalance, or `None` while it did not.
    pub async fn rebalance(&mut self) -> Result<Option<Timestamp>, ImdsError> {
        self.get(REBALANCE_PATH).await?.map(|body| rebalance(&body)).transpose()
    }

    /// Asks for `path`; a token that is refused is replaced once. `None` is a 404.
    async fn get(&mut self, path: &'static str) -> Result<Option<Bytes>, ImdsError> {
        let known = self.token.take_if(|token| token.renew_at <= Instant::now());
        drop(known);
        for _ in 0..2 {
            let token = self.token().await?;
            let answer = self.ask(Method::GET, path, (&TOKEN_HEADER, token)).await?;
            match answer.status() {
                StatusCode::OK => return Ok(Some(answer.into_body())),
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::UNAUTHORIZED => self.token = None,
                StatusCode::FORBIDDEN => return Err(ImdsError::SwitchedOff),
                status => return Err(ImdsError::Refused { path, status }),
            }
        }
        Err(ImdsError::Refused { path, status: StatusCode::UNAUTHORIZED })
    }

    async fn token(&mut self) -> Result<http::HeaderValue, ImdsError> {
        if let Some(token) = &self.token {
            return Ok(token.value.clone());
        }
        let asked_at = Instant::now();
        let life = http::HeaderValue::from(TOKEN_LIFE.as_secs());
        let answer = self.ask(Method::PUT, TOKEN_PATH, (&TOKEN_LIFE_HEADER, life)).await;
        let answer = match answer {
            Err(ImdsError::Unanswered { .. }) => return Err(ImdsError::TokenUnanswered),
            answered => answered?,
        };
        match answer.status() {
            StatusCode::OK => {
                let token = token(&answer, asked_at)?;
                let value = token.value.clone();
                self.token = Some(token);
                Ok(value)
            }
            StatusCode::FORBIDDEN => Err(ImdsError::SwitchedOff),
            status => Err(ImdsError::Refused { path: TOKEN_PATH, status }),
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &'static str,
        header: (&HeaderName, http::HeaderValue),
    ) -> Result<Response<Bytes>, ImdsError> {
        let uri: Uri = format!("{}{path}", self.endpoint)
            .parse()
            .map_err(|error| ImdsError::Unreachable { source: Box::new(error) })?;
        let mut request = Request::new(Bytes::new());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        request.headers_mut().insert(header.0, header.1);
        match tokio::time::timeout(ANSWER, self.service.clone().oneshot(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(ImdsError::Unreachable { source }),
            Err(_) => Err(ImdsError::Unanswered { path }),
        }
    }
}

impl Classify for ImdsError {
    fn class(&self) -> Class {
        match self {
            Self::TokenUnanswered
            | Self::Unanswered { .. }
            | Self::Unreachable { .. }
            | Self::Refused { .. } => Class::Transient,
            Self::SwitchedOff | Self::Unreadable { .. } => Class::Permanent,
        }
    }

    fn label(&self) -> &'static str {
        match self {
            Self::TokenUnanswered => "token_unanswered",
            Self::Unanswered { .. } => "unanswered",
            Self::Unreachable { .. } => "unreachable",
            Self::SwitchedOff => "switched_off",
            Self::Refused { .. } => "refused",
            Self::Unreadable { .. } => "unreadable",
        }
    }
}

fn token(answer: &Response<Bytes>, asked_at: Instant) -> Result<Token, ImdsError> {
    let value = http::HeaderValue::from_bytes(answer.body().trim_ascii())
        .ok()
        .filter(|value| !value.is_empty())
        .ok_or(ImdsError::Unreadable { path: TOKEN_PATH })?;
    let life = answer
        .headers()
        .get(&TOKEN_LIFE_HEADER)
        .and_then(|life| life.to_str().ok()?.parse().ok())
        .map_or(TOKEN_LIFE, Duration::from_secs)
        .min(TOKEN_LIFE);
    // A short life still gets half of itself, or a token would be asked for with each poll.
    let renew_at = asked_at + life.saturating_sub(TOKEN_MARGIN).max(life / 2);
    Ok(Token { value, renew_at })
}

fn instance_action(body: &[u8]) -> Result<InstanceAction, ImdsError> {
    let raw: RawAction =
        serde_json::from_slice(body).map_err(|_| ImdsError::Unreadable { path: ACTION_PATH })?;
    let action = match raw.action.as_str() {
        "terminate" => Action::Terminate,
        "stop" => Action::Stop,
        "hibernate" => Action::Hibernate,
        _ => Action::Unknown,
    };
    Ok(InstanceAction { action, time: raw.time.and_then(|time| time.parse().ok()) })
}

fn rebalance(body: &[u8]) -> Result<Timestamp, ImdsError> {
    let raw: RawRebalance =
        serde_json::from_slice(body).map_err(|_| ImdsError::Unreadable { path: REBALANCE_PATH })?;
    Ok(raw.notice_time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_without_a_readable_time_is_still_an_action() {
        let read = |body: &str| instance_action(body.as_bytes()).unwrap();
        let time = Some("2017-09-18T08:22:00Z".parse().unwrap());
        assert_eq!(
            read(r#"{"action":"terminate","time":"2017-09-18T08:22:00Z"}"#),
            InstanceAction { action: Action::Terminate, time }
        );
        assert_eq!(
            read(r#"{"action":"hibernate","time":"soon"}"#),
            InstanceAction { action: Action::Hibernate, time: None }
        );
        assert_eq!(
            read(r#"{"action":"shrink","more":1}"#),
            InstanceAction { action: Action::Unknown, time: None }
        );
        assert!(instance_action(b"<html>").is_err());
    }

    #[test]
    fn a_token_is_renewed_before_its_end_and_a_short_one_at_half_its_life() {
        let now = Instant::now();
        let answer = |life: &str| {
            Response::builder()
                .header(&TOKEN_LIFE_HEADER, life)
                .body(Bytes::from_static(b"secret"))
                .unwrap()
        };
        let renewed_after = |life: &str| token(&answer(life), now).unwrap().renew_at - now;
        assert_eq!(renewed_after("21600"), Duration::from_mins(359));
        assert_eq!(renewed_after("10"), Duration::from_secs(5));
        assert_eq!(renewed_after("what"), Duration::from_mins(359));
    }
}
