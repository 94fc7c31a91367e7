//! EC2's `DescribeInstances` for the nodes of a fleet, on the same port as the queue: NTH asks it
//! for each message which node an instance is, and has one endpoint for both.

use std::fmt::Write as _;

use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::bench::fleet::Fleet;
use crate::wire;
use crate::wire::BoxError;
use crate::wire::Request;
use crate::wire::Response;
use crate::wire::Wire;

/// EC2's protocol is a form, SQS's is JSON.
const FORM: &str = "application/x-www-form-urlencoded";

/// Both protocols: the queue's, and EC2's where a request is a form.
pub(super) fn beside(queue: Wire, fleet: &Fleet) -> Wire {
    let fleet = fleet.clone();
    wire::wire(move |request: Request| {
        let (queue, fleet) = (queue.clone(), fleet.clone());
        async move {
            let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
            if kind.is_some_and(|kind| kind.starts_with(FORM)) {
                return describe(&fleet, request).await;
            }
            wire::call(&queue, request).await
        }
    })
}

async fn describe(fleet: &Fleet, request: Request) -> Result<Response, BoxError> {
    let body = wire::collect(request.into_body()).await?;
    let body = String::from_utf8_lossy(&body);
    let values = |name: &str| -> Vec<String> {
        let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| key.starts_with(name)).map(|(_, value)| value.to_owned()).collect()
    };
    if values("Action") != ["DescribeInstances"] {
        let refusal =
            "<Response><Errors><Error><Code>InvalidAction</Code></Error></Errors></Response>";
        return Ok(wire::answer(StatusCode::BAD_REQUEST, "text/xml", refusal));
    }
    let mut items = String::new();
    for instance in values("InstanceId.") {
        let number = (0..fleet.nodes).find(|number| fleet.instance(*number) == instance);
        if let Some(number) = number {
            item(&mut items, &instance, &fleet.node(number));
        }
    }
    let answer = format!(
        "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/2016-11-15/\">\
         <requestId>bench</requestId><reservationSet>{items}</reservationSet>\
         </DescribeInstancesResponse>"
    );
    Ok(wire::answer(StatusCode::OK, "text/xml;charset=UTF-8", answer))
}

fn item(to: &mut String, instance: &str, node: &str) {
    let written = write!(
        to,
        "<item><reservationId>r-bench</reservationId><instancesSet><item>\
         <instanceId>{instance}</instanceId><privateDnsName>{node}</privateDnsName>\
         <instanceState><code>16</code><name>running</name></instanceState>\
         <instanceType>g5.12xlarge</instanceType><instanceLifecycle>spot</instanceLifecycle>\
         <placement><availabilityZone>us-east-2a</availabilityZone></placement>\
         <tagSet><item><key>aws-node-termination-handler/managed</key><value></value></item></tagSet>\
         </item></instancesSet></item>"
    );
    debug_assert!(written.is_ok(), "writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(body: &'static str) -> (StatusCode, String) {
        let queue = wire::wire(|_| async {
            Ok(wire::answer(StatusCode::IM_A_TEAPOT, "application/json", "the queue"))
        });
        let wire = beside(queue, &Fleet::new("storm", 3, 0));
        let kind = if body.starts_with('{') { "application/x-amz-json-1.0" } else { FORM };
        let request = http::Request::post("http://aws/").header(CONTENT_TYPE, kind);
        let request = request.body(wire::full(body)).expect("a request");
        let (parts, body) = wire::call(&wire, request).await.expect("an answer").into_parts();
        let body = wire::collect(body).await.expect("a body");
        (parts.status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn an_instance_is_described_by_the_name_of_its_node() {
        let (status, body) =
            ask("Action=DescribeInstances&InstanceId.1=i-73746f72000000002&Version=2016-11-15")
                .await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("<privateDnsName>storm-00002</privateDnsName>"), "{body}");
    }

    #[tokio::test]
    async fn who_is_no_node_is_not_described_and_another_action_is_refused() {
        let (_, body) = ask("Action=DescribeInstances&InstanceId.1=i-0").await;
        assert!(body.contains("<reservationSet></reservationSet>"), "{body}");
        assert_eq!(ask("Action=RunInstances").await.0, StatusCode::BAD_REQUEST);
    }

    #[tokio::test]
    async fn what_is_no_form_goes_to_the_queue() {
        assert_eq!(ask("{}").await.0, StatusCode::IM_A_TEAPOT);
    }
}
