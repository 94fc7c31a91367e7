"""What the native half is built from is what the rest of the tree is built from."""

import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
ROOT = HERE.parents[1]


def versions(lock: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(lock.read_text())["package"]:
        found.setdefault(package["name"], set()).add(package["version"])
    return found


def test_both_locks_name_the_same_versions() -> None:
    ours, theirs = versions(HERE / "Cargo.lock"), versions(ROOT / "Cargo.lock")
    other = {
        name: (here, theirs[name])
        for name, here in ours.items()
        if name in theirs and not here <= theirs[name]
    }
    assert not other, "`cargo update --precise` in sdk/python brings them together"


def test_both_workspaces_keep_the_same_lints() -> None:
    ours = tomllib.loads((HERE / "Cargo.toml").read_text())["workspace"]["lints"]
    theirs = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["lints"]
    more = {"needless_pass_by_value", "too_many_arguments"}
    assert ours["rust"] == theirs["rust"]
    kept = {name: level for name, level in ours["clippy"].items() if name not in more}
    assert {name: theirs["clippy"].get(name) for name in kept} == kept
