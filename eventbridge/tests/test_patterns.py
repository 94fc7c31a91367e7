"""Each pattern takes its own events and no others.

The matcher is moto's. It knows less than EventBridge, so the patterns may use nothing but exact
words, which both read alike: a test keeps that, too.
"""

import copy
import json

import pytest
from moto.events.models import EventPattern

from files import PATTERNS, SAMPLES


def takers(event: dict) -> list[str]:
    patterns = {name: EventPattern.load(json.dumps(it)) for name, it in PATTERNS.items()}
    return [name for name, pattern in patterns.items() if pattern.matches_event(event)]


def words(pattern: object) -> list[object]:
    if isinstance(pattern, dict):
        return [word for value in pattern.values() for word in words(value)]
    assert isinstance(pattern, list)
    return pattern


def changed(event: dict, path: str, value: str) -> dict:
    event = copy.deepcopy(event)
    *above, last = path.split(".")
    place = event
    for key in above:
        place = place[key]
    place[last] = value
    return event


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_exact_words(name):
    assert all(isinstance(word, str) for word in words(PATTERNS[name]))


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_taken_by_its_own_pattern_alone(name):
    assert takers(SAMPLES[name]) == [name.split(".")[0]]


def test_each_pattern_has_a_sample():
    assert {name.split(".")[0] for name in SAMPLES} == set(PATTERNS)


@pytest.mark.parametrize("state", ["stopping", "stopped", "shutting-down", "terminated"])
def test_every_state_that_leaves_is_taken(state):
    assert takers(changed(SAMPLES["state-change"], "detail.state", state)) == ["state-change"]


# What else these services say, by AWS's documentation, or somebody else could.
OTHERS = [
    ("state-change", "detail.state", "pending"),
    ("state-change", "detail.state", "running"),
    ("scheduled-change", "detail.eventTypeCategory", "issue"),
    ("scheduled-change", "detail.eventTypeCategory", "accountNotification"),
    ("scheduled-change", "detail.service", "LAMBDA"),
    ("scheduled-change", "detail-type", "AWS Health Abuse Event"),
    ("spot-interruption", "detail-type", "EC2 Spot Instance Request Fulfillment"),
    ("capacity-reservation", "detail-type", "Capacity Block Reservation Expiration Warning"),
    (
        "capacity-reservation",
        "detail-type",
        "EC2 Interruptible Capacity Reservation Allocation Reclamation Completed",
    ),
    *((name, "source", "my.app") for name in PATTERNS),
]


@pytest.mark.parametrize(("name", "path", "value"), OTHERS)
def test_nothing_else_is_taken(name, path, value):
    assert takers(changed(SAMPLES[name], path, value)) == []
