"""One call per training step: state that leaves a Spot node in time.

    import lifeboat

    boat = lifeboat.connect()
    boat.register("model", model)
    boat.register("optimizer", optimizer)
    for step in range(boat.restore(default=0), 100_000):
        train(model, optimizer)
        boat.step(step + 1)
    boat.finish()

`Boat.step` may not return: when the node is taken, the program's state is saved in there and the
program ends with exit code 143. That is the point: it cannot run on to its end on a node from
which nothing is kept.
"""

from lifeboat._boat import Boat as Boat
from lifeboat._boat import connect as connect
from lifeboat._core import Event as Event
from lifeboat._core import Notice as Notice
from lifeboat._core import __version__ as __version__
from lifeboat._errors import AgentUnreachableError as AgentUnreachableError
from lifeboat._errors import BusyError as BusyError
from lifeboat._errors import ClosedError as ClosedError
from lifeboat._errors import DamagedError as DamagedError
from lifeboat._errors import FileError as FileError
from lifeboat._errors import KeyInUseError as KeyInUseError
from lifeboat._errors import LifeboatError as LifeboatError
from lifeboat._errors import MissingError as MissingError
from lifeboat._errors import NameTakenError as NameTakenError
from lifeboat._errors import NotRestoredError as NotRestoredError
from lifeboat._errors import NotSavedError as NotSavedError
from lifeboat._errors import NotTakenError as NotTakenError
from lifeboat._errors import OtherShapeError as OtherShapeError
from lifeboat._errors import OtherWorldError as OtherWorldError
from lifeboat._errors import PickleRefusedError as PickleRefusedError
from lifeboat._errors import RefusedError as RefusedError
from lifeboat._errors import SettingError as SettingError
from lifeboat._errors import SupersededError as SupersededError
from lifeboat._errors import SystemRefusedError as SystemRefusedError
from lifeboat._errors import TooLateError as TooLateError
from lifeboat._errors import UnsupportedStateError as UnsupportedStateError
from lifeboat._loader import Loader as Loader
from lifeboat._rng import Rng as Rng
from lifeboat._rng import rng as rng
from lifeboat._state import Pickled as Pickled
from lifeboat._state import pickled as pickled
