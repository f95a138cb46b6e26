"""Commands about the store as a whole: init, drivers, info, up, down, grow."""

from typing import TYPE_CHECKING

import click

from thinpool.cli import failure, output, render
from thinpool.cli.command import command
from thinpool.cli.params import SIZE
from thinpool.cli.settings import Settings

if TYPE_CHECKING:
    from thinpool.drivers.selection import DriverReport


@command(
    "init",
    examples=[
        ("thinpool init", "a store in /var/lib/thinpool, on the first driver that works"),
        ("thinpool --root /srv/layers -s btrfs init", "elsewhere, on btrfs"),
        (
            "thinpool -s devicemapper --storage-opt dm.datadev=/dev/sdb1 --storage-opt dm.metadatadev=/dev/sdc1 init",
            "a thin pool on two block devices, for production",
        ),
    ],
)
def init(settings: Settings) -> None:
    """Create the store, or verify that it is there.

    Nothing changes where the store exists already: running it twice is safe. No other command creates a store. The
    driver options are recorded; later commands need not repeat them.
    """
    with settings.open_store(create=True) as store:
        info = store.info()
        if settings.json:
            output.write_json({"created": store.created, "root": str(store.root), "driver": store.driver})
        else:
            done = "created" if store.created else "found, unchanged"
            output.write_lines([f"{done}: {store.driver} store in {output.escape(str(store.root))}"])
        for warning in info.warnings if store.created else ():
            failure.warn(warning)


@command(
    "drivers",
    examples=[
        ("thinpool drivers", "what works on this host"),
        ("thinpool --root /srv/layers drivers --json", "for a store in another place, for a program"),
    ],
)
def drivers(settings: Settings) -> None:
    """Show each driver, in the order of selection: whether it works here, or why not.

    The one that a store in this root uses, or that `init` would choose, is marked with an asterisk.
    """
    from thinpool.drivers.selection import probe_all  # noqa: PLC0415 - brings all drivers

    reports = probe_all(settings.root)
    if settings.json:
        output.write_json([_report_json(report) for report in reports])
    else:
        rows = [
            (
                "*" if report.selected else "",
                report.name,
                "works" if report.supported else "no",
                output.escape(report.reason or ""),
            )
            for report in reports
        ]
        output.write_lines(output.table(("", "DRIVER", "HERE", "REASON"), rows))


def _report_json(report: "DriverReport") -> dict[str, object]:
    return {
        "name": report.name,
        "supported": report.supported,
        "reason": report.reason,
        "selected": report.selected,
    }


@command(
    "info",
    examples=[
        ("thinpool info", "driver, options, space"),
        ("thinpool info --json | jq .pool.data_used", "one figure, in bytes"),
    ],
)
def info(settings: Settings) -> None:
    """Show the store: driver, options in force, and the pool's mode, space and warnings.

    A pool is `rw` when all is well, and `ro`, `out_of_data_space` or `fail` when it cannot be written.
    """
    with settings.open_store() as store:
        facts = store.info()
    if settings.json:
        output.write_json(render.info_json(facts))
    else:
        output.write_lines(render.info_lines(facts))


@command("up", examples=[("thinpool up", "activate the pool, after a boot")])
def up(settings: Settings) -> None:
    """Make the storage ready: activate the pool, attach its loop devices.

    Other commands do this by themselves when they need it.
    """
    with settings.open_store() as store:
        store.up()


@command(
    "down",
    examples=[
        ("thinpool down", "let go of everything, before a shutdown"),
        ("thinpool down --timeout 30", "wait for those who still work in a layer"),
        ("thinpool down --timeout 30 --lazy", "and then detach what they hold, which goes with them"),
    ],
)
@click.option("--lazy", is_flag=True, help="Detach what is busy; it goes for good when its last user lets go.")
@click.option("--force", is_flag=True, help="As --lazy, and detach the layers in all other mount namespaces too.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="How long to wait for those who hold something.",
)
def down(settings: Settings, *, lazy: bool, force: bool, timeout: float) -> None:
    """Unmount all layers of this store and deactivate all its devices, in order.

    The layers stay; the next command that needs them, or `up`, activates the storage again. What is in use stays, and
    the error (exit status 4) names all of it and who uses it; what is not is down. Nobody is sent a signal. Detached,
    a layer is gone from its directory at once; who has a file of it open, or works in it, goes on with it, and its
    device, the pool and the loop devices go when the last of them lets go (unless dm.use_deferred_removal is off).
    """
    with settings.open_store() as store:
        store.down(lazy=lazy, force=force, timeout=timeout)


@command(
    "grow",
    examples=[
        ("thinpool grow --data 200G", "room for 200 GiB of layers"),
        ("thinpool grow --metadata 4G", "room for the books of more snapshots"),
    ],
)
@click.option("--data", type=SIZE, metavar="SIZE", help="New total size of the data.")
@click.option("--metadata", type=SIZE, metavar="SIZE", help="New total size of the metadata.")
def grow(settings: Settings, data: int | None, metadata: int | None) -> None:
    """Extend the pool to a new total size, while it is in use.

    Sizes are binary: 10G is 10 GiB. A pool does not shrink.
    """
    if data is None and metadata is None:
        raise click.UsageError("grow needs --data SIZE, --metadata SIZE or both")
    with settings.open_store() as store:
        store.grow(data=data, metadata=metadata)
