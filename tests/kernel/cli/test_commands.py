"""Every command on a real store, as a person and as a program use it."""

import gzip
import io
import json
import os
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from thinpool import Store

from .conftest import OPTIONS, SMALL, Cli

pytestmark = pytest.mark.kernel

KEYS_OF_LS = {"name", "parent", "kind", "created", "size", "usage", "mounted", "labels"}


def test_init_makes_a_store_and_verifies_it(empty: Cli) -> None:
    made = json.loads(empty.outcome("-s", "devicemapper", *OPTIONS, *SMALL, "init", "--json")[1])
    assert made == {"created": True, "root": str(empty.root), "driver": "devicemapper"}
    assert empty.json("init")["created"] is False
    assert empty("init") == f"found, unchanged: devicemapper store in {empty.root}\n"
    assert empty.json("ls") == []
    assert empty.json("tree") == []
    assert empty("down") == ""


def test_the_warnings_of_a_new_store_are_shown_once(empty: Cli) -> None:
    status, output, errors = empty.outcome("-s", "devicemapper", *OPTIONS, *SMALL, "init")
    assert (status, output) == (0, f"created: devicemapper store in {empty.root}\n")
    assert errors.startswith("thinpool: warning: the pool lies on loop files")
    assert all(line.startswith("thinpool: warning: ") for line in errors.splitlines())
    assert empty.outcome("init")[2] == ""
    assert empty("down") == ""


def test_the_way_of_a_comparison(with_base: Cli) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    cli("run", "job", "--", "sh", "-c", "echo hi > /greeting")
    for method in ("auto", "fast", "walk"):
        status, text, said = cli.outcome("-v", "diff", "job", "--method", method)
        assert (status, text) == (0, "A /greeting\n")
        assert f"compared by method {'walk' if method == 'walk' else 'fast'}" in said
        assert (" reads of " in said) == (method != "walk")
        assert cli.outcome("diff", "job", "--method", method)[2] == ""
    status, _, said = cli.outcome("diff", "base", "--method", "fast")
    assert status == 6
    assert "compared with nothing" in said
    assert cli("rm", "job") == ""


def test_the_main_job(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    made = cli.json("prepare", "job", "base", "--label", "owner=ci", "--label", "empty=")
    assert (made["name"], made["parent"], made["kind"]) == ("job", "base", "active")
    assert made["labels"] == {"owner": "ci", "empty": ""}
    assert cli("run", "job", "--", "sh", "-c", "echo hi > /greeting; echo done") == "done\n"
    assert cli("diff", "job") == "A /greeting\n"
    assert cli.json("diff", "job") == [{"kind": "A", "path": "/greeting"}]
    assert cli.json("commit", "hello", "job")["kind"] == "committed"
    assert cli("prepare", "next", "hello") == ""

    rows = {row["name"]: row for row in cli.json("ls")}
    assert list(rows) == ["base", "hello", "next"]
    assert all(row.keys() >= KEYS_OF_LS for row in rows.values())
    assert rows["hello"]["usage"] > 0
    assert rows["hello"]["size"] == 512 << 20
    assert [line.split()[0] for line in cli("ls").splitlines()] == ["NAME", "base", "hello", "next"]
    assert cli("ls", "-q") == "base\nhello\nnext\n"

    tree = cli.json("tree")
    assert [(item["name"], item["depth"]) for item in tree] == [("base", 0), ("hello", 1), ("next", 2)]
    assert "└─hello" in cli("tree") or "`-hello" in cli("tree")
    usage = cli.json("du", "hello")
    assert [item["name"] for item in usage] == ["hello"]
    assert 0 <= usage[0]["exclusive"] <= usage[0]["referenced"]
    assert len(cli("du").splitlines()) == 4

    archive = scratch / "hello.tar.gz"
    assert cli("export", "hello", "-o", str(archive), "--compress", "gzip") == ""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive.read_bytes()))) as tar:
        assert "greeting" in {name.removeprefix("./") for name in tar.getnames()}
    assert cli.json("import", "again", str(archive), "--parent", "base")["parent"] == "base"
    assert cli("diff", "again", "hello") == ""
    assert cli("view", "look", "again") == ""
    assert cli("rm", "hello", "again", "--recursive") == ""
    assert cli("ls", "-q") == "base\n"


def test_mounts_outlive_the_command(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    cli("prepare", "job", "base")
    assert cli.json("mount", "job", str(place)) == {"name": "job", "target": str(place)}
    assert (place / "etc/motd").read_text() == "hello\n"
    (place / "new").write_text("x")
    assert cli.json("stat", "job")["mounts"] == [str(place)]
    assert [row["mounted"] for row in cli.json("ls")] == [False, True]
    assert "job  (mounted)" in cli("tree")
    assert str(place) in cli.fails(4, "rm", "job")
    assert cli("umount", str(place)) == ""
    assert not (place / "new").exists()
    cli("mount", "job", str(place), "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (place / "other").write_text("x")
    assert cli("umount", "job") == ""
    assert cli.json("stat", "job")["mounts"] == []


def test_volumes(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    for name in ("source", "place"):
        (scratch / name).mkdir()
    (scratch / "source/file").write_text("of the host\n")
    volume = f"{scratch}/source:/data:ro"
    cli("prepare", "job", "base")
    assert cli("run", "job", "--volume", volume, "--", "cat", "/data/file") == "of the host\n"
    assert cli.json("stat", "job")["volumes"] == [volume]
    assert volume in cli("stat", "job")
    cli("prepare", "other", "base")
    script = "cat /data/file; touch /data/no 2>/dev/null || echo refused"
    assert cli("run", "other", "--volumes-from", "job", "--", "sh", "-c", script) == "of the host\nrefused\n"
    cli("mount", "job", str(scratch / "place"), "--volume", volume)
    assert (scratch / "place/data/file").exists()
    cli("umount", "job")
    assert cli("diff", "job") == "A /data\n"
    assert "SOURCE:TARGET" in cli.fails(2, "run", "job", "--volume", "nonsense", "--", "true")
    assert "below /" in cli.fails(2, "run", "job", "--volume", f"{scratch}:relative", "--", "true")
    assert "No such file" in cli.fails(1, "run", "job", "--volume", f"{scratch}/missing:/x", "--", "true")


def test_down_and_up(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    cli("mount", "base", str(place))
    assert cli("down") == ""
    assert os.listdir(place) == []
    assert cli("up") == ""
    assert cli("ls", "-q") == "base\n"


def test_info_and_grow(cli: Cli) -> None:
    before = cli.json("info")
    assert before["root"] == str(cli.root)
    assert before["driver"] == "devicemapper"
    assert before["layers"] == 0
    assert before["options"]["dm.basesize"]
    pool = before["pool"]
    assert pool["mode"] == "rw"
    assert pool["needs_check"] is False
    assert pool["data_total"] == 2 << 30
    assert 0 < pool["data_used"] < pool["data_total"]
    assert 0 < pool["metadata_used"] < pool["metadata_total"] <= 64 << 20
    assert cli("grow", "--data", "3G") == ""
    assert cli.json("info")["pool"]["data_total"] == 3 << 30
    assert f"root      {cli.root}\n" in cli("info")
    assert "1G" in cli.fails(2, "grow", "--data", "1G")


def test_drivers(with_base: Cli) -> None:
    cli = with_base
    reports = cli.json("drivers")
    assert [report["name"] for report in reports][:3] == ["aufs", "btrfs", "devicemapper"]
    assert all(report.keys() == {"name", "supported", "reason", "selected"} for report in reports)
    assert [report["name"] for report in reports if report["selected"]] == ["devicemapper"]
    assert "* " in cli("drivers")


def test_kinds_of_failure(with_base: Cli) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    cli("view", "look", "base")
    assert "'missing'" in cli.fails(3, "stat", "missing")
    assert "missing" in cli.fails(3, "prepare", "x", "missing")
    assert "job" in cli.fails(4, "prepare", "job", "base")
    assert "job" in cli.fails(4, "rm", "base")
    cli.fails(1, "prepare", "x", "job")
    cli.fails(1, "commit", "x", "look")
    cli.fails(1, "umount", "job")
    assert "was removed" in cli.fails(3, "rm", "job", "missing")
    assert cli("ls", "-q") == "base\njob\nlook\n"


def test_rm_says_what_was_removed_before_it_failed(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    for name in ("a", "b", "c"):
        cli("prepare", name, "base")
    cli("mount", "b", str(place))
    errors = cli.fails(4, "rm", "--recursive", "base")
    assert "removed before that: c" in errors.splitlines()[0]
    assert cli("ls", "-q") == "a\nb\nbase\n"
    cli("umount", "b")
    cli("commit", "d", "a")
    cli("prepare", "e", "d")
    assert cli.json("rm", "b", "d", "e") == {"removed": ["e", "d", "b"]}


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["sh", "-c", "exit 0"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -9 $$"], 137),
        (["/bin/missing"], 127),
        (["/etc/motd"], 126),
    ],
)
def test_run_ends_as_the_command_does(with_base: Cli, command: list[str], status: int) -> None:
    with_base("prepare", "job", "base")
    assert with_base.outcome("run", "job", "--", *command)[0] == status


def test_run_reads_and_writes_the_standard_streams(with_base: Cli) -> None:
    with_base("prepare", "job", "base")
    with with_base.start(
        "run", "job", "--workdir", "/etc", "--", "sh", "-c", "pwd; cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.communicate(b"in\xffput") == (b"/etc\nin\xffput", b"")
    assert process.returncode == 0


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_run(with_base: Cli, signum: signal.Signals) -> None:
    cli = with_base
    cli("prepare", "job", "base")
    with cli.start(
        "run", "job", "--", "sh", "-c", "echo begun; exec cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signum)
        _, errors = process.communicate()
    assert process.returncode == 128 + signum
    assert len(errors.splitlines()) == 1
    assert cli("rm", "job") == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_import(with_base: Cli, busybox_tar: Path, signum: signal.Signals) -> None:
    cli = with_base
    with cli.start("import", "more", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(busybox_tar.read_bytes()[: 300 << 10])
        process.stdin.flush()
        process.send_signal(signum)
        process.wait()
        assert process.stderr is not None
        errors = process.stderr.read().splitlines()
    assert process.returncode == 128 + signum
    assert len(errors) == 1
    assert errors[0].startswith(b"thinpool: error: ")
    assert cli("ls", "-q") == "base\n"
    assert cli("import", "more", str(busybox_tar)) == ""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_an_export(with_base: Cli, signum: signal.Signals) -> None:
    with with_base.start("export", "base", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)  # it has begun, and a pipe does not hold all of it
        process.send_signal(signum)
        process.wait()
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == [
            b"thinpool: error: " + (b"interrupted" if signum == signal.SIGINT else f"ended by {signum.name}".encode())
        ]
    assert process.returncode == 128 + signum
    with Store.open(with_base.root) as store:
        assert store._session.release(store._session.record("base").handle)


@pytest.mark.parametrize("arguments", [("ls", "-q"), ("ls", "--json"), ("tree",), ("export", "base")])
def test_a_reader_that_goes_away_ends_it_quietly(with_base: Cli, arguments: tuple[str, ...]) -> None:
    read, write = os.pipe()
    os.close(read)
    with with_base.start(*arguments, stdout=write) as process:
        os.close(write)
        assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_export_to_standard_output(with_base: Cli, scratch: Path) -> None:
    with_base("export", "base", "-o", str(scratch / "base.tar"))
    with with_base.start("export", "base", stdout=subprocess.PIPE) as process:
        output, errors = process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert output == (scratch / "base.tar").read_bytes()


def test_export_that_fails_leaves_no_file(with_base: Cli, scratch: Path) -> None:
    place = scratch / "out"
    place.mkdir()
    with_base.fails(3, "export", "missing", "-o", str(place / "x.tar"))
    with_base.fails(1, "export", "base", "-o", str(place / "no/x.tar"))
    assert os.listdir(place) == []
    result = with_base.json("export", "base", "-o", str(place / "x.tar"))
    assert result["size"] == (place / "x.tar").stat().st_size


def test_any_file_name_is_shown_exactly(with_base: Cli, scratch: Path) -> None:
    cli = with_base
    place = scratch / "place"
    place.mkdir()
    cli("prepare", "job", "base")
    names = [b"a\nb", b"\x1b[31m", b"\xff\xfe", b"back\\slash", "caf\u00e9".encode()]
    cli("mount", "job", str(place))
    for name in names:
        (place / os.fsdecode(name)).touch()
    cli("umount", "job")
    expected = [b"A /" + name for name in sorted(names)]
    with cli.start("diff", "-z", "job", stdout=subprocess.PIPE) as process:
        assert process.communicate()[0] == b"".join(row + b"\0" for row in expected)
    assert [item["path"] for item in cli.json("diff", "job")] == [os.fsdecode(row[2:]) for row in expected]
    assert cli("diff", "job").splitlines() == [
        r"A /\x1b[31m",
        r"A /a\nb",
        r"A /back\\slash",
        "A /caf\u00e9",
        r"A /\xff\xfe",
    ]


def test_a_bigger_layer(with_base: Cli) -> None:
    assert with_base.json("prepare", "big", "base", "--size", "1G")["size"] == 1 << 30
    assert "size" in with_base.fails(2, "prepare", "small", "base", "--size", "64M")


def test_layer_names_are_completed(with_base: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli = with_base
    cli("prepare", "job-1", "base")
    cli("prepare", "job-2", "base")
    monkeypatch.setenv("_THINPOOL_COMPLETE", "bash_complete")
    for typed, meant in (("jo", ["job-1", "job-2"]), ("b", ["base"]), ("x", [])):
        words = f"thinpool --root {cli.root} stat {typed}"
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert cli().split() == [f"plain,{name}" for name in meant]
