"""`thinpool systemd`: units that bring a store up at boot and down at shutdown."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

import click

from thinpool import systemd as units
from thinpool.cli import output
from thinpool.cli.command import Group, command
from thinpool.cli.params import PATH
from thinpool.cli.settings import Settings
from thinpool.errors import ConfigError

_UNITS = Path("/etc/systemd/system")
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)

_SECTIONS = {
    "Units": {
        "show": "thinpool.cli.systemd:show",
        "install": "thinpool.cli.systemd:install",
        "uninstall": "thinpool.cli.systemd:uninstall",
    }
}

EXAMPLES = [
    ("thinpool systemd install", "the store in /var/lib/thinpool comes up at boot"),
    ("thinpool --root /srv/layers systemd install", "the store in another place"),
]


@click.group(cls=Group, sections=_SECTIONS, examples=EXAMPLES, name="systemd")
def systemd() -> None:
    """Let systemd bring the store up at boot, and down at shutdown.

    One template unit, thinpool@.service, serves every store; the instance is the root directory's path, as
    `systemd-escape --path` writes it. At shutdown the service waits for those who still work in a layer, and then
    detaches it (see `thinpool down --help`).
    """


_directory = click.option(
    "--directory",
    type=PATH,
    default=_UNITS,
    show_default=True,
    metavar="DIR",
    help="Where units lie; in another place than systemd's own, nothing is enabled.",
)


@command("show", examples=[("thinpool systemd show", "the units, to look at")])
def show(settings: Settings) -> None:
    """Print the units that `install` would write.

    Each has its name above it; nothing is written or enabled.
    """
    texts = _texts(settings)
    if settings.json:
        output.write_json({"service": units.instance(_root(settings)), "units": texts})
    else:
        output.write_lines(f"# {name}\n{text}".rstrip("\n") for name, text in texts.items())


@command("install", examples=[("thinpool systemd install", "bring the store up at every boot")])
@_directory
def install(settings: Settings, directory: Path) -> None:
    """Write the units, and enable the store's service where systemd runs.

    The store must exist. What is up stays up, and what is down stays down until the next boot, or
    `systemctl start`. Running it again writes the units anew.
    """
    written = []
    for name, text in _texts(settings).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(path)
        written.append(path)
    service = units.instance(_root(settings))
    enabled = _systemctl(directory, "daemon-reload") and _systemctl(directory, "enable", service)
    if settings.json:
        output.write_json({"service": service, "files": [str(path) for path in written], "enabled": enabled})
        return
    output.write_lines(f"written: {output.escape(str(path))}" for path in written)
    output.write_lines([f"enabled: {service}" if enabled else f"to enable it: systemctl enable '{service}'"])


@command("uninstall", examples=[("thinpool systemd uninstall", "leave the store alone at boot and shutdown")])
@_directory
def uninstall(settings: Settings, directory: Path) -> None:
    """Disable the store's service, and remove what was written for it; the template goes with the last one.

    The store stays as it is.
    """
    service = units.instance(_root(settings))
    _systemctl(directory, "disable", service)
    own = directory / f"{service}.d"
    (own / units.DROP_IN).unlink(missing_ok=True)
    with suppress(OSError):  # there is none, or somebody has others in it
        own.rmdir()
    wanted = directory.glob("*.wants/thinpool@*.service")
    if not list(wanted) and not list(directory.glob("thinpool@*.service.d")):
        (directory / units.TEMPLATE).unlink(missing_ok=True)
    _systemctl(directory, "daemon-reload")
    if settings.json:
        output.write_json({"service": service})


def _root(settings: Settings) -> Path:
    return Path(os.path.realpath(settings.root))


def _texts(settings: Settings) -> dict[str, str]:
    """The units by their names."""
    with settings.open_store() as store:
        options = store.info().options
    texts = {units.TEMPLATE: units.template(_command())}
    own = units.drop_in(options)
    if own is not None:
        texts[f"{units.instance(_root(settings))}.d/{units.DROP_IN}"] = own
    return texts


def _command() -> list[str]:
    """The words that run this command at boot."""
    found = shutil.which(sys.argv[0]) or shutil.which("thinpool")
    if found is not None and os.path.basename(found) == "thinpool":
        return [os.path.abspath(found)]
    if not sys.executable:
        raise ConfigError("the thinpool command is not on PATH, so that no unit can name it")
    return [sys.executable, "-m", "thinpool"]


def _systemctl(directory: Path, *words: str) -> bool:
    """Tell the running systemd, if there is one and the units are its own."""
    if directory != _UNITS or not _RUNNING.is_dir():
        return False
    from thinpool.filesystem.tools import tool  # noqa: PLC0415 - for a machine with systemd only

    tool("systemctl").run(*words)
    return True
