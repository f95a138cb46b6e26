"""Every operation of `Store` that changes anything: what is there before, what is done, and what is there afterwards.

`tests/kernel/test_crash_points.py` kills each at every point that it passes. A point that none of them passes fails a
test there, and so does a method of `Store` that neither has a scenario nor stands in `LOOKS`.
"""

import io
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import attrs

from tests.kernel.crashes.engine import Entry, Model
from thinpool import Kind, Store
from thinpool.drivers.devicemapper import Devicemapper
from thinpool.drivers.stacking import StackDriver
from thinpool.errors import ArchiveError
from thinpool.model import Volume
from thinpool.units import GIB, MIB

LOOKS = frozenset({
    "check", "close", "exclusive", "info", "stat", "layer_of", "walk", "usages", "mounts", "mounted",
})  # fmt: skip
"""What of `Store` changes nothing, however it is called."""

ALL = frozenset({"devicemapper", "overlay", "btrfs"})
DM = frozenset({"devicemapper"})
OVERLAY = frozenset({"overlay"})


@attrs.frozen
class Place:
    """Where a scenario is played.

    Attributes:
        store: the store, as whoever acts has it open.
        scratch: a folder for what is no part of it.
    """

    store: Store
    scratch: Path


Before = Callable[[Place], Model]
After = Callable[[Model], Model]


@attrs.frozen
class Scenario:
    """One operation.

    Attributes:
        name: of the scenario.
        method: of `Store`.
        before: makes what the operation needs, and says what is there then.
        act: the operation.
        after: what is there afterwards, by what was there before.
        between: what else may be there where it was not acknowledged.
        drivers: those that it is played with.
        check: more that must be true afterwards, killed or not.
    """

    name: str
    method: str
    before: Before
    act: Callable[[Place], object]
    after: After
    between: Callable[[Model], Iterable[Model]] = lambda _: ()
    drivers: frozenset[str] = ALL
    check: Callable[[Place], object] = lambda _: None


_GUARD_SECONDS = 60

BASE: Mapping[str, Entry] = {"base": Entry(Kind.COMMITTED, None, {"f": "base"})}
WORK = Entry(Kind.ACTIVE, "base", {"f": "base", "g": "work"})
NEW = {"f": "base", "new": "new"}


def make_base(store: Store) -> None:
    """The layer that all scenarios begin on; a program is in it that needs no other file."""
    store.prepare("base.work")
    with store.mount("base.work") as root:
        (root / "f").write_text("base")
        shutil.copy("/bin/busybox", root / "busybox")
    store.commit("base", "base.work")


# -- before


def only_base(_: Place) -> Model:
    return BASE


def work(place: Place) -> Model:
    """An active layer that is mounted nowhere."""
    place.store.prepare("work", "base")
    with place.store.mount("work") as root:
        (root / "g").write_text("work")
    return {**BASE, "work": WORK}


def mounted(place: Place) -> Model:
    """An active layer that is mounted, with what is not written out yet."""
    place.store.prepare("work", "base")
    (place.store.mount("work").target / "g").write_text("work")
    return {**BASE, "work": WORK}


def with_volume(place: Place) -> Model:
    """An active layer that is mounted with a volume inside."""
    model = work(place)
    place.store.mount("work", volumes=[_volume(place)])
    return {**model, "work": attrs.evolve(WORK, files={**WORK.files, "vol": ""})}


def view(place: Place) -> Model:
    place.store.view("seen", "base")
    return {**BASE, "seen": Entry(Kind.VIEW, "base", BASE["base"].files)}


def much_written(place: Place) -> Model:
    """An active layer with more in it than is left to be used again when it goes."""
    model = work(place)
    with place.store.mount("work") as root, (root / "much").open("wb", 0) as file:
        for _ in range(20):
            file.write(b"x" * MIB)
        os.fsync(file.fileno())
    return model


def compared(place: Place) -> Model:
    """A committed layer whose names are kept."""
    model = work(place)
    place.store.commit("done", "work")
    place.store.changes("done")
    return {**BASE, "done": attrs.evolve(model["work"], kind=Kind.COMMITTED)}


def new_range(place: Place) -> Model:
    """The next handle is the first of a range that is not reserved yet."""
    state = place.store._session.state
    (following,) = state._rows("SELECT value FROM meta WHERE key = 'next_handle'")
    state.put("reserved_handle", str(following[0]))
    return BASE


def deep(place: Place) -> Model:
    """A layer that is the last which may have a child without its stack being pressed together."""
    driver = place.store._session.driver
    assert isinstance(driver, StackDriver)
    model = dict(BASE)
    parent = "base"
    for name in ("one", "two", "three"):
        place.store.prepare(f"{name}.work", parent)
        with place.store.mount(f"{name}.work") as root:
            (root / name).write_text(name)
        place.store.commit(name, f"{name}.work")
        model[name] = Entry(Kind.COMMITTED, parent, {**model[parent].files, name: name})
        parent = name
    driver._branches._most = 4
    return model


def no_manifests(place: Place) -> Model:
    """The names of the layers have to be found anew."""
    shutil.rmtree(place.store.root / "devicemapper/names", ignore_errors=True)
    return mounted(place)


def image(place: Place) -> Model:
    """An image of three layers on disk."""
    directory = place.scratch / "image"
    if not directory.exists():
        deep_layers = ("one", "two", "three")
        parent = None
        for name in deep_layers:
            place.store.import_layer(name, io.BytesIO(archive(name)), parent=parent)
            parent = name
        place.store.export_image("three", directory)
        for name in reversed(deep_layers):
            place.store.remove(name)
    return BASE


def no_image(place: Place) -> Model:
    shutil.rmtree(place.scratch / "out", ignore_errors=True)
    return work(place)


def grown_wholly(place: Place) -> Model:
    """The pool has all of its files, which one that was killed before may have left larger."""
    folder = place.store.root / "devicemapper"
    place.store.grow(data=(folder / "data").stat().st_size, metadata=(folder / "metadata").stat().st_size)
    return work(place)


def half_done(place: Place) -> Model:
    """There is something to mend."""
    (place.store.root / "mnt/70001-left").mkdir(exist_ok=True)
    return work(place)


def activated_anew(place: Place) -> Model:
    """The pool has the options on record, which one that was killed before may have left with others."""
    with Store.open(place.store.root) as store:
        store.down()
        store.up()
    return work(place)


def is_down(place: Place) -> Model:
    model = work(place)
    place.store.down()
    return model


# -- what is used


def archive(name: str) -> bytes:
    """A layer tar with one file, that says its name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(name)
        tar.addfile(member, io.BytesIO(name.encode()))
    return out.getvalue()


def _volume(place: Place) -> Volume:
    source = place.scratch / "volume"
    source.mkdir(exist_ok=True)
    return Volume(source, "/vol")


def _import_cut(place: Place) -> None:
    with suppress(ArchiveError):
        place.store.import_layer("new", io.BytesIO(archive("new")[:700]), parent="base")


def _remount_target(place: Place) -> None:
    (place.scratch / "target").mkdir(exist_ok=True)
    place.store.mount("work", place.scratch / "target")


def _device(place: Place) -> None:
    with place.store.device("work"):
        pass


def _commit_with_device(place: Place) -> None:
    with place.store.device("work"):
        place.store.commit("done", "work")


def _pin(place: Place) -> None:
    driver = place.store._session.driver
    assert isinstance(driver, Devicemapper)
    with driver._pool.metadata_snapshot():
        pass


def _grow(place: Place) -> None:
    pool = place.store.info().pool
    assert pool is not None
    place.store.grow(data=pool.data_total + 64 * MIB, metadata=pool.metadata_total + 4 * MIB)


def _change_options(place: Place) -> None:
    with Store.open(place.store.root) as store:  # as others may have changed them
        options = store.info().options
    other = {"80": "70", "70": "80"}[options["dm.thinp_autoextend_threshold"]]
    Store.open(place.store.root, options={"dm.thinp_autoextend_threshold": other}).close()


def _hook(place: Place) -> list[str]:
    return ["/bin/sh", "-c", f'echo "$1" >> {place.scratch}/hook', "hook"]


def _thawed(place: Place) -> None:
    """Whoever was told to freeze is told to go on, by the guard where the process died, as soon as it comes to it."""
    said = place.scratch / "hook"
    limit = time.monotonic() + _GUARD_SECONDS
    while said.exists() and not said.read_text().endswith("thaw\n"):
        assert time.monotonic() < limit, "the hook's guest is frozen still"
        time.sleep(0.01)
    said.unlink(missing_ok=True)


def _layout_is_whole(place: Place) -> None:
    """The image is there or not, and another export to the same place leaves nothing unfinished."""
    out = place.scratch / "out"
    if (out / "index.json").exists():
        place.store.import_image("again", out)
        _remove_image(place, "again")
    place.store.export_image("base", out, tag="other")
    assert not [name for name in os.listdir(out) if name.startswith(".thinpool")], "an unfinished file"


def _remove_image(place: Place, top: str) -> None:
    name: str | None = top
    while name is not None and name != "base":
        parent = place.store.stat(name).parent
        place.store.remove(name)
        name = parent


# -- after


def same(model: Model) -> Model:
    return model


def add(name: str, entry: Entry) -> After:
    return lambda model: {**model, name: entry}


def drop(name: str) -> After:
    return lambda model: {key: entry for key, entry in model.items() if key != name}


def committed(model: Model) -> Model:
    """The active layer became another one's name."""
    return {**BASE, "done": attrs.evolve(model["work"], kind=Kind.COMMITTED)}


def checkpointed(model: Model) -> Model:
    return {**model, **committed(model)}


def labelled(model: Model) -> Model:
    return {**model, "base": attrs.evolve(model["base"], labels={"a": "b"})}


def more_files(*names: str) -> After:
    return lambda model: {
        **model, "work": attrs.evolve(model["work"], files={**model["work"].files, **dict.fromkeys(names, "")})
    }  # fmt: skip


def ran_partly(model: Model) -> Iterable[Model]:
    yield more_files("vol")(model)


def with_image(model: Model) -> Model:
    """Three layers; `observed` calls the lower two by what is in them."""
    found = dict(model)
    files: dict[str, str] = {}
    parent = None
    for name, layer in (("one", "image one"), ("two", "image one two"), ("three", "new")):
        files = dict(sorted({**files, name: name}.items()))
        found[layer] = Entry(Kind.COMMITTED, parent, files)
        parent = layer
    return found


_EMPTY = Entry(Kind.ACTIVE, None, {})

SCENARIOS = (
    Scenario(
        "prepare", "prepare", only_base,
        lambda place: place.store.prepare("new", "base", labels={"a": "b"}),
        add("new", Entry(Kind.ACTIVE, "base", BASE["base"].files, {"a": "b"})),
    ),
    Scenario("prepare-empty", "prepare", only_base, lambda place: place.store.prepare("new"), add("new", _EMPTY)),
    Scenario(
        "prepare-larger", "prepare", only_base, lambda place: place.store.prepare("new", "base", size=2 * GIB),
        add("new", Entry(Kind.ACTIVE, "base", BASE["base"].files)), drivers=DM | OVERLAY,
    ),
    Scenario("prepare-new-range", "prepare", new_range, lambda place: place.store.prepare("new"), add("new", _EMPTY)),
    Scenario(
        "prepare-deep", "prepare", deep, lambda place: place.store.prepare("new", "three"),
        lambda model: {**model, "new": attrs.evolve(model["three"], kind=Kind.ACTIVE, parent="three")}, drivers=OVERLAY,
    ),
    Scenario(
        "view", "view", only_base, lambda place: place.store.view("new", "base"),
        add("new", Entry(Kind.VIEW, "base", BASE["base"].files)),
    ),
    Scenario("commit", "commit", work, lambda place: place.store.commit("done", "work"), committed),
    Scenario("commit-mounted", "commit", mounted, lambda place: place.store.commit("done", "work"), committed),
    Scenario("commit-device", "commit", work, _commit_with_device, committed, drivers=DM),
    Scenario("checkpoint", "checkpoint", work, lambda place: place.store.checkpoint("done", "work"), checkpointed),
    Scenario(
        "checkpoint-hook", "checkpoint", mounted,
        lambda place: place.store.checkpoint("done", "work", freeze=_hook(place)), checkpointed, check=_thawed,
    ),
    Scenario("remove", "remove", work, lambda place: place.store.remove("work"), drop("work")),
    Scenario("remove-view", "remove", view, lambda place: place.store.remove("seen"), drop("seen")),
    Scenario("remove-much", "remove", much_written, lambda place: place.store.remove("work"), drop("work"), drivers=DM),
    Scenario("remove-compared", "remove", compared, lambda place: place.store.remove("done"), drop("done")),
    Scenario(
        "labels", "update_labels", only_base, lambda place: place.store.update_labels("base", {"a": "b"}), labelled
    ),
    Scenario(
        "import", "import_layer", only_base,
        lambda place: place.store.import_layer("new", io.BytesIO(archive("new")), parent="base"),
        add("new", Entry(Kind.COMMITTED, "base", NEW)),
    ),
    Scenario("import-cut", "import_layer", only_base, _import_cut, same),
    Scenario(
        "import-image", "import_image", image,
        lambda place: place.store.import_image("new", place.scratch / "image"), with_image,
    ),
    Scenario("export", "export_layer", mounted, lambda place: place.store.export_layer("work", io.BytesIO()), same),
    Scenario(
        "export-image", "export_image", no_image,
        lambda place: place.store.export_image("work", place.scratch / "out"), same, check=_layout_is_whole,
    ),
    Scenario("changes", "changes", no_manifests, lambda place: place.store.changes("work"), same),
    Scenario("changes-walk", "changes", mounted, lambda place: place.store.changes("work", method="walk"), same),
    Scenario("usage", "usage", work, lambda place: place.store.usage("work"), same),
    Scenario("usage-pinned", "usage", only_base, _pin, same, drivers=DM),
    Scenario("mount", "mount", work, lambda place: place.store.mount("work"), same),
    Scenario("mount-on-target", "mount", work, _remount_target, same),
    Scenario(
        "mount-volume", "mount", work, lambda place: place.store.mount("work", volumes=[_volume(place)]),
        more_files("vol"),
    ),
    Scenario("unmount", "unmount", mounted, lambda place: place.store.unmount("work"), same),
    Scenario("unmount-volume", "unmount", with_volume, lambda place: place.store.unmount("work"), same),
    Scenario("device", "device", work, _device, same, drivers=DM),
    Scenario(
        "run", "run", work,
        lambda place: place.store.run("work", ["/busybox", "touch", "/ran"], volumes=[_volume(place)]),
        more_files("vol", "ran"), ran_partly,
    ),
    Scenario("grow", "grow", grown_wholly, _grow, same, drivers=DM),
    Scenario("options", "open", activated_anew, _change_options, same, drivers=DM),
    Scenario("up", "up", is_down, lambda place: place.store.up(), same),
    Scenario("recover", "recover", half_done, lambda place: place.store.recover(), same),
    Scenario("down", "down", mounted, lambda place: place.store.down(), same),
)  # fmt: skip
