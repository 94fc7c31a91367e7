"""Random number generators as state: what they will draw is what they would have drawn."""

import random
import sys
from typing import Any

from lifeboat._errors import NotTakenError, UnsupportedStateError


def rng(*generators: object) -> "Rng":
    """The generators that Python, NumPy and PyTorch share, and these.

    NumPy's and PyTorch's only if the program imported them, PyTorch's of each GPU too.
    """
    return Rng(generators, shared=True)


class Rng:
    """Random number generators, to be registered."""

    def __init__(self, generators: tuple[object, ...], *, shared: bool) -> None:
        self._generators = generators
        self._shared = shared
        for generator in generators:
            if not is_generator(generator):
                kind = type(generator).__name__
                raise UnsupportedStateError(f"a {kind} is no random number generator", "")

    def state_dict(self) -> dict[str, Any]:
        """What each will draw from."""
        state: dict[str, Any] = {"own": [_state(generator) for generator in self._generators]}
        if self._shared:
            state["python"] = random.getstate()
            numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
            if numpy is not None:
                state["numpy"] = _state_of_numpy(numpy.random.get_state(legacy=False))
            if torch is not None:
                state["torch"] = torch.get_rng_state()
                if torch.cuda.is_available() and torch.cuda.is_initialized():
                    state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts each back to where it was."""
        if len(state["own"]) != len(self._generators):
            count, own = len(state["own"]), len(self._generators)
            raise NotTakenError(f"checkpoint has {count} generators of its own, here are {own}")
        for generator, saved in zip(self._generators, state["own"], strict=True):
            _put(generator, saved)
        if "python" in state:
            random.setstate(state["python"])
        if "numpy" in state:
            _imported("numpy").random.set_state(state["numpy"])
        if "torch" in state:
            _imported("torch").set_rng_state(state["torch"].cpu())
        if "cuda" in state:
            _imported("torch").cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


def is_generator(value: object) -> bool:
    """Whether it is one that is known here."""
    if isinstance(value, random.Random):
        return not isinstance(value, random.SystemRandom)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None and isinstance(
        value, (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
    ):
        return True
    return torch is not None and isinstance(value, torch.Generator)


def _state(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return _state_of_numpy(generator.bit_generator.state)
    if hasattr(generator, "get_state"):
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(generator, numpy.random.RandomState):
            return _state_of_numpy(generator.get_state(legacy=False))
        return generator.get_state()
    return _state_of_numpy(generator.state)


def _put(generator: Any, saved: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(saved)
    elif hasattr(generator, "bit_generator"):
        generator.bit_generator.state = saved
    elif hasattr(generator, "set_state"):
        generator.set_state(saved)
    else:
        generator.state = saved


def _state_of_numpy(state: Any) -> Any:
    """In numbers of Python, which are read from anywhere without NumPy's own classes."""
    if isinstance(state, dict):
        return {key: _state_of_numpy(value) for key, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


def _imported(name: str) -> Any:
    module = sys.modules.get(name)
    if module is None:
        raise NotTakenError(
            f"checkpoint has the state of {name}'s generator: import {name} before restore()"
        )
    return module
