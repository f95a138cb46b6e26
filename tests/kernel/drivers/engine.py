"""Stores with file systems of every make that the ext4 engine reads, or refuses."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from tests.kernel.conformance.drivers import bring_down
from thinpool import Store

_FEATURES = (
    "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg", "sparse_super",
    "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
)  # fmt: skip
_EXTENDED = "assume_storage_prezeroed=1,lazy_itable_init=0,lazy_journal_init=0,nodiscard,root_owner=0:0"


@attrs.frozen
class Make:
    """A make of ext4.

    Attributes:
        with_: features beside the usual ones.
        without: usual features that it has not.
        arguments: more arguments of mke2fs.
        extended: more extended options.
        grows: it can be grown online.
        reason: what the engine says when it refuses it, a part of it; empty where it reads it.
    """

    with_: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    arguments: str = ""
    extended: str = ""
    grows: bool = True
    reason: str = ""

    @property
    def option(self) -> str:
        """For dm.mkfsarg; the last -O and -E are those that count."""
        features = [name for name in _FEATURES if name not in self.without] + list(self.with_)
        text = f"-O none,{','.join(features)} {self.arguments}"
        return f"{text} -E {_EXTENDED},{self.extended}" if self.extended else text


MAKES: Mapping[str, Make] = {
    "usual": Make(),
    "32bit": Make(without=("64bit",)),
    "many-groups": Make(arguments="-g 2048 -G 4"),
    "no-flex_bg": Make(without=("flex_bg",), arguments="-g 4096"),
    "no-checksums": Make(without=("metadata_csum",)),
    "uninit_bg": Make(with_=("uninit_bg",), without=("metadata_csum",)),
    "inodes-of-512": Make(arguments="-I 512"),
    "no-dir_index": Make(without=("dir_index",)),
    "sparse_super2": Make(with_=("sparse_super2",), without=("sparse_super", "resize_inode"), grows=False),
    "orphan_file": Make(with_=("orphan_file",)),
    "fast_commit": Make(with_=("fast_commit",)),
    "project-quota": Make(with_=("project", "quota"), extended="quotatype=usrquota:grpquota:prjquota"),
    "large_dir": Make(with_=("large_dir",)),
    "block-maps": Make(without=("extent", "64bit")),
    "no-filetype": Make(without=("filetype",)),
    "csum_seed": Make(with_=("metadata_csum_seed",)),
}

REFUSED: Mapping[str, Make] = {
    "ea_inode": Make(with_=("ea_inode",), reason="ea_inode"),
    "inline_data": Make(with_=("inline_data",), reason="inline_data"),
    "small-blocks": Make(arguments="-b 1024", reason="1024 bytes"),
    "bigalloc": Make(with_=("bigalloc",), reason="bigalloc"),
    "small-inodes": Make(without=("extra_isize",), arguments="-I 128", reason="128"),
}


@contextlib.contextmanager
def store_of(make: Make, **options: str) -> Iterator[Store]:
    """A store whose base is of that make; brought down, and its metadata checked, at the end."""
    folder = Path(tempfile.mkdtemp(prefix="engine-", dir=os.environ.get("LAB_SCRATCH")))
    sizes = {"dm.loopdatasize": "2G", "dm.loopmetadatasize": "32M", "dm.basesize": "96M", "dm.mkfsarg": make.option}
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder)
        store = undo.enter_context(Store.open(folder / "root", "devicemapper", {**sizes, **options}))
        undo.callback(bring_down, folder / "root")
        yield store
