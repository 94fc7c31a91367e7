"""Generators go on where they were."""

import random
from typing import Any

import lifeboat
import numpy as np
import pytest
from conftest import Connect


def test_shared_generators_draw_what_they_would_have_drawn(connect: Connect) -> None:
    boat, own = connect(), np.random.default_rng(5)
    boat.register("rng", lifeboat.rng(own))
    own.standard_normal(3)
    random.gauss(0, 1)
    np.random.standard_normal(3)
    boat.step(1)
    boat.save()

    def draw() -> Any:
        floats = [random.gauss(0, 1), random.random()]
        return floats, np.random.standard_normal(4).tolist(), own.random(4).tolist()

    expected = draw()
    random.seed(0)
    assert boat.restore() == 1
    assert draw() == expected


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: random.Random(1), lambda one: one.gauss(0, 1)),
        (lambda: np.random.default_rng(1), lambda one: one.random()),
        (lambda: np.random.Generator(np.random.MT19937(1)), lambda one: one.random()),
        (lambda: np.random.Generator(np.random.Philox(1)), lambda one: one.random()),
        (lambda: np.random.Generator(np.random.SFC64(1)), lambda one: one.integers(1 << 40)),
        (lambda: np.random.RandomState(1), lambda one: one.standard_normal()),
    ],
)
def test_any_generator_can_be_registered(connect: Connect, make: Any, draw: Any) -> None:
    boat, generator = connect(), make()
    boat.register("state", {"loader": [generator]})
    draw(generator)
    boat.step(1)
    boat.save()
    expected = [draw(generator) for _ in range(5)]
    boat.restore()
    assert [draw(generator) for _ in range(5)] == expected


def test_what_cannot_be_repeated_is_refused(connect: Connect) -> None:
    with pytest.raises(lifeboat.UnsupportedStateError):
        connect().register("rng", random.SystemRandom())
    with pytest.raises(lifeboat.UnsupportedStateError, match="no random number generator"):
        lifeboat.rng(object())
