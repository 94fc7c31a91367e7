"""Both stacks in one language: Terraform's, as text; CloudFormation's values are written so."""

import functools
import json
import re

import hcl2

from files import MODULE, PATTERNS, STACK, kind_of

# What a reference to one of the template's resources is called in the module.
NAMES = {"Queue": "aws_sqs_queue.queue", "DeadLetterQueue": "aws_sqs_queue.dead"}
ATTRIBUTES = {"Arn": "arn", "QueueName": "name"}
# The queue's ARN where the template has to put it together.
OWN_ARN = "arn:${AWS::Partition}:sqs:${AWS::Region}:${AWS::AccountId}:lifeboat-${ClusterName}"


@functools.cache
def load(name: str) -> dict:
    with (MODULE / name).open() as file:
        return hcl2.load(file)


def blocks(name: str, kind: str) -> dict:
    """`resource` blocks by `type.name`, others by their name; attributes as text."""
    found = {}
    for block in load(name)[kind]:
        path = []
        while "__is_block__" not in block:
            ((label, block),) = block.items()
            path.append(label.strip('"'))
        found[".".join(path)] = {key: text(value) for key, value in shown(block).items()}
    return found


def shown(block: dict) -> dict:
    return {key: value for key, value in block.items() if not key.startswith("__")}


def text(value: object) -> str:
    """What `hcl2` read, as Terraform writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {text(it)}" for key, it in shown(value).items()) + "}"
    if isinstance(value, list):
        return ", ".join(text(it) for it in value)
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return resolved(value[2:-1])
    return value if isinstance(value, str) else json.dumps(value)


def resolved(expression: str) -> str:
    """The text of a local value in place of its name; the rules keep theirs."""
    if expression in ("local.tags", "local.actions"):
        (values,) = load("main.tf")["locals"]
        return text(values[expression.removeprefix("local.")])
    return expression


def snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def expression(value: object) -> str:
    """A value of the template, as the module would write it."""
    match value:
        case {"Ref": "AWS::NoValue"}:
            return "null"
        case {"Ref": name}:
            return f"{NAMES[name]}.url" if name in NAMES else f"var.{snake(name)}"
        case {"Fn::GetAtt": [name, attribute]}:
            return f"{NAMES[name]}.{ATTRIBUTES[attribute]}"
        case {"Fn::Sub": template} if template == OWN_ARN:
            return f"{NAMES['Queue']}.arn"
        case {"Fn::Sub": template}:
            return '"' + template.replace("${ClusterName}", "${var.cluster_name}") + '"'
        case {"Fn::If": [condition, then, otherwise]}:
            return f"{lacks(condition)} ? {expression(otherwise)} : {expression(then)}"
        case dict():
            pairs = (f"{key_of(key)} = {expression(it)}" for key, it in value.items())
            return "{" + ", ".join(pairs) + "}"
        case [{"Fn::GetAtt": [name, "Arn"]}, *_] if name.endswith("Rule"):
            assert sorted(kind_of(it["Fn::GetAtt"][0]) for it in value) == sorted(PATTERNS)
            return "local.rules"
        case list():
            return "[" + ", ".join(expression(it) for it in value) + "]"
        case _:
            return json.dumps(value)


def lacks(condition: str) -> str:
    (equals,) = STACK["Conditions"][condition]["Fn::Not"]
    parameter, nothing = equals["Fn::Equals"]
    return f"{expression(parameter)} == {expression(nothing)}"


def key_of(key: str) -> str:
    return key if re.fullmatch(r"\w+", key) else json.dumps(key)
