"""`thinpool commit`, also live: of what is mounted, of what a guest has, with a hook."""

from pathlib import Path

import pytest

from thinpool import Store

from .conftest import Cli

pytestmark = pytest.mark.kernel


def test_live_the_layer_goes_on(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    cli("prepare", "job", "base")
    cli("mount", "job", str(place))
    for number in range(2):
        (place / f"{number}").touch()
        made = cli.json("commit", f"point-{number}", "job", "--live")
        assert (made["kind"], made["parent"], made["crash_consistent"]) == ("committed", "base", False)
    assert cli("commit", "point-2", "job", "--live") == ""
    assert cli("diff", "point-0") == "A /0\n"
    assert cli("diff", "point-2", "point-1") == ""
    assert cli.json("stat", "job")["kind"] == "active"
    assert "is committed; only an active layer" in cli.fails(1, "commit", "more", "point-0", "--live")
    assert "exists already" in cli.fails(4, "commit", "point-0", "job", "--live")
    cli("umount", str(place))


def test_of_a_device_in_use_it_warns(with_base: Cli) -> None:
    cli = with_base
    cli("prepare", "vm", "base")
    with Store.open(cli.root) as store, store.device("vm"):
        status, output, errors = cli.outcome("commit", "point", "vm", "--live")
        assert (status, output) == (0, "")
        assert errors == (
            "thinpool: warning: vm is in use as a block device: point is what a power cut would have left of it\n"
        )
        status, output, errors = cli.outcome("commit", "still", "vm", "--live", "--freeze-hook", "true")
        assert (status, errors) == (0, "")


def test_with_a_hook(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    log = scratch / "log"
    hook = f"sh -c 'echo \"$1\" >>{log}' agent"
    assert cli("commit", "point", "job", "--live", "--freeze-hook", hook) == ""
    assert log.read_text() == "freeze\nthaw\n"
    assert "failed with status 1: it said nothing" in cli.fails(
        1, "commit", "more", "job", "--live", "--freeze-hook", "false"
    )
    assert "took longer than 0.1 s" in cli.fails(
        1, "commit", "more", "job", "--live", "--freeze-hook", "tail -f /dev/null", "--freeze-timeout", "0.1"
    )
    assert cli("ls", "-q") == "base\njob\npoint\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--freeze-hook", "true"], "use it with --live"),
        (["--live", "--freeze-timeout", "3"], "--freeze-timeout is for --freeze-hook"),
        (["--live", "--freeze-hook", "'open"], "No closing quotation"),
        (["--live", "--freeze-hook", ""], "without a command"),
        (["--live", "--freeze-hook", "true", "--freeze-timeout", "0"], "more than 0"),
    ],
)
def test_wrong_usage(with_base: Cli, options: list[str], said: str) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    assert said in cli.fails(2, "commit", "point", "job", *options)
