"""What can be saved comes back as it was, and what cannot is refused by its path."""

import array
import collections
import enum
import math
from typing import Any

import lifeboat
import numpy as np
import pytest
from conftest import Connect


def again(connect: Connect, before: object, after: object, **settings: Any) -> None:
    """Saves what `before` is, and restores it into `after`."""
    boat = connect(**settings)
    boat.register("state", before)
    boat.step(7)
    assert boat.save() is not None
    boat.close()
    boat = connect(**settings)
    boat.register("state", after)
    assert boat.restore() == 7
    boat.close()


@pytest.mark.parametrize("dtype", [*"?bhilqBHILQefdFD"])
def test_an_array_of_each_type_comes_back_to_the_bit(connect: Connect, dtype: str) -> None:
    raw = np.random.default_rng(1).integers(0, 2, 40 * np.dtype(dtype).itemsize, dtype=np.uint8)
    saved = raw.view(dtype).reshape(5, 8)
    fresh = np.zeros_like(saved)
    again(connect, saved, fresh)
    assert fresh.tobytes() == saved.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.arange(24.0).reshape(4, 6)[:, ::2],
        lambda: np.asfortranarray(np.arange(24.0).reshape(4, 6)),
        lambda: np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
        lambda: np.full((), 3.5),
        lambda: np.empty((0, 3)),
    ],
)
def test_an_array_of_any_layout_is_filled_in_its_place(connect: Connect, make: Any) -> None:
    saved, fresh = make(), make()
    fresh[...] = -1
    again(connect, saved, fresh)
    np.testing.assert_array_equal(fresh, make())


@pytest.mark.parametrize(
    "make",
    [
        lambda: bytearray(b"lifeboat"),
        lambda: array.array("d", [1.5, -2.5]),
        lambda: memoryview(bytearray(range(12))).cast("B", (3, 4)),
        lambda: bytearray(),
    ],
)
def test_a_buffer_is_filled_in_its_place(connect: Connect, make: Any) -> None:
    fresh = make()
    view = memoryview(fresh).cast("B") if len(fresh) else memoryview(bytearray())
    view[:] = bytes(len(view))
    view.release()
    again(connect, make(), fresh)
    assert fresh == make()


def test_a_bytearray_may_grow_while_it_is_registered(connect: Connect) -> None:
    boat, seen = connect(), bytearray(b"ab")
    boat.register("seen", {"bytes": seen})
    seen += b"cd"
    boat.step(1)
    boat.save()
    seen.clear()
    boat.restore()
    assert seen == b"abcd"


VALUES: dict[Any, Any] = {
    "none": None,
    "flags": [True, False],
    "numbers": (0, -1, 2**63 - 1, 2**63, -(2**200)),
    "floats": [0.1, -0.0, math.inf, -math.inf, 5e-324],
    "text": "ÿ✓\n",
    "bytes": b"\x00\xff",
    "nested": {"deep": [{"er": ((),)}], 3: "three", None: 1, 1.5: 2, b"k": True, False: 0},
    "scalar": np.float32(0.1),
    "ordered": collections.OrderedDict(b=1, a=2),
    "empty": [{}, [], ()],
}


def test_values_come_back_as_they_were(connect: Connect) -> None:
    fresh: dict[Any, Any] = {}
    again(connect, VALUES, fresh)
    assert fresh == VALUES
    assert repr(list(fresh)) == repr(list(VALUES)), "in their order"
    assert type(fresh["numbers"]) is tuple and type(fresh["flags"]) is list
    assert type(fresh["scalar"]) is np.float32
    assert math.copysign(1, fresh["floats"][1]) == -1
    assert list(fresh["ordered"]) == ["b", "a"]


def test_a_dict_stays_the_same_object_with_the_same_arrays(connect: Connect) -> None:
    weights, inner = np.zeros(3), {"lost": 1, "kept": 2}
    state = {"weights": weights, "inner": inner, "rows": [np.zeros(2)], "gone": 1}
    rows = state["rows"]
    again(
        connect,
        {"weights": np.ones(3), "inner": {"kept": 5}, "rows": [np.ones(2), np.ones(1)], "new": 9},
        state,
    )
    assert state["weights"] is weights and weights.tolist() == [1, 1, 1]
    assert state["inner"] is inner and inner == {"kept": 5}
    assert state["rows"] is rows and [row.tolist() for row in rows] == [[1, 1], [1]]
    assert state["new"] == 9 and "gone" not in state


def test_one_array_under_two_names_is_saved_once_and_is_one_again(connect: Connect) -> None:
    tied = np.arange(4.0)
    fresh: dict[str, Any] = {}
    again(connect, {"embedding": tied, "head": tied, "view": tied[:2]}, fresh)
    assert fresh["embedding"] is fresh["head"]
    assert fresh["view"].tolist() == [0, 1]


def test_names_that_look_alike_are_kept_apart(connect: Connect) -> None:
    state = {0: np.zeros(1), "0": np.ones(1), "a/b": np.full(1, 2.0), "a": {"b": np.full(1, 3.0)}}
    fresh: dict[Any, Any] = {}
    again(connect, state, fresh)
    assert {key: one for key, one in fresh.items() if key != "a"} == {0: 0, "0": 1, "a/b": 2}
    assert fresh["a"]["b"] == 3


class Model:
    """An object of the program's own."""

    def __init__(self, size: int = 3) -> None:
        self.weights = np.zeros(size)
        self.steps: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self.weights, **self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights = state.pop("weights")
        self.steps = state


def test_an_object_takes_its_own_state_that_grew_meanwhile(connect: Connect) -> None:
    saved, fresh = Model(), Model()
    saved.weights += 2
    saved.steps = {"moments": {0: np.ones(2)}, "lr": 0.1}
    own = fresh.weights
    again(connect, {"model": saved, "epoch": 3}, {"model": fresh, "epoch": 0})
    assert fresh.weights is own and own.tolist() == [2, 2, 2]
    assert fresh.steps["moments"][0].tolist() == [1, 1] and fresh.steps["lr"] == 0.1


def test_an_object_decides_about_another_shape_itself(connect: Connect) -> None:
    fresh = Model(2)
    again(connect, Model(5), fresh)
    assert fresh.weights.shape == (5,)


def test_an_object_that_refuses_is_named(connect: Connect) -> None:
    class Strict(Model):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("moments")

    with pytest.raises(lifeboat.NotTakenError, match="`state` does not take.*moments") as caught:
        again(connect, Model(), Strict())
    assert isinstance(caught.value.__cause__, KeyError)


class Color(enum.IntEnum):
    RED = 1


DEEP: list[Any] = []
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("state", "path", "words"),
    [
        ({"a": [1, {2}]}, "state/a/1", "is a set.*leave it out"),
        ({"a": lambda: 1}, "state/a", "is a function"),
        ({"a": Color.RED}, "state/a", "is a Color"),
        ({"a": collections.namedtuple("Point", "x")(1)}, "state/a", "is a Point"),
        ({"a": {(1, 2): 3}}, "state/a", "has a tuple for a key"),
        ({"a": {"lifeboat.x": 3}}, "state/a", "which Lifeboat uses itself"),
        ({"a": "\ud800"}, "state/a", "UTF-8"),
        ({"a": np.array([object()])}, "state/a", "array of object"),
        ({"a": np.zeros(2, ">f4")}, "state/a", "little-endian"),
        ({"a": np.array(["x"])}, "state/a", "array of <U1"),
        ({"a": np.datetime64(1, "s")}, "state/a", "NumPy scalar"),
        ({"a": np.ma.array([1], mask=[0])}, "state/a", "masked"),
        ({"a": memoryview(bytes(8))[::2]}, "state/a", "scattered"),
        (DEEP, "state" + "/0" * 33, "nested deeper"),
        (0.1, "state", "is a float, which cannot be filled in place"),
        ((np.zeros(1),), "state", "is a tuple"),
        ("text", "state", "is a str"),
        (object(), "state", "is a object"),
        (np.broadcast_to(np.zeros(1), (3,)), "state", "read-only"),
        (memoryview(b"x"), "state", "read-only"),
        ({"a": lifeboat.pickled({1})}, "state/a", "allow_pickle=True"),
    ],
)
def test_what_cannot_be_saved_is_refused_by_path_at_once(
    connect: Connect, state: object, path: str, words: str
) -> None:
    with pytest.raises(lifeboat.UnsupportedStateError, match=words) as caught:
        connect().register("state", state)
    assert caught.value.path == path
    assert isinstance(caught.value, (TypeError, lifeboat.LifeboatError))


def test_what_comes_in_later_is_refused_at_the_save(connect: Connect) -> None:
    boat, state = connect(), dict[str, Any]()
    boat.register("state", state)
    state["late"] = {1}
    boat.step(1)
    with pytest.raises(lifeboat.UnsupportedStateError, match="`state/late` is a set"):
        boat.save()
    del state["late"]
    assert boat.save() == 1, "and the boat is none the worse"


def test_an_exception_of_the_program_passes_as_it_is(connect: Connect) -> None:
    class Broken(Model):
        broken = False

        def state_dict(self) -> dict[str, Any]:
            if self.broken:
                raise ZeroDivisionError("of my own")
            return {}

    boat, model = connect(), Broken()
    boat.register("model", model)
    model.broken = True
    with pytest.raises(ZeroDivisionError, match="of my own"):
        boat.save()


@pytest.mark.parametrize(
    ("saved", "fresh", "error", "words"),
    [
        (np.zeros(3), np.zeros(4), "OtherShapeError", r"`state` is f64 \[4\] here and f64 \[3\]"),
        (np.zeros(3), np.zeros(3, "f4"), "OtherShapeError", r"f32 \[3\] here and f64"),
        ({"w": np.zeros(3)}, {"w": np.zeros((3, 1))}, "OtherShapeError", "`state/w` is"),
        ({"w": np.zeros(3)}, {"w": np.zeros(3), "b": np.zeros(1)}, "MissingError", "`state/b`"),
        ({}, {"deep": [np.zeros(1)]}, "MissingError", "`state/deep/0`"),
        ({"w": np.zeros(3)}, np.zeros(3), "MissingError", "that is one tensor"),
        ({"m": Model()}, {"m": 3}, "NotTakenError", "an object in the checkpoint and a int here"),
        ({"m": Model()}, {}, "NotTakenError", "and nothing here"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    connect: Connect, saved: Any, fresh: Any, error: str, words: str
) -> None:
    before = repr(fresh)
    with pytest.raises(getattr(lifeboat, error), match=words):
        again(connect, saved, fresh)
    assert repr(fresh) == before


def test_pickles_only_where_they_are_allowed(connect: Connect) -> None:
    saved, fresh = lifeboat.pickled({1, 2}), lifeboat.pickled(None)
    again(connect, saved, fresh, allow_pickle=True)
    assert fresh.value == {1, 2}
    boat = connect()
    boat.register("state", {})
    with pytest.raises(lifeboat.PickleRefusedError, match="allow_pickle=True"):
        boat.restore()


def test_a_pickle_may_stand_anywhere(connect: Connect) -> None:
    fresh: dict[str, Any] = {}
    again(connect, {"sampler": [lifeboat.pickled(Color.RED)]}, fresh, allow_pickle=True)
    assert fresh["sampler"][0].value is Color.RED
    with pytest.raises(lifeboat.UnsupportedStateError, match="cannot be pickled"):
        connect(allow_pickle=True).register("other", lifeboat.pickled(lambda: 1))


def test_names_are_one_of_a_kind_and_none_within_another(connect: Connect) -> None:
    boat = connect()
    boat.register("model", {})
    with pytest.raises(lifeboat.NameTakenError, match="registered already"):
        boat.register("model", {})
    with pytest.raises(lifeboat.NameTakenError, match="lies within `model`"):
        boat.register("model/head", np.zeros(1))


def test_many_regions_of_many_sizes(connect: Connect) -> None:
    numbers = np.random.default_rng(3)
    sizes = [0, 1, 3, 4096, 100_000, *numbers.integers(0, 5000, 300)]
    saved = {f"w{at}": numbers.random(size, dtype=np.float32) for at, size in enumerate(sizes)}
    fresh = {name: np.zeros_like(one) for name, one in saved.items()}
    again(connect, saved, fresh)
    assert all((fresh[name] == one).all() for name, one in saved.items())
