//! Whether the queue is ours alone, filled, and read.

use std::collections::BTreeMap;

use lifeboat_domain::policy::KarpenterMode;
use serde_json::Value;

use super::Finding;
use super::beside::Karpenter;
use super::few;
use super::reach;
use super::reach::ReachError;
use crate::adapters::eventbridge::EVENTS;
use crate::adapters::eventbridge::INTERRUPTION;
use crate::adapters::signed::EventRule;
use crate::adapters::signed::Signed;
use crate::config::Config;
use crate::error::Chain;

/// Receives before a message goes to the dead letters: one about an instance that is not known yet
/// is kept until its visibility has run out twice.
const RECEIVES_MIN: u64 = 3;

pub(super) async fn examine(
    config: &Config,
    (client, signed): (&aws_sdk_sqs::Client, &Signed),
) -> Vec<Finding> {
    let url = &config.queue.url;
    let attributes = match reach::queue(client, url).await {
        Ok(attributes) => attributes,
        Err(error) => {
            let remedy = "check `queue.url`, the region and the role's sqs:GetQueueAttributes, \
                          sqs:ReceiveMessage, sqs:DeleteMessage and sqs:ChangeMessageVisibility";
            return vec![Finding::red(Chain(&error).to_string(), remedy)];
        }
    };
    let mut findings = vec![Finding::green(format!("queue `{url}` answers"))];
    findings.extend(judge(&attributes));
    if let Some(arn) = attributes.get("QueueArn") {
        findings.extend(rules(
            signed
                .rules(arn)
                .await
                .as_deref()
                .map_err(|error| (error.is_forbidden(), Chain(error).to_string())),
        ));
    }
    findings
}

/// What the queue's own attributes say.
fn judge(attributes: &BTreeMap<String, String>) -> Vec<Finding> {
    let text = |name: &str| attributes.get(name).map(String::as_str);
    let number = |name: &str| text(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let json = |name: &str| text(name).and_then(|text| serde_json::from_str::<Value>(text).ok());
    let mut findings = Vec::new();
    match json("RedrivePolicy") {
        None => findings.push(Finding::red(
            "the queue has no dead-letter queue",
            "give it one: a message that nobody can read is left to the redrive",
        )),
        Some(redrive) => findings.extend(receives(&redrive["maxReceiveCount"])),
    }
    let delay = number("DelaySeconds");
    if delay > 0 {
        findings.push(Finding::red(
            format!("the queue delays each message by {delay} s"),
            "set DelaySeconds to 0 on ours: only Karpenter's own queue is to wait",
        ));
    }
    findings.extend(policy(json("Policy").as_ref()));
    if text("SqsManagedSseEnabled") == Some("false") && text("KmsMasterKeyId").is_none() {
        findings.push(Finding::yellow(
            "the queue is not encrypted",
            "set SqsManagedSseEnabled to true: it costs nothing",
        ));
    }
    let waiting = number("ApproximateNumberOfMessages");
    if waiting > 0 {
        findings.push(Finding::yellow(
            format!("{waiting} messages wait in the queue"),
            "look at once more: a controller takes each within a second. If they stay, none reads \
             this queue; how old the oldest is, the alarm of eventbridge/ says",
        ));
    }
    findings
}

/// How often a message is given out before it is dead; AWS writes it as a number or as text.
fn receives(count: &Value) -> Option<Finding> {
    let count = count.as_u64().or_else(|| count.as_str()?.parse().ok())?;
    (count < RECEIVES_MIN).then(|| {
        Finding::yellow(
            format!("a message is dead after {count} receives"),
            format!(
                "set maxReceiveCount to {RECEIVES_MIN} or more: a notice for a node that is not \
                 there yet is kept until its visibility has run out twice"
            ),
        )
    })
}

/// Who may write to the queue, and who else may read it.
fn policy(policy: Option<&Value>) -> Vec<Finding> {
    let Some(policy) = policy else {
        return vec![Finding::red(
            "the queue has no policy: EventBridge may not write to it",
            "allow `events.amazonaws.com` sqs:SendMessage for your rules, as eventbridge/ does",
        )];
    };
    let statements = &policy["Statement"];
    let statements = statements.as_array().map_or(std::slice::from_ref(statements), Vec::as_slice);
    let allowed: Vec<&Value> = statements.iter().filter(|one| one["Effect"] == "Allow").collect();
    let mut findings = Vec::new();
    let by_events = |one: &&&Value| {
        texts(&one["Principal"]["Service"]).contains(&"events.amazonaws.com")
            && does(one, "SendMessage")
    };
    if !allowed.iter().any(|one| by_events(&one)) {
        findings.push(Finding::red(
            "the queue's policy does not let EventBridge write",
            "allow `events.amazonaws.com` sqs:SendMessage for your rules, as eventbridge/ does",
        ));
    }
    let anybody = |one: &&&Value| is_anybody(&one["Principal"]) && one["Condition"].is_null();
    if allowed.iter().any(|one| anybody(&one)) {
        findings.push(Finding::red(
            "the queue's policy lets anybody in",
            "name who may: whoever writes a message has a node drained",
        ));
    }
    let others = allowed.iter().filter(|one| {
        does(one, "ReceiveMessage") || does(one, "DeleteMessage") || does(one, "PurgeQueue")
    });
    let others: Vec<String> =
        others.map(|one| one["Principal"].to_string().replace('"', "")).collect();
    if !others.is_empty() {
        findings.push(Finding::yellow(
            format!("the queue's policy lets others read: {}", few(&others)),
            "give each reader a queue of its own: whoever is first deletes the message. The \
             controller's role needs no statement here",
        ));
    }
    findings
}

fn is_anybody(principal: &Value) -> bool {
    principal == "*" || texts(&principal["AWS"]).contains(&"*")
}

fn does(statement: &Value, action: &str) -> bool {
    texts(&statement["Action"]).iter().any(|one| {
        let one = one.to_ascii_lowercase();
        one == "*" || one == "sqs:*" || one == format!("sqs:{}", action.to_ascii_lowercase())
    })
}

/// One text, or a list of them: policies have both.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(all) => all.iter().filter_map(Value::as_str).collect(),
        Value::String(one) => vec![one],
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Vec::new(),
    }
}

/// Whether the rules that fill the queue are there and on.
fn rules(found: Result<&[EventRule], (bool, String)>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err((is_forbidden, said)) => {
            let remedy = if is_forbidden {
                "ask as somebody with events:ListRuleNamesByTarget and events:DescribeRule"
            } else {
                "check the way to EventBridge's API from here"
            };
            return vec![Finding::yellow(
                format!("EventBridge's rules were not read: {said}"),
                remedy,
            )];
        }
    };
    let takes = |event: &str| {
        let kinds = |rule: &&EventRule| {
            let pattern: Value = serde_json::from_str(&rule.pattern).unwrap_or_default();
            texts(&pattern["detail-type"]).contains(&event)
        };
        found.iter().filter(kinds).any(|rule| rule.state != "DISABLED")
    };
    let missing: Vec<&str> = EVENTS.into_iter().filter(|event| !takes(event)).collect();
    let named: Vec<String> = missing.iter().map(|event| format!("`{event}`")).collect();
    let remedy = "make the rules by eventbridge/ (CloudFormation or Terraform), and switch them on";
    match missing.as_slice() {
        [] => vec![Finding::green(format!("{} rules fill the queue", found.len()))],
        missing if missing.contains(&INTERRUPTION) => {
            vec![Finding::red(format!("no rule sends the queue {}", few(&named)), remedy)]
        }
        _ => vec![Finding::yellow(format!("no rule sends the queue {}", few(&named)), remedy)],
    }
}

/// Whether Karpenter waits where pods are held on a signal only.
pub(super) async fn karpenters(
    config: &Config,
    client: &aws_sdk_sqs::Client,
    (karpenter, on_signal): (Option<&Karpenter>, &[String]),
) -> Option<Finding> {
    if config.policy().karpenter == KarpenterMode::None || on_signal.is_empty() {
        return None;
    }
    let delay = match karpenter.map(|found| found.queue.as_deref()) {
        None => Err("Karpenter's Deployment was not seen".to_owned()),
        // Without one Karpenter hears no notice, and drains nothing at it.
        Some(None) => return None,
        Some(Some(name)) => {
            let url = beside_ours(&config.queue.url, name);
            delay_of(reach::queue(client, &url).await)
        }
    };
    Some(waits(&delay, on_signal))
}

fn delay_of(answer: Result<BTreeMap<String, String>, ReachError>) -> Result<u64, String> {
    let attributes = answer.map_err(|error| Chain(&error).to_string())?;
    let delay = attributes.get("DelaySeconds").and_then(|text| text.parse().ok());
    Ok(delay.unwrap_or(0))
}

fn waits(delay: &Result<u64, String>, on_signal: &[String]) -> Finding {
    let remedy = "set DelaySeconds to 5 on Karpenter's queue (eventbridge/delay-karpenter), or \
                  `lifeboat.dev/hold: always` on them";
    let pods = format!("{} pods are held on a signal only ({})", on_signal.len(), few(on_signal));
    match delay {
        Ok(0) => Finding::red(
            format!("{pods}, and Karpenter's queue is not delayed: its drain can win the race"),
            remedy,
        ),
        Ok(seconds) => Finding::green(format!("{pods}, and Karpenter's queue waits {seconds} s")),
        Err(why) => Finding::yellow(
            format!("{pods}, and whether Karpenter's queue is delayed was not seen: {why}"),
            remedy,
        ),
    }
}

/// The URL of another queue of the same account and region.
fn beside_ours(url: &str, name: &str) -> String {
    match url.rsplit_once('/') {
        Some((account, _)) if !name.contains('/') => format!("{account}/{name}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::commands::doctor::Health;
    use crate::commands::doctor::worst;

    fn events() -> Value {
        json!({
            "Effect": "Allow", "Principal": {"Service": "events.amazonaws.com"},
            "Action": "sqs:SendMessage", "Resource": "*",
        })
    }

    #[test]
    fn a_policy_is_looked_at_for_who_writes_and_who_reads() {
        let other = |principal: Value, action: &str| json!({"Effect": "Allow", "Principal": principal, "Action": [action]});
        let account = json!({"AWS": "arn:aws:iam::123456789012:role/somebody"});
        for (statements, expected) in [
            (json!([events()]), None),
            (events(), None),
            (json!([]), Some("the queue's policy does not let EventBridge write")),
            (
                json!([events(), other(json!("*"), "sqs:SendMessage")]),
                Some("the queue's policy lets anybody in"),
            ),
            (
                json!([events(), other(account, "SQS:ReceiveMessage")]),
                Some(
                    "the queue's policy lets others read: {AWS:arn:aws:iam::123456789012:role/somebody}",
                ),
            ),
        ] {
            let found = policy(Some(&json!({"Statement": statements})));
            let said: Vec<&str> = found.iter().map(|one| one.found.as_str()).collect();
            assert_eq!(said, expected.into_iter().collect::<Vec<_>>(), "{statements}");
        }
        assert_eq!(policy(None)[0].health, Health::Red);
    }

    #[test]
    fn a_queue_is_judged_by_its_attributes() {
        let attributes = |more: &[(&str, &str)]| -> BTreeMap<String, String> {
            let policy = json!({"Statement": [events()]}).to_string();
            let redrive = json!({"maxReceiveCount": "5"}).to_string();
            let base = [("Policy", policy.as_str()), ("RedrivePolicy", redrive.as_str())];
            let all = base.into_iter().chain(more.iter().copied());
            all.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        };
        for (more, expected) in [
            (&[][..], Health::Green),
            (&[("DelaySeconds", "5")], Health::Red),
            (&[("SqsManagedSseEnabled", "false")], Health::Yellow),
            (&[("SqsManagedSseEnabled", "false"), ("KmsMasterKeyId", "k")], Health::Green),
            (&[("ApproximateNumberOfMessages", "3")], Health::Yellow),
            (&[("RedrivePolicy", r#"{"maxReceiveCount": 2}"#)], Health::Yellow),
        ] {
            assert_eq!(worst(&judge(&attributes(more))), expected, "{more:?}");
        }
    }

    #[test]
    fn a_rule_that_is_missing_or_off_is_named() {
        let rule = |event: &str, state: &str| EventRule {
            name: event.to_owned(),
            state: state.to_owned(),
            pattern: json!({"detail-type": [event]}).to_string(),
        };
        let all: Vec<EventRule> = EVENTS.iter().map(|event| rule(event, "ENABLED")).collect();
        assert_eq!(worst(&rules(Ok(&all))), Health::Green);
        assert_eq!(worst(&rules(Ok(&all[..4]))), Health::Yellow);
        assert_eq!(worst(&rules(Ok(&all[1..]))), Health::Red);
        let mut off = all.clone();
        off[0].state = "DISABLED".to_owned();
        assert_eq!(worst(&rules(Ok(&off))), Health::Red);
        assert_eq!(worst(&rules(Err((true, "no".to_owned())))), Health::Yellow);
    }

    #[test]
    fn karpenters_queue_is_one_beside_ours() {
        let ours = "https://sqs.eu-central-1.amazonaws.com/123456789012/lifeboat-east";
        let theirs = "https://sqs.eu-central-1.amazonaws.com/123456789012/east";
        assert_eq!(beside_ours(ours, "east"), theirs);
        assert_eq!(beside_ours(ours, theirs), theirs);
        let pods = ["`a/b`".to_owned()];
        assert_eq!(waits(&Ok(0), &pods).health, Health::Red);
        assert_eq!(waits(&Ok(5), &pods).health, Health::Green);
        assert_eq!(waits(&Err("no".to_owned()), &pods).health, Health::Yellow);
    }
}
