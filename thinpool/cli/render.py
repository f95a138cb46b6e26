"""Values of a store as JSON objects and as lines of text; nothing here reads a store."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import attrs

from thinpool.cli.output import escape, table
from thinpool.model import Layer, Usage, Volume
from thinpool.units import format_size, human_size

if TYPE_CHECKING:
    from thinpool.drivers.base import PoolStatus
    from thinpool.info import StoreInfo

UNICODE_BRANCHES = ("├─", "└─", "│ ", "  ")
ASCII_BRANCHES = ("|-", "`-", "| ", "  ")


@attrs.frozen(eq=False, repr=False)
class Branch:
    """A layer in its place in the tree.

    Attributes:
        layer: the layer.
        above: the parent's place, or None at the top.
        depth: how many are above.
        last: whether it is the last child of its parent.
    """

    layer: Layer
    above: "Branch | None"
    depth: int
    last: bool


def moment(when: datetime) -> str:
    """A time for people: UTC, whole seconds."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def volume_text(volume: Volume) -> str:
    """A volume as it is given to `--volume`."""
    return f"{volume.source}:{volume.target}{':ro' if volume.read_only else ''}"


def layer_json(layer: Layer) -> dict[str, object]:
    """A layer's record."""
    return {
        "name": layer.name,
        "parent": layer.parent,
        "kind": layer.kind.value,
        "created": layer.created.isoformat(),
        "updated": layer.updated.isoformat(),
        "size": layer.size,
        "labels": dict(layer.labels),
        "volumes": [volume_text(volume) for volume in layer.volumes],
    }


def row_json(layer: Layer, usage: Usage, *, mounted: bool) -> dict[str, object]:
    """A layer's record with what it occupies; `usage` is what it holds and its parent does not."""
    return {**layer_json(layer), "usage": usage.size, "mounted": mounted}


def stat_json(layer: Layer, usage: Usage, mounts: Iterable[str]) -> dict[str, object]:
    """All that is known of a layer."""
    places = list(mounts)
    space = {"exclusive": usage.exclusive, "referenced": usage.referenced, "inodes": usage.inodes}
    return {**row_json(layer, usage, mounted=bool(places)), **space, "mounts": places}


def stat_lines(layer: Layer, usage: Usage, mounts: Iterable[str]) -> Iterator[str]:
    """All that is known of a layer, a fact a line."""
    facts = [
        ("name", layer.name),
        ("parent", layer.parent or "-"),
        ("kind", layer.kind.value),
        ("created", layer.created.isoformat(sep=" ")),
        ("updated", layer.updated.isoformat(sep=" ")),
        ("size", human_size(layer.size) if layer.size else "-"),
        ("own", human_size(usage.size)),
        ("exclusive", human_size(usage.exclusive)),
        ("referenced", human_size(usage.referenced)),
    ]
    if usage.inodes is not None:
        facts.append(("inodes", str(usage.inodes)))
    facts += [("label", f"{escape(key)}={escape(value)}") for key, value in sorted(layer.labels.items())]
    facts += [("volume", escape(volume_text(volume))) for volume in layer.volumes]
    facts += [("mounted", escape(path)) for path in mounts]
    return _facts(facts)


def layer_cells(layer: Layer, usage: Usage, *, mounted: bool) -> tuple[str, ...]:
    """A layer's row in a listing for programs: sizes in bytes."""
    return (
        layer.name,
        layer.parent or "-",
        layer.kind.value,
        layer.created.isoformat(),
        str(layer.size),
        str(usage.size),
        "mounted" if mounted else "-",
    )


def layer_table(layers: Iterable[Layer], usages: Mapping[str, Usage], mounted: AbstractSet[str]) -> Iterator[str]:
    """A listing for people."""
    headers = ("NAME", "PARENT", "KIND", "CREATED", "SIZE", "USAGE", "MOUNTED")
    rows = [
        (
            layer.name,
            layer.parent or "-",
            layer.kind.value,
            moment(layer.created),
            human_size(layer.size) if layer.size else "-",
            human_size(usages[layer.name].size),
            "yes" if layer.name in mounted else "-",
        )
        for layer in layers
    ]
    return table(headers, rows, right=frozenset({4, 5}))


def branches(layers: Iterable[Layer]) -> Iterator[Branch]:
    """The layers in the order of a drawn tree: each before its children, siblings by name.

    A layer whose parent is not among them stands at the top.
    """
    by_name = {layer.name: layer for layer in layers}
    children: dict[str | None, list[Layer]] = {}
    for name in sorted(by_name):
        parent = by_name[name].parent
        children.setdefault(parent if parent in by_name else None, []).append(by_name[name])
    # A stack and not recursion: chains of layers may be deeper than Python's stack.
    stack = [Branch(layer, None, 0, last=True) for layer in reversed(children.get(None, []))]
    while stack:
        branch = stack.pop()
        yield branch
        below = children.get(branch.layer.name, [])
        stack.extend(Branch(layer, branch, branch.depth + 1, last=layer is below[-1]) for layer in reversed(below))


def tree_json(
    layers: Iterable[Layer], usages: Mapping[str, Usage], mounted: AbstractSet[str]
) -> Iterator[dict[str, object]]:
    """The tree as a flat list in drawn order, each with its depth: nesting would overflow parsers on deep chains."""
    for branch in branches(layers):
        usage = usages[branch.layer.name]
        yield {
            "name": branch.layer.name,
            "parent": branch.layer.parent,
            "depth": branch.depth,
            "kind": branch.layer.kind.value,
            "mounted": branch.layer.name in mounted,
            "exclusive": usage.exclusive,
            "shared": usage.referenced - usage.exclusive,
        }


def tree_lines(
    layers: Iterable[Layer], usages: Mapping[str, Usage], mounted: AbstractSet[str], drawing: Sequence[str]
) -> Iterator[str]:
    """The tree as text, figures first, so that a deep chain leaves the columns alone."""
    rows = []
    for branch in branches(layers):
        usage = usages[branch.layer.name]
        mark = "  (mounted)" if branch.layer.name in mounted else ""
        rows.append(
            (
                human_size(usage.exclusive),
                human_size(usage.referenced - usage.exclusive),
                branch.layer.kind.value,
                _stem(branch, drawing) + branch.layer.name + mark,
            )
        )
    return table(("EXCLUSIVE", "SHARED", "KIND", "LAYER"), rows, right=frozenset({0, 1}))


def _stem(branch: Branch, drawing: Sequence[str]) -> str:
    """The lines that lead to a layer."""
    fork, corner, line, gap = drawing
    if branch.above is None:
        return ""
    parts = [corner if branch.last else fork]
    above: Branch | None = branch.above
    while above is not None and above.above is not None:
        parts.append(gap if above.last else line)
        above = above.above
    return "".join(reversed(parts))


def usage_json(name: str, usage: Usage) -> dict[str, object]:
    """What a layer occupies, in bytes."""
    return {"name": name, **attrs.asdict(usage)}


def usage_table(usages: Mapping[str, Usage]) -> Iterator[str]:
    """What layers occupy, for people."""
    rows = [
        (
            human_size(usage.size),
            human_size(usage.exclusive),
            human_size(usage.referenced),
            "-" if usage.inodes is None else str(usage.inodes),
            name,
        )
        for name, usage in sorted(usages.items())
    ]
    return table(("SIZE", "EXCLUSIVE", "REFERENCED", "INODES", "NAME"), rows, right=frozenset({0, 1, 2, 3}))


def info_json(info: "StoreInfo") -> dict[str, object]:
    """A store and its pool; sizes in bytes."""
    return {
        "root": str(info.root),
        "driver": info.driver,
        "options": dict(info.options),
        "layers": info.layers,
        "pool": None if info.pool is None else attrs.asdict(info.pool),
        "warnings": list(info.warnings),
    }


def info_lines(info: "StoreInfo") -> Iterator[str]:
    """A store and its pool, a fact a line."""
    facts = [("root", escape(str(info.root))), ("driver", info.driver), ("layers", str(info.layers))]
    if info.pool is not None:
        facts += _pool_facts(info.pool)
    facts += [("option", f"{key}={escape(value)}") for key, value in sorted(info.options.items())]
    facts += [("warning", escape(warning)) for warning in info.warnings]
    return _facts(facts)


def _pool_facts(pool: "PoolStatus") -> list[tuple[str, str]]:
    check = ", needs check" if pool.needs_check else ""
    return [
        ("pool", f"{pool.name} ({pool.mode}{check}), transaction {pool.transaction_id}"),
        ("data", f"{_share(pool.data_used, pool.data_total)}, blocks of {format_size(pool.block_size)}"),
        ("metadata", _share(pool.metadata_used, pool.metadata_total)),
    ]


def _share(used: int, total: int) -> str:
    percent = f" ({100 * used / total:.1f} %)" if total else ""
    return f"{human_size(used)} of {human_size(total)}{percent}"


def _facts(facts: Sequence[tuple[str, str]]) -> Iterator[str]:
    width = max(len(key) for key, _ in facts)
    return (f"{key.ljust(width)}  {value}" for key, value in facts)
