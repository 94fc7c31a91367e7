//! The metadata service of one instance: session tokens, and what it says of Spot.

use std::future::pending;
use std::time::Duration;

use http::HeaderValue;
use http::Method;
use http::StatusCode;
use http::header::CONNECTION;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::Value;
use serde_json::json;

use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;
use crate::wire::answer;
use crate::wire::wire;
use crate::world::State;
use crate::world::World;
use crate::world::instances::ImdsMode;
use crate::world::instances::Instance;
use crate::world::instances::InstanceState;
use crate::world::instances::events::seconds;

const TOKEN_PATH: &str = "/latest/api/token";
const TOKEN: &str = "x-aws-ec2-metadata-token";
const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// The role of every instance's profile.
const ROLE: &str = "node";
/// How long its credentials are good for.
const CREDENTIALS: Duration = Duration::from_hours(6);

/// The longest life of a token, in seconds.
///
/// Source: EC2 User Guide, "Use the Instance Metadata Service to access instance metadata".
const TTL_MAX: u64 = 21_600;

/// The metadata service of one instance of a world; a gone instance breaks the connection.
pub fn imds(world: World, instance: &str) -> Wire {
    let instance = instance.to_owned();
    wire(move |request| {
        let (world, instance) = (world.clone(), instance.clone());
        async move { respond(&world, &instance, request).await }
    })
}

async fn respond(world: &World, instance: &str, request: Request) -> Result<Response, BoxError> {
    let (parts, _) = request.into_parts();
    let mode = world.read(|state| mode(state, instance));
    match mode {
        None => Err("the instance is gone".into()),
        Some(ImdsMode::TokenNeverAnswers) if parts.uri.path() == TOKEN_PATH => pending().await,
        Some(ImdsMode::Throttled) => Ok(plain(StatusCode::SERVICE_UNAVAILABLE, "")),
        Some(ImdsMode::Off) => Ok(plain(StatusCode::FORBIDDEN, "")),
        Some(ImdsMode::Answers | ImdsMode::TokenNeverAnswers) => {
            if parts.uri.path() == TOKEN_PATH {
                return Ok(token(world, instance, &parts));
            }
            let now = world.now();
            let found = world.read(|state| state.instances.get(instance).cloned());
            Ok(found.map_or_else(not_found, |instance| metadata(world, &instance, &parts, now)))
        }
    }
}

fn mode(state: &State, instance: &str) -> Option<ImdsMode> {
    let living = |instance: &&Instance| instance.state < InstanceState::Terminated;
    state.instances.get(instance).filter(living).map(|instance| instance.imds)
}

fn token(world: &World, instance: &str, parts: &Parts) -> Response {
    if parts.method != Method::PUT {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    if parts.headers.contains_key("x-forwarded-for") {
        return plain(StatusCode::FORBIDDEN, "");
    }
    let lives = header(parts, TOKEN_TTL).and_then(|value| value.parse().ok());
    let Some(lives) = lives.filter(|lives| (1..=TTL_MAX).contains(lives)) else {
        return plain(StatusCode::BAD_REQUEST, "");
    };
    let now = world.now();
    let token = world.update(|state| {
        let instance = state.instances.get_mut(instance)?;
        Some(instance.token(Duration::from_secs(lives), now))
    });
    let mut response = plain(StatusCode::OK, token.unwrap_or_default());
    response.headers_mut().insert(TOKEN_TTL, HeaderValue::from(lives));
    response
}

fn metadata(world: &World, instance: &Instance, parts: &Parts, now: Timestamp) -> Response {
    if parts.method != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "");
    }
    if !header(parts, TOKEN).is_some_and(|token| instance.knows(token, now)) {
        return plain(StatusCode::UNAUTHORIZED, "");
    }
    if parts.uri.path() == "/latest/dynamic/instance-identity/document" {
        return plain(StatusCode::OK, identity(world, instance));
    }
    let item = parts.uri.path().strip_prefix("/latest/meta-data/").unwrap_or_default();
    let found = item_of(instance, item, now);
    found.map_or_else(not_found, |text| plain(StatusCode::OK, text))
}

fn item_of(instance: &Instance, item: &str, now: Timestamp) -> Option<String> {
    let notice = instance.notice_in_imds(now);
    match item {
        "instance-id" => Some(instance.id.clone()),
        "instance-type" => Some(instance.instance_type.clone()),
        "instance-life-cycle" => Some(instance.purchase.as_str().to_owned()),
        "placement/availability-zone" => Some(instance.zone.clone()),
        "placement/region" => Some(region(&instance.zone).to_owned()),
        "spot/instance-action" => notice.map(|notice| {
            let action = notice.action.as_str();
            json!({ "action": action, "time": seconds(notice.time) }).to_string()
        }),
        "spot/termination-time" => notice.map(|notice| seconds(notice.time)),
        "events/recommendations/rebalance" => {
            let since = instance.rebalance?;
            Some(json!({ "noticeTime": seconds(since) }).to_string())
        }
        "iam/security-credentials/" => Some(ROLE.to_owned()),
        _ if item.strip_prefix("iam/security-credentials/") == Some(ROLE) => {
            Some(credentials(now).to_string())
        }
        _ => None,
    }
}

/// The instance's role, good for some hours.
fn credentials(now: Timestamp) -> Value {
    json!({
        "Code": "Success",
        "Type": "AWS-HMAC",
        "LastUpdated": seconds(now),
        "AccessKeyId": "ASIAEXAMPLE",
        "SecretAccessKey": "demo",
        "Token": "demo",
        "Expiration": seconds(now + CREDENTIALS),
    })
}

fn identity(world: &World, instance: &Instance) -> String {
    let account = world.read(|state| state.instances.account().to_owned());
    let document = json!({
        "accountId": account,
        "architecture": "x86_64",
        "availabilityZone": instance.zone,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": instance.id,
        "instanceType": instance.instance_type,
        "pendingTime": seconds(instance.since),
        "privateIp": "127.0.0.1",
        "region": region(&instance.zone),
        "version": "2017-09-30",
    });
    document.to_string()
}

/// A zone's region: `us-east-2a` lies in `us-east-2`.
fn region(zone: &str) -> &str {
    zone.trim_end_matches(|letter: char| letter.is_ascii_lowercase())
}

fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The real one closes the connection after a 404, which has no text.
fn not_found() -> Response {
    let mut response = plain(StatusCode::NOT_FOUND, "");
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    answer(status, "text/plain", text.into())
}
