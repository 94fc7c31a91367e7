"""The agent's end of the line, spoken by hand over a real socket."""

import contextlib
import fcntl
import json
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0
HEADER = 4096  # of a ring, before its slots
_ADD_SEALS, _SEALS = 1033, 1 | 2 | 4  # F_ADD_SEALS; SEAL, SHRINK, GROW
_QUIET = ("progress", "register")

Frame = dict[str, Any]


class Peer:
    """A socket like that of a pod."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "agent.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self.path))
        self._socket.listen()
        self._socket.settimeout(PATIENCE)

    def accept(self) -> tuple["Line", Frame]:
        stream, _ = self._socket.accept()
        line = Line(stream)
        return line, line.hear("hello")

    def welcome(self, **more: Any) -> tuple["Line", Frame]:
        line, hello = self.accept()
        line.say("welcome", version=hello["version"], agent="peer", **more)
        return line, hello

    def answers(self, *frames: Frame) -> threading.Thread:
        """Takes one connection beside the test, and says this to it."""

        def answer() -> None:
            line, _ = self.accept()
            for frame in frames:
                line.say(**frame)
            line.read_to_end()

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        return thread

    def plays(self, play: Callable[["Line"], None]) -> threading.Thread:
        """Takes one connection beside the test, and plays on."""

        def played() -> None:
            line, _ = self.welcome()
            play(line)
            line.read_to_end()

        thread = threading.Thread(target=played, daemon=True)
        thread.start()
        return thread


class Line:
    """A connection of one rank."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        stream.settimeout(PATIENCE)
        self._bytes = b""
        self.descriptors: list[int] = []
        self.ring = -1
        self.slot_bytes = 0

    def say(self, frame: str, *, descriptors: tuple[int, ...] = (), **fields: Any) -> None:
        text = json.dumps({"frame": frame, **fields}).encode()
        header = struct.pack(">IHH", len(text), len(descriptors), 0)
        socket.send_fds(self._stream, [header + text], list(descriptors))

    def next(self) -> Frame:
        while True:
            if len(self._bytes) >= 8:
                length, _, _ = struct.unpack(">IHH", self._bytes[:8])
                if len(self._bytes) >= 8 + length:
                    text = self._bytes[8 : 8 + length]
                    self._bytes = self._bytes[8 + length :]
                    return dict(json.loads(text))
            some, descriptors, _, _ = socket.recv_fds(self._stream, 1 << 16, 16)
            assert some, "the line ended"
            self._bytes += some
            self.descriptors += descriptors

    def hear(self, frame: str) -> Frame:
        while (heard := self.next())["frame"] in _QUIET and frame not in _QUIET:
            pass
        assert heard["frame"] == frame, heard
        return heard

    def read_to_end(self) -> None:
        self._stream.settimeout(None)
        with contextlib.suppress(OSError):
            while self._stream.recv(1 << 16):
                pass

    def lend(self, slots: int, slot_bytes: int) -> None:
        self.ring, self.slot_bytes = os.memfd_create("peer", os.MFD_ALLOW_SEALING), slot_bytes
        os.ftruncate(self.ring, HEADER + slots * slot_bytes)
        fcntl.fcntl(self.ring, _ADD_SEALS, _SEALS)
        self.say("lend", ring=1, slots=slots, slot_bytes=slot_bytes, descriptors=(self.ring,))

    def ask(self, save: int, purpose: str) -> Frame:
        """Asks for a save at once; says where the rank is."""
        self.say("prepare", save=save, purpose=purpose, cause="interruption")
        ready = self.hear("ready")
        self.say("save-at", save=save)
        return ready

    def take(self, save: int) -> tuple[Frame, bytes]:
        """Takes all of a save: its beginning, and its bytes."""
        begin, taken = self.hear("save-begin"), b""
        while (frame := self.next())["frame"] != "save-end":
            if frame["frame"] == "filled":
                at = HEADER + frame["slot"] * self.slot_bytes
                taken += os.pread(self.ring, frame["bytes"], at)
                self.say("freed", save=save, slot=frame["slot"])
        self.say("taken", save=save)
        return begin, taken

    def close(self) -> None:
        self._stream.close()
