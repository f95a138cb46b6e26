"""Make the first file system of the guest: busybox, the modules that boot needs, and the first script.

The kernel unpacks it into memory and runs its `/init`. The format is cpio's "newc", as in the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from labkit.errors import LabError

_DIRECTORY = 0o040755
_EXECUTABLE = 0o100755
_FOLDERS = ("bin", "dev", "proc", "sys", "host", "cow", "root", "modules")


def build(busybox: Path, modules: Sequence[Path], init: bytes, settings: Mapping[str, str]) -> bytes:
    """The archive, uncompressed.

    Args:
        busybox: a statically linked busybox on the host.
        modules: kernel modules on the host, in the order in which they are to be inserted.
        init: the script that becomes process 1.
        settings: variables that the script reads from `/settings`.
    """
    lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    members: list[tuple[str, int, bytes]] = [(name, _DIRECTORY, b"") for name in _FOLDERS]
    members.append(("bin/busybox", _EXECUTABLE, busybox.read_bytes()))
    members.append(("init", _EXECUTABLE, init))
    members.append(("settings", _EXECUTABLE, lines.encode(errors="surrogateescape")))
    for number, module in enumerate(modules):
        members.append((f"modules/{number:03}-{module.name}", _EXECUTABLE, module.read_bytes()))
    members.append(("TRAILER!!!", 0, b""))
    return b"".join(_member(number, *member) for number, member in enumerate(members, 1))


def _member(inode: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return _padded(header) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def module_files(tree: Path, names: Sequence[str]) -> list[Path]:
    """Files of the named modules and of all that they depend on, dependencies first; built-in ones have none.

    Args:
        tree: a kernel's module folder, with its `modules.dep` and `modules.builtin` (depmod(8)).
        names: module names, as modprobe(8) takes them.

    Raises:
        LabError: the tree has no index, or no such module.
    """
    try:
        index = (tree / "modules.dep").read_text(encoding="utf-8")
        builtin = (tree / "modules.builtin").read_text(encoding="utf-8")
    except OSError as error:
        raise LabError(f"no kernel modules in {tree}: {error.strerror}") from error
    needs = dict(_dependencies(index))
    by_name = {_module_name(path): path for path in needs}
    inside = {_module_name(path) for path in builtin.split()}
    files: dict[str, None] = {}
    for name in map(_module_name, names):
        if name in by_name:
            path = by_name[name]
            files.update(dict.fromkeys([*reversed(needs[path]), path]))
        elif name not in inside:
            raise LabError(f"the kernel of {tree} has no module {name}")
    return [tree / path for path in files]


def _dependencies(index: str) -> Iterator[tuple[str, list[str]]]:
    for line in index.splitlines():
        path, _, needed = line.partition(":")
        yield path, needed.split()


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")
