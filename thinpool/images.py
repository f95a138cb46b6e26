"""Images: a layer and its ancestors written as an OCI image layout, and all layers of an image taken in.

The layers of an image are verified against their digests and diff ids while they are unpacked, and appear together. A
layer below the topmost is named by its chain id, which says what it holds together with all below it, and carries it
as a label; a layer of the store that has the label already is used instead of taking it in again.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import IO, Literal

import attrs

from thinpool.comparing import export
from thinpool.errors import ConfigError, LayerExists, ThinPoolError, TreeError
from thinpool.filling import Filling, Handling
from thinpool.layer.archive import ArchiveResult
from thinpool.model import Kind
from thinpool.oci import media
from thinpool.oci.documents import parse_object
from thinpool.oci.image import Image
from thinpool.oci.opening import open_image
from thinpool.oci.platform import Platform, this_machine
from thinpool.oci.values import Descriptor, ImageConfig, Manifest, read_run
from thinpool.oci.writing import LayoutWriter, check_tag
from thinpool.session import Session
from thinpool.state import LayerRecord

ImageCompression = Literal["gzip", "zstd", "none"]
Progress = Callable[[int], None]

LABELS = "thinpool.oci/"
"""How the labels begin that an image gives to layers; an image's own labels never do."""
CHAIN_ID = f"{LABELS}chain-id"
RUN = f"{LABELS}config"
PLATFORM = f"{LABELS}platform"
_WITHOUT_DEVICES = "-without-devices"
_SUFFIXES: Mapping[str, str] = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}


@attrs.frozen
class ImageResult:
    """What an export of an image wrote.

    Attributes:
        digest: of the image's manifest, `sha256:...`.
        config_digest: of its configuration.
        tag: its name in the layout's index.
        layers: its layers, from the lowest to the highest.
    """

    digest: str
    config_digest: str
    tag: str
    layers: tuple[ArchiveResult, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be put into the layers, and why."""
        return tuple(warning for layer in self.layers for warning in layer.warnings)


# -- out


def export_image(
    session: Session,
    name: str,
    directory: str | os.PathLike[str],
    *,
    tag: str,
    compress: ImageCompression,
    progress: Progress | None,
) -> ImageResult:
    """Write a layer and its ancestors as an OCI image layout; see `Store.export_image`."""
    if compress not in _SUFFIXES:
        raise ConfigError(f"compression {compress!r}: accepted in an image are {', '.join(_SUFFIXES)}")
    check_tag(tag)
    chain = _lineage(session, name)
    layers: list[Descriptor] = []
    results: list[ArchiveResult] = []
    with _explained(directory), LayoutWriter(directory) as layout:
        for record in chain:
            done = sum(result.uncompressed_size for result in results)
            write = partial(_export_one, session, record, compress, _counted(progress, done))
            descriptor, result = layout.add_layer(f"{media.LAYER}{_SUFFIXES[compress]}", write)
            layers.append(descriptor)
            results.append(result)
        if [record.handle for record in _lineage(session, name)] != [record.handle for record in chain]:
            raise TreeError(f"layer {name} became another one while it was exported")
        config = layout.add_document(media.CONFIG, _config(chain, results))
        manifest = layout.add_document(media.MANIFEST, Manifest(config, layers).members())
        layout.finish(manifest, tag)
    return ImageResult(manifest.digest, config.digest, tag, tuple(results))


def _lineage(session: Session, name: str) -> list[LayerRecord]:
    """A layer and its ancestors, from the lowest up."""
    records = [session.record(name)]
    while (parent := records[-1].parent_name) is not None:
        records.append(session.record(parent))
    return records[::-1]


def _export_one(
    session: Session, record: LayerRecord, compress: ImageCompression, progress: Progress | None, file: IO[bytes]
) -> ArchiveResult:
    assert record.name is not None
    return export(session, record.name, file, None, compress=compress, progress=progress)


def _config(chain: list[LayerRecord], results: list[ArchiveResult]) -> dict[str, object]:
    """The configuration of an image; how it is run and on what, the nearest layer has that knows it."""
    known = {key: value for record in chain for key, value in record.labels.items() if key in {RUN, PLATFORM}}
    labels = {key: value for key, value in chain[-1].labels.items() if not key.startswith(LABELS)}
    run = read_run(parse_object(known.get(RUN, "{}").encode(), f"label {RUN}"))
    platform = Platform.parse(known[PLATFORM]) if PLATFORM in known else this_machine()
    created = [record.layer().created.isoformat().replace("+00:00", "Z") for record in chain]
    return {
        **platform.members(),
        "created": created[-1],
        "config": {**run, **({"Labels": labels} if labels else {})},
        "rootfs": {"type": "layers", "diff_ids": [result.diff_id for result in results]},
        "history": [{"created": moment, "created_by": "thinpool"} for moment in created],
    }


# -- in


def import_image(
    session: Session,
    name: str,
    source: str | os.PathLike[str] | IO[bytes],
    *,
    tag: str | None,
    labels: Mapping[str, str] | None,
    how: Handling,
) -> None:
    """Make the layers of an image; see `Store.import_image`."""
    session.ready()
    session.refuse_taken(name)
    with open_image(source, tag, this_machine(), how.limits, session.root.path) as image:
        keys = [_key(chain_id, how) for chain_id in image.chain_ids]
        while True:
            try:
                _take_in(session, name, image, keys, _labels(image.config) | dict(labels or {}), how)
            except _Waited:
                continue
            return


class _Waited(Exception):
    """Another import of the same layers was under way, and has ended."""


def _key(chain_id: str, how: Handling) -> str:
    """What tells that a layer of the store is the one of an image: unpacked in another way it is another."""
    return chain_id if how.devices else f"{chain_id}{_WITHOUT_DEVICES}"


def _take_in(
    session: Session, name: str, image: Image, keys: list[str], labels: Mapping[str, str], how: Handling
) -> None:
    parent, begin = _known(session, keys[:-1])
    limits = how.limits
    done = 0
    with Filling(session) as filling:
        for number in range(begin, len(keys)):
            layer, top = image.layers[number], number == len(keys) - 1
            one = attrs.evolve(how, limits=limits, progress=_counted(how.progress, done))
            mine = {**(labels if top else {}), CHAIN_ID: keys[number]}
            blob = layer.open(image.place)
            done += blob.size
            with io.BufferedReader(blob) as archive:
                try:
                    parent, result = filling.add(name if top else keys[number], archive, parent, mine, one)
                except LayerExists:
                    if not top:
                        _wait_for(session, keys[number])
                    raise
            layer.verify(result.digest, result.diff_id)
            limits = attrs.evolve(limits, size=limits.size - result.size, entries=limits.entries - result.entries)
        filling.publish()


def _known(session: Session, keys: list[str]) -> tuple[LayerRecord | None, int]:
    """The highest of the layers that the store has, and how many it stands for."""
    wanted = {key: number for number, key in enumerate(keys)}
    best: tuple[LayerRecord | None, int] = (None, 0)
    for record in session.state.layers():
        number = wanted.get(record.labels.get(CHAIN_ID, ""), -1)
        if number >= best[1] and _is_known(record):
            best = (record, number + 1)
    return best


def _is_known(record: LayerRecord) -> bool:
    return record.phase == "ready" and record.kind is Kind.COMMITTED and CHAIN_ID in record.labels


def _wait_for(session: Session, key: str) -> None:
    """Let another import end that makes the same layer; nobody waits in a circle, as layers are made from below.

    Raises:
        _Waited: it has ended, and either made the layer or left nothing.
        LayerExists: what has the name is something else.
    """
    record = session.state.in_any_phase(key)
    if record is not None and record.phase == "filling":
        with session.locks.layer(record.handle):
            pass
        session.ready(again=True)  # as it may have died
    elif record is not None and not (_is_known(record) and record.labels[CHAIN_ID] == key):
        raise LayerExists(
            f"a layer named {key!r} exists already, and is not known to be that of the image", hint="remove it"
        )
    raise _Waited


def _labels(config: ImageConfig) -> dict[str, str]:
    """What of an image's configuration its topmost layer keeps."""
    labels = {key: value for key, value in config.labels.items() if not key.startswith(LABELS)}
    if config.run:
        labels[RUN] = json.dumps(config.run, sort_keys=True)
    if config.platform.os and config.platform.architecture:
        labels[PLATFORM] = str(config.platform)
    return labels


def _counted(progress: Progress | None, done: int) -> Progress | None:
    return None if progress is None else lambda count: progress(done + count)


@contextmanager
def _explained(directory: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ThinPoolError(f"{os.fspath(directory)}: the layout cannot be written: {error.strerror}") from error
