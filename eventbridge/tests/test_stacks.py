"""The two stacks: correct by themselves, the same as each other, and fit for the controller."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from files import HERE, MODULE, PATTERNS, ROOT, STACK, TEMPLATE, kind_of, resources
from hcl import NAMES, blocks, expression, load, snake, text

QUEUE = {
    "QueueName": "name",
    "MessageRetentionPeriod": "message_retention_seconds",
    "VisibilityTimeout": "visibility_timeout_seconds",
    "ReceiveMessageWaitTimeSeconds": "receive_wait_time_seconds",
    "SqsManagedSseEnabled": "sqs_managed_sse_enabled",
    "KmsMasterKeyId": "kms_master_key_id",
    "RedrivePolicy": "redrive_policy",
    "Tags": "tags",
}
# Terraform tags what a stack tags by itself.
UNTAGGED = {"tags"}


def test_the_template_has_no_findings():
    found = subprocess.run(["cfn-lint", "--", TEMPLATE], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_template_repeats_the_patterns():
    rules = resources("AWS::Events::Rule")
    assert {kind_of(name): rule["EventPattern"] for name, rule in rules.items()} == PATTERNS


@pytest.mark.parametrize("name", NAMES)
def test_queues_are_the_same(name):
    ours = resources("AWS::SQS::Queue")[name]
    theirs = blocks("main.tf", "resource")[NAMES[name]]
    written = {}
    for key, value in ours.items():
        if key == "RedriveAllowPolicy":
            continue
        if key == "Tags":
            value = {tag["Key"]: tag["Value"] for tag in value}
        said = expression(value)
        written[QUEUE[key]] = f"jsonencode({said})" if key == "RedrivePolicy" else said
    assert written == theirs


def test_only_our_queue_has_these_dead_letters():
    ours = resources("AWS::SQS::Queue")["DeadLetterQueue"]["RedriveAllowPolicy"]
    theirs = blocks("main.tf", "resource")["aws_sqs_queue_redrive_allow_policy.dead"]
    assert theirs == {
        "queue_url": "aws_sqs_queue.dead.id",
        "redrive_allow_policy": f"jsonencode({expression(ours)})",
    }


@pytest.mark.parametrize("name", NAMES)
def test_policies_are_the_same_and_let_in_our_rules_alone(name):
    ours = resources("AWS::SQS::QueuePolicy")[f"{name}Policy"]
    theirs = blocks("main.tf", "resource")[NAMES[name].replace("_queue.", "_queue_policy.")]
    assert ours["Queues"] == [{"Ref": name}]
    document = ours["PolicyDocument"]
    assert theirs == {
        "queue_url": f"{NAMES[name]}.id",
        "policy": f"jsonencode({expression(document)})",
    }
    allow, deny = document["Statement"]
    arns = [{"Fn::GetAtt": [rule, "Arn"]} for rule in resources("AWS::Events::Rule")]
    assert allow["Effect"] == "Allow" and allow["Principal"] == {"Service": "events.amazonaws.com"}
    assert allow["Action"] == "sqs:SendMessage"
    assert allow["Condition"] == {"ArnEquals": {"aws:SourceArn": arns}}
    assert deny["Effect"] == "Deny" and deny["Principal"] == "*" and deny["Action"] == "sqs:*"
    assert deny["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}


def test_rules_are_the_same():
    (values,) = load("main.tf")["locals"]
    kinds = json.loads(re.fullmatch(r"toset\((.*)\)", text(values["kinds"])).group(1))
    rules = resources("AWS::Events::Rule")
    assert sorted(kinds) == sorted(kind_of(name) for name in rules)
    each = text(values["rules"])
    assert each == "[for kind in local.kinds : aws_cloudwatch_event_rule.kind[kind].arn]"
    theirs = blocks("main.tf", "resource")
    for name, rule in rules.items():
        kind = kind_of(name)
        (target,) = rule.pop("Targets")
        rule = {key: expression(value) for key, value in rule.items()}
        terraform = of_kind(theirs["aws_cloudwatch_event_rule.kind"], kind)
        path = re.fullmatch(r'file\("\$\{path\.module}/(.*)"\)', terraform.pop("event_pattern"))
        pattern = json.loads((MODULE / path.group(1)).read_text())
        assert expression(pattern) == rule.pop("EventPattern")
        assert terraform.pop("name_prefix") == f'"lifeboat-{kind}-"'
        assert terraform == {"description": rule.pop("Description")} and not rule
        assert of_kind(theirs["aws_cloudwatch_event_target.kind"], kind) == {
            "rule": f"aws_cloudwatch_event_rule.kind[{kind}].name",
            "target_id": expression(target["Id"]),
            "arn": expression(target["Arn"]),
            "retry_policy": renamed(target["RetryPolicy"]),
            "dead_letter_config": renamed(target["DeadLetterConfig"]),
        }


def of_kind(block: dict, kind: str) -> dict:
    """One of those that `for_each` makes."""
    own = {key: value for key, value in block.items() if key not in UNTAGGED}
    assert own.pop("for_each") == "local.kinds"
    own = {key: value.replace("${each.key}", kind) for key, value in own.items()}
    return {key: value.replace("each.key", kind) for key, value in own.items()}


def renamed(properties: dict) -> str:
    return expression({snake(key): value for key, value in properties.items()})


@pytest.mark.parametrize(
    ("name", "block"),
    [("OldestMessageAlarm", "oldest_message"), ("DeadLetterAlarm", "dead_letters")],
)
def test_alarms_are_the_same(name, block):
    ours = dict(resources("AWS::CloudWatch::Alarm")[name])
    ours["Dimensions"] = {it["Name"]: it["Value"] for it in ours["Dimensions"]}
    ours["OkActions"] = ours.pop("OKActions")
    theirs = blocks("main.tf", "resource")[f"aws_cloudwatch_metric_alarm.{block}"]
    theirs = {key: value for key, value in theirs.items() if key not in UNTAGGED}
    assert {snake(key): expression(value) for key, value in ours.items()} == theirs


def test_neither_stack_has_more():
    assert sorted(it["Type"] for it in STACK["Resources"].values()) == sorted(
        2 * ["AWS::SQS::Queue", "AWS::SQS::QueuePolicy", "AWS::CloudWatch::Alarm"]
        + len(PATTERNS) * ["AWS::Events::Rule"]
    )
    assert set(blocks("main.tf", "resource")) == {
        "aws_sqs_queue.queue",
        "aws_sqs_queue.dead",
        "aws_sqs_queue_redrive_allow_policy.dead",
        "aws_sqs_queue_policy.queue",
        "aws_sqs_queue_policy.dead",
        "aws_cloudwatch_event_rule.kind",
        "aws_cloudwatch_event_target.kind",
        "aws_cloudwatch_metric_alarm.oldest_message",
        "aws_cloudwatch_metric_alarm.dead_letters",
    }


def test_parameters_are_the_same():
    theirs = blocks("variables.tf", "variable")
    assert set(theirs) == {snake(name) for name in STACK["Parameters"]}
    for name, ours in STACK["Parameters"].items():
        variable = theirs[snake(name)]
        assert variable["type"] == ours["Type"].lower()
        assert variable["description"] == expression(ours["Description"])
        default = expression(ours["Default"]) if "Default" in ours else None
        assert variable.get("default") == default
        assert (
            f"condition = {condition(snake(name), ours)}, error_message" in variable["validation"]
        )


def condition(name: str, parameter: dict) -> str:
    match parameter:
        case {"AllowedPattern": pattern}:
            return f'can(regex("^{pattern}$", var.{name}))'
        case {"AllowedValues": values}:
            return f"contains({json.dumps(values)}, var.{name})"
        case {"MinValue": least, "MaxValue": most}:
            return f"var.{name} >= {least} && var.{name} <= {most}"
    raise AssertionError(f"nothing limits {name}")


def test_outputs_are_the_same():
    theirs = blocks("outputs.tf", "output")
    ours = STACK["Outputs"].items()
    assert theirs == {
        snake(name): {key.lower(): expression(value) for key, value in it.items()}
        for name, it in ours
    }


def test_the_module_is_formatted_and_valid(tmp_path):
    terraform = shutil.which("terraform")
    if not terraform:
        pytest.skip("terraform is not installed; the module was compared with the template")
    plugins = Path("~/.terraform.d/plugins").expanduser()
    settings = tmp_path / "terraformrc"
    mirror = json.dumps(str(plugins))
    settings.write_text(f"provider_installation {{ filesystem_mirror {{ path = {mirror} }} }}\n")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "CHECKPOINT_DISABLE": "1",
            "TF_CLI_CONFIG_FILE": str(settings),
            "TF_DATA_DIR": str(tmp_path / "data"),
        }
        return subprocess.run(
            [terraform, *arguments],
            cwd=module,
            env=environment,
            capture_output=True,
            text=True,
        )

    # A copy, because `init` writes a lock file.
    module = tmp_path / "eventbridge" / "terraform"
    shutil.copytree(MODULE, module)
    shutil.copytree(HERE / "patterns", module.parent / "patterns")
    formatted = run("fmt", "-check", "-diff", "-no-color")
    assert formatted.returncode == 0, formatted.stdout
    if run("init", "-backend=false", "-input=false").returncode:
        pytest.skip(
            "`terraform fmt` is content; `validate` needs the AWS provider, which is not here"
        )
    valid = run("validate", "-no-color")
    assert valid.returncode == 0, valid.stderr


def test_the_queue_fits_the_controller():
    rows = (ROOT / "docs/configuration.md").read_text().splitlines()
    cells = (row.split("|") for row in rows if row.startswith("| `queue."))
    defaults = {cell[1].strip(" `"): (cell[2].strip(" `"), cell[3]) for cell in cells}
    queue = resources("AWS::SQS::Queue")["Queue"]
    parameters = STACK["Parameters"]
    visibility, allowed = defaults["queue.visibility"]
    assert visibility == f"{parameters['VisibilitySeconds']['Default']}s"
    assert f"{parameters['VisibilitySeconds']['MinValue']}s to" in allowed
    assert defaults["queue.wait"][0] == f"{queue['ReceiveMessageWaitTimeSeconds']}s"
    intake = (ROOT / "src/controller/intake.rs").read_text()
    patience = int(re.search(r"RECEIVES_UNKNOWN: u32 = (\d+);", intake).group(1))
    assert parameters["MaxReceives"]["MinValue"] > patience
    assert parameters["OldestMessageSeconds"]["MinValue"] >= patience * 30
    dead = resources("AWS::SQS::Queue")["DeadLetterQueue"]["MessageRetentionPeriod"]
    assert max(parameters["RetentionSeconds"]["AllowedValues"]) < dead
