"""Units by which systemd brings a store up at boot and down at shutdown (systemd.unit(5), systemd.service(5)).

One template, `thinpool@.service`, serves every store: the instance's name is the root directory's path, escaped as by
`systemd-escape --path`. What only one store needs, to wait for the block devices of its pool, is a drop-in of its own.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

TEMPLATE = "thinpool@.service"
DROP_IN = "devices.conf"
STOP_SECONDS = 30
"""How long a shutdown waits for those who still work in a layer before it is detached from them."""

_SPECIAL = re.compile(rb"^\.|[^A-Za-z0-9:_./]", re.DOTALL)
_DEVICES = ("dm.datadev", "dm.metadatadev")

_TEMPLATE = """\
# Made by `thinpool systemd install`; the instance is the store's root directory, as systemd-escape --path writes it.
[Unit]
Description=thinpool store in %f
After=local-fs.target
RequiresMountsFor=%f
ConditionPathExists=%f/store.db

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command} --root %f up
ExecStop={command} --root %f down --timeout {seconds} --lazy
TimeoutStopSec={limit}

[Install]
WantedBy=multi-user.target
"""


def escape_path(path: str | os.PathLike[str]) -> str:
    """A path as a part of a unit's name, as `systemd-escape --path` writes it; it must be absolute and normal."""
    raw = os.fsencode(path).strip(b"/")
    if not raw:
        return "-"
    escaped = _SPECIAL.sub(lambda match: b"\\x%02x" % ord(match[0]), raw)
    return escaped.replace(b"/", b"-").decode("ascii")


def instance(root: Path) -> str:
    """The name of a store's service."""
    return f"thinpool@{escape_path(root)}.service"


def template(command: Sequence[str]) -> str:
    """The text of the template unit.

    Args:
        command: the words that run thinpool.
    """
    program, *arguments = command
    words = " ".join([_quoted(program), *(_quoted(word).replace("$", "$$") for word in arguments)])
    return _TEMPLATE.format(command=words, seconds=STOP_SECONDS, limit=3 * STOP_SECONDS)


def _quoted(word: str) -> str:
    """A word of a command line in a unit, where `%` begins a specifier, and `$` a variable but in the first word."""
    plain = word.replace("\\", "\\\\").replace("%", "%%")
    return plain if shlex.quote(word) == word else '"' + plain.replace('"', '\\"') + '"'


def drop_in(options: Mapping[str, str]) -> str | None:
    """What a store's own service waits for, by the options of its driver; None where that is nothing."""
    devices = [options[key] for key in _DEVICES if options.get(key)]
    if not devices:
        return None
    units = " ".join(f"{escape_path(device)}.device" for device in devices)
    return f"# Made by `thinpool systemd install`: the pool's block devices.\n[Unit]\nRequires={units}\nAfter={units}\n"
