"""Digests: their form, the place of a blob, and the names of stacks of layers."""

import hashlib
import re
from collections.abc import Sequence

from thinpool.errors import ArchiveError
from thinpool.layer.text import shown

_SHA256 = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
BLOBS = "blobs/sha256"


def check_digest(text: str, what: str | None = None) -> str:
    """Give back a digest of the one form that every tool knows, `sha256:` and 64 hexadecimal digits.

    Args:
        text: the digest.
        what: whose it is, for the message.

    Raises:
        ArchiveError: anything else; no path is ever made from it.
    """
    if _SHA256.fullmatch(text) is None:
        whose = f"{what}: " if what else ""
        raise ArchiveError(f"{whose}digest {shown(text)}; accepted is sha256: and 64 digits of 0-9 a-f")
    return text


def digest_of(data: bytes) -> str:
    """The digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def blob_path(digest: str) -> str:
    """Where a layout keeps the blob of a digest (image-layout.md, "Blobs")."""
    return f"{BLOBS}/{check_digest(digest).removeprefix('sha256:')}"


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """What each layer of a stack is together with all layers below it (config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return tuple(chain)
