import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from thinpool.cli import render
from thinpool.cli.layers import removal_order
from thinpool.drivers.base import PoolStatus
from thinpool.errors import LayerNotFound
from thinpool.info import StoreInfo
from thinpool.model import Kind, Layer, Usage

WHEN = datetime(2025, 11, 24, 12, 30, 59, 123456, tzinfo=UTC)


def layer(name: str, parent: str | None = None, kind: Kind = Kind.COMMITTED) -> Layer:
    return Layer(name, parent, kind, WHEN, WHEN, 1 << 30, {})


FAMILY = [
    layer("job", "debian", Kind.ACTIVE),
    layer("app", "debian"),
    layer("debian"),
    layer("app-2", "app"),
    layer("other"),
]
USAGES = {each.name: Usage(size=10, exclusive=1024, referenced=3072, inodes=5) for each in FAMILY}


def test_tree_in_text() -> None:
    assert list(render.tree_lines(FAMILY, USAGES, {"job"}, render.UNICODE_BRANCHES)) == [
        "EXCLUSIVE    SHARED  KIND       LAYER",
        " 1.00 KiB  2.00 KiB  committed  debian",
        " 1.00 KiB  2.00 KiB  committed  ├─app",
        " 1.00 KiB  2.00 KiB  committed  │ └─app-2",
        " 1.00 KiB  2.00 KiB  active     └─job  (mounted)",
        " 1.00 KiB  2.00 KiB  committed  other",
    ]
    assert list(render.tree_lines(FAMILY, USAGES, set(), render.ASCII_BRANCHES))[3].endswith("  | `-app-2")


def test_tree_in_json_is_flat_and_ordered() -> None:
    items = list(render.tree_json(FAMILY, USAGES, {"job"}))
    assert [(item["name"], item["depth"]) for item in items] == [
        ("debian", 0),
        ("app", 1),
        ("app-2", 2),
        ("job", 1),
        ("other", 0),
    ]
    assert items[3] == {
        "name": "job",
        "parent": "debian",
        "depth": 1,
        "kind": "active",
        "mounted": True,
        "exclusive": 1024,
        "shared": 2048,
    }


def test_a_layer_without_its_parent_is_drawn() -> None:
    assert [branch.layer.name for branch in render.branches([layer("orphan", "gone")])] == ["orphan"]


def test_a_deep_chain_is_drawn() -> None:
    depth = 3000
    chain = [layer("0"), *(layer(str(number), str(number - 1)) for number in range(1, depth))]
    usages = {each.name: Usage(1, 1, 1) for each in chain}
    assert json.dumps(list(render.tree_json(chain, usages, set())))
    assert len(list(render.tree_lines(chain, usages, set(), render.UNICODE_BRANCHES))) == depth + 1


def test_ls_has_the_promised_keys() -> None:
    row = render.row_json(FAMILY[0], USAGES["job"], mounted=True)
    assert row["usage"] == 10
    assert {"name", "parent", "kind", "created", "size", "usage", "mounted", "labels"} <= row.keys()
    assert row["created"] == "2025-11-24T12:30:59.123456+00:00"


def test_info_has_the_promised_keys() -> None:
    pool = PoolStatus(
        "pool",
        "rw",
        needs_check=False,
        transaction_id=7,
        data_used=1 << 20,
        data_total=1 << 30,
        metadata_used=4096,
        metadata_total=1 << 21,
        block_size=1 << 16,
    )
    info = StoreInfo(Path("/srv/layers"), "devicemapper", {"dm.fs": "ext4"}, 3, pool, ["a warning"])
    document = render.info_json(info)
    assert document["pool"] == {
        "name": "pool",
        "mode": "rw",
        "needs_check": False,
        "transaction_id": 7,
        "data_used": 1 << 20,
        "data_total": 1 << 30,
        "metadata_used": 4096,
        "metadata_total": 1 << 21,
        "block_size": 1 << 16,
    }
    assert {"root", "driver", "options", "layers", "pool"} <= document.keys()
    assert "data      1.00 MiB of 1.00 GiB (0.1 %), blocks of 64K" in list(render.info_lines(info))


def test_stat_shows_mounts_and_labels() -> None:
    labelled = Layer("job", None, Kind.ACTIVE, WHEN, WHEN, 0, {"owner": "a\nb"})
    assert render.stat_json(labelled, USAGES["job"], ["/mnt"])["mounts"] == ["/mnt"]
    lines = list(render.stat_lines(labelled, USAGES["job"], ["/mnt\x1b"]))
    assert r"label       owner=a\nb" in lines
    assert r"mounted     /mnt\x1b" in lines


def test_removal_goes_from_children_to_parents() -> None:
    assert removal_order(FAMILY, ["debian", "job", "job", "app"], recursive=False) == ["job", "app", "debian"]
    assert removal_order(FAMILY, ["debian"], recursive=True) == ["job", "app-2", "app", "debian"]
    with pytest.raises(LayerNotFound, match="'missing'"):
        removal_order(FAMILY, ["job", "missing"], recursive=False)
