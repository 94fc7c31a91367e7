"""State that a framework writes to a folder: handed over as files."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lifeboat
import pytest
from conftest import Connect
from peer import PATIENCE, Line, Peer


class Framework:
    """Something that saves itself."""

    def __init__(self, **state: Any) -> None:
        self.state = state
        self.folders: list[str] = []

    def save(self, folder: str) -> None:
        self.folders.append(folder)
        top = Path(folder)
        assert not any(top.iterdir())
        (top / "shards/0").mkdir(parents=True)
        (top / "empty").mkdir()
        (top / "nothing").touch()
        (top / "shards/0/weights.bin").write_bytes(bytes(range(256)) * 3000)
        (top / "state.json").write_text(json.dumps(self.state))

    def load(self, folder: str) -> None:
        self.folders.append(folder)
        top = Path(folder)
        assert (top / "empty").is_dir() and (top / "nothing").read_bytes() == b""
        assert (top / "shards/0/weights.bin").read_bytes() == bytes(range(256)) * 3000
        self.state = json.loads((top / "state.json").read_text())

    def register(self, boat: lifeboat.Boat, **more: Any) -> None:
        boat.register_files(save=self.save, load=self.load, **more)


def test_what_was_written_to_a_folder_is_read_from_one(connect: Connect, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    boat, saved = connect(), Framework(step=7)
    saved.register(boat, scratch=scratch)
    assert saved.folders == [], "nothing is written when it is registered"
    boat.step(7)
    boat.save()
    boat.close()

    boat, fresh = connect(), Framework()
    fresh.register(boat, scratch=scratch)
    assert boat.restore() == 7 and fresh.state == {"step": 7}
    folders = saved.folders + fresh.folders
    assert len(set(folders)) == 2 and all(Path(one).parent == scratch for one in folders)
    assert not any(scratch.iterdir()), "no folder is left"


def test_files_go_by_descriptor_and_are_unlinked_by_then(peer: Peer) -> None:
    framework = Framework(step=1)
    seen: dict[str, bytes] = {}
    stepped = threading.Event()

    def play(line: Line) -> None:
        assert stepped.wait(PATIENCE)
        line.ask(7, "insurance")
        begin = line.hear("save-begin")
        names = [region["name"] for region in begin["layout"]["regions"]]
        begins = [0]
        for region in begin["layout"]["regions"]:
            begins.append(begins[-1] + region["bytes"])
        for piece in line.hear("given")["pieces"]:
            number = line.descriptors[piece["descriptor"]]
            assert os.fstat(number).st_nlink == 0
            name = names[
                begins.index(piece["offset"], names.index("framework/shards/0/weights.bin"))
            ]
            seen[name] = os.pread(number, piece["bytes"], 0)
        line.hear("save-end")
        line.say("taken", save=7)
        line.say("durable", save=7, epoch=1, step=1)

    peer.plays(play)
    boat = lifeboat.connect(socket=peer.path)
    framework.register(boat, name="framework")
    boat.step(1)
    stepped.set()
    end = time.monotonic() + PATIENCE
    while "framework/state.json" not in seen and time.monotonic() < end:
        boat.step(1)
        time.sleep(0.01)
    boat.close()
    assert seen["framework/state.json"] == b'{"step": 1}'
    assert seen["framework/shards/0/weights.bin"] == bytes(range(256)) * 3000
    assert not Path(framework.folders[0]).exists()


def failing(_: str) -> None:
    raise RuntimeError("no space")


def nothing(_: str) -> None:
    pass


def linking(folder: str) -> None:
    (Path(folder) / "link").symlink_to("/etc/hostname")


@pytest.mark.parametrize(
    ("save", "error", "words"),
    [
        (failing, lifeboat.NotSavedError, "`own` was not saved: `failing` raised RuntimeError: no"),
        (nothing, lifeboat.NotSavedError, "`save` left no file in the folder"),
        (linking, lifeboat.UnsupportedStateError, "`own/link` is neither a file nor a folder"),
    ],
)
def test_a_save_that_does_not_work_is_said(
    connect: Connect, save: Callable[[str], None], error: type[Exception], words: str
) -> None:
    boat = connect()
    boat.register_files(name="own", save=save, load=nothing)
    boat.step(1)
    with pytest.raises(error, match=words):
        boat.save()


def test_a_folder_that_cannot_be_made_is_said(connect: Connect) -> None:
    boat = connect()
    Framework().register(boat, scratch="/proc/none")
    boat.step(1)
    with pytest.raises(lifeboat.FileError, match="register_files.*scratch="):
        boat.save()


def saved(connect: Connect) -> None:
    boat = connect()
    Framework().register(boat)
    boat.step(1)
    boat.save()
    boat.close()


def test_a_load_that_does_not_work_is_said(connect: Connect) -> None:
    saved(connect)
    boat = connect()
    boat.register_files(save=nothing, load=failing)
    words = "`files` does not take what was saved: `failing` raised RuntimeError: no space"
    with pytest.raises(lifeboat.NotTakenError, match=words) as raised:
        boat.restore()
    assert isinstance(raised.value.__cause__, RuntimeError)


def test_what_was_saved_as_objects_is_not_taken_as_files(connect: Connect) -> None:
    boat = connect()
    boat.register("files", {"step": 1})
    boat.step(1)
    boat.save()
    boat.close()
    boat = connect()
    Framework().register(boat)
    with pytest.raises(lifeboat.NotTakenError, match="`files` is no files in the checkpoint"):
        boat.restore()


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", ""])
def test_a_checkpoint_cannot_name_a_file_outside_the_folder(
    connect: Connect, peer: Peer, name: str
) -> None:
    def play(line: Line) -> None:
        line.hear("restore")
        region = {"name": f"files/{name}", "dtype": "u8", "shape": [4], "bytes": 4}
        tree = {"map": [[{"str": "files"}, {"map": [[{"str": "lifeboat.files"}, {"list": []}]]}]]}
        layout = {"regions": [region], "tree": tree}
        line.say("restore-offer", restore=1, epoch=1, step=1, world=1, layout=layout)

    peer.plays(play)
    boat = connect(socket=peer.path)
    Framework().register(boat)
    with pytest.raises(lifeboat.NotTakenError, match="is not the name of a file"):
        boat.restore()
