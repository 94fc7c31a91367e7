//! How each wire says no.

use bytes::Bytes;
use http::HeaderValue;
use http::StatusCode;
use http::header::RETRY_AFTER;
use serde_json::json;

use crate::faults::WireName;
use crate::wire::Response;
use crate::wire::answer;

/// A refusal of this status in the wire's own words.
pub(super) fn refusal(wire: WireName, status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = match wire {
        WireName::Kube => answer(status, "application/json", kube(status)),
        WireName::Sqs => answer(status, "application/x-amz-json-1.0", sqs(status)),
        WireName::S3 => answer(status, "application/xml", s3(status)),
        WireName::Imds | WireName::Kubelet => answer(status, "text/plain", ""),
    };
    if status == StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A watch that begins with its end.
pub(super) fn gone() -> Response {
    answer(StatusCode::OK, "application/json", gone_event())
}

/// The last event of a watch whose resource version is too old.
pub(super) fn gone_event() -> Bytes {
    let event = json!({
        "type": "ERROR",
        "object": {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": "too old resource version", "reason": "Expired", "code": 410,
        },
    });
    format!("{event}\n").into()
}

fn kube(status: StatusCode) -> String {
    let reason = match status {
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::CONFLICT => "Conflict",
        _ => "InternalError",
    };
    let object = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "a simulated fault", "reason": reason, "code": status.as_u16(),
    });
    object.to_string()
}

fn sqs(status: StatusCode) -> String {
    let kind = match status {
        StatusCode::TOO_MANY_REQUESTS => "RequestThrottled",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        _ => "InternalFailure",
    };
    json!({ "__type": format!("com.amazonaws.sqs#{kind}"), "message": "a simulated fault" })
        .to_string()
}

fn s3(status: StatusCode) -> String {
    let code = match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "SlowDown",
        StatusCode::FORBIDDEN => "AccessDenied",
        _ => "InternalError",
    };
    format!("<Error><Code>{code}</Code><Message>a simulated fault</Message></Error>")
}
