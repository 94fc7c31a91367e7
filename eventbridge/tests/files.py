"""The stack's files, read once for all tests."""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
HERE = ROOT / "eventbridge"
TEMPLATE = HERE / "cloudformation.yaml"
MODULE = HERE / "terraform"


def read(folder: str) -> dict:
    """What lies in one folder as JSON, by the file's name without its ending."""
    files = sorted((HERE / folder).glob("*.json"))
    return {file.name.removesuffix(".json"): json.loads(file.read_text()) for file in files}


PATTERNS = read("patterns")
SAMPLES = read("samples")


class Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short forms, as the long ones."""


def intrinsic(loader: Loader, suffix: str, node: yaml.Node) -> dict:
    name = suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}"
    if isinstance(node, yaml.SequenceNode):
        return {name: loader.construct_sequence(node, deep=True)}
    value = loader.construct_scalar(node)
    return {name: value.split(".", 1) if suffix == "GetAtt" else value}


Loader.add_multi_constructor("!", intrinsic)
STACK = yaml.load(TEMPLATE.read_text(), Loader)


def resources(kind: str) -> dict:
    """The template's resources of one kind, as their properties."""
    found = STACK["Resources"].items()
    return {name: it["Properties"] for name, it in found if it["Type"] == kind}


def kind_of(rule: str) -> str:
    """`SpotInterruptionRule` is about `spot-interruption`."""
    words = "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in rule)
    return words.removeprefix("-").removesuffix("-rule")
