"""Lets PyTorch's wheel be imported without the 2 GB of CUDA libraries that it is linked with.

    python stub_cuda.py      of the environment whose torch it is; needs `cc` and `readelf`

It writes small libraries in their place, in which every function answers that there is no device.
For tests on CPUs only, with the version of torch that requirements-torch.txt pins: such a library
can make a test fail that would pass, and on a CPU never the other way round.
"""

import subprocess
import sysconfig
import tempfile
from pathlib import Path

TORCH = Path(sysconfig.get_paths()["purelib"]) / "torch"
MAKERS = ("cu", "__cuda", "nccl", "nv")
"""How functions begin that come from those libraries without a version."""

NO_DEVICE = "int {name}(void) {{ return 100; }}\n"
# A message is printed, and a stream that is asked whether it records must not be thought to.
ANSWERS = {
    "GetErrorString": 'const char *{name}(void) {{ return "no CUDA here"; }}\n',
    "GetErrorName": 'const char *{name}(void) {{ return "no CUDA here"; }}\n',
    "GetLastError": 'const char *{name}(void) {{ return "no CUDA here"; }}\n',
    "StreamIsCapturing": "int {name}(void *s, int *is) {{ if (is) *is = 0; return 0; }}\n",
}
INTEGERS = ("cudaGetLastError", "cudaPeekAtLastError")


def main() -> None:
    programs = [*sorted((TORCH / "lib").glob("*.so")), *sorted(TORCH.glob("*.so"))]
    own = {path.name for path in programs}
    needed = {name for path in programs for name in needs(path)}
    missing = sorted(name for name in needed - own if not found(name))
    makers, wanted, defined = {}, {}, set()
    for path in programs:
        makers.update(versions(path))
        for name, version, is_here in symbols(path):
            if is_here:
                defined.add(name)
            else:
                wanted[name] = version
    parts: dict[tuple[str, str], list[str]] = {(name, ""): [] for name in missing}
    for name, version in sorted(wanted.items()):
        if makers.get(version) in missing:
            parts.setdefault((makers[version], version), []).append(name)
        elif not version and name not in defined and name.startswith(MAKERS):
            parts[missing[0], ""].append(name)
    for library in missing:
        build(library, {at: names for (of, at), names in parts.items() if of == library})
    print(f"{len(missing)} libraries of {sum(map(len, parts.values()))} functions")


def needs(path: Path) -> list[str]:
    """The libraries that it names."""
    lines = read("readelf", "-dW", str(path)).splitlines()
    return [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]


def symbols(path: Path) -> list[tuple[str, str, bool]]:
    """Names, each with the version that is asked for, and whether it is defined here."""
    rows = [line.split() for line in read("readelf", "-W", "--dyn-syms", str(path)).splitlines()]
    rows = [row for row in rows if len(row) >= 8 and row[0].rstrip(":").isdigit()]
    return [
        (name, version, row[6] != "UND")
        for row in rows
        for name, _, version in [row[7].replace("@@", "@").partition("@")]
        if row[4] != "WEAK" or row[6] != "UND"
    ]


def versions(path: Path) -> dict[str, str]:
    """Which library each version of a symbol is asked of."""
    library, found = "", {}
    for line in read("readelf", "-VW", str(path)).splitlines():
        words = line.split()
        if "File:" in words:
            library = words[words.index("File:") + 1]
        elif "Name:" in words and "Flags:" in words:
            found[words[words.index("Name:") + 1]] = library
    return found


def found(library: str) -> bool:
    """Whether the system has it."""
    return library.startswith("ld-linux") or f"{library} " in read("/sbin/ldconfig", "-p")


def build(library: str, names: dict[str, list[str]]) -> None:
    """A library with functions by their version."""
    with tempfile.TemporaryDirectory() as folder:
        source, script = Path(folder) / "stub.c", Path(folder) / "stub.map"
        every = [name for some in names.values() for name in some]
        source.write_text("".join(answer(name).format(name=name) for name in every))
        nodes = [
            f"{version} {{ global: {'; '.join(some)}; }};\n"
            for version, some in names.items()
            if version and some
        ]
        script.write_text("".join(nodes))
        flags = f"-Wl,-soname,{library}" + (f",--version-script,{script}" if nodes else "")
        out = str(TORCH / "lib" / library)
        read("cc", "-shared", "-fPIC", "-fno-builtin", "-w", flags, "-o", out, str(source))


def answer(name: str) -> str:
    if name in INTEGERS:
        return NO_DEVICE
    return next((text for ending, text in ANSWERS.items() if name.endswith(ending)), NO_DEVICE)


def read(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
