"""The pool's books: the kernel's thin-pool metadata, read-only.

`Books` is the way in: devices, mappings, differences and usage of one committed state. `read_books` reads a pool in
use, `pinned_books` one whose state is pinned for longer work.

Limits:

- Metadata of format 1 and 2 without incompatible features, in blocks of 4096 bytes, up to 16 GiB: all that any kernel
  has written so far.
- What is read is one committed state. Writes that the kernel took but did not commit yet (at most a second's worth) are
  not in it, and a reserved metadata snapshot lags behind a pool in use.
- A pool in use reuses the blocks of the state before the last. Without a metadata snapshot a reader must check
  afterwards that nothing was committed meanwhile; with one, the kernel's reference counts no longer tell what is
  exclusive, which then costs a walk over all devices (`thinpool.metadata.usage`).
- One metadata snapshot a pool; it belongs to nobody, survives the process and the machine, and holds the space of
  everything that is deleted while it is there. Readers of one store take turns (`thinpool.metadata.note`); what a dead
  one left is released by the next, and when the pool is activated.
- Metadata are not trusted: the checksum of each block that is read is checked, every field has bounds, and whatever
  they say, each question ends after a number of reads that grows with the blocks there are, times the depth of the
  trees (16 at the most). What contradicts itself is an error that names the block. A lie that does not, as a mapping to
  another device's data with all checksums right, cannot be told from the truth.
- Every block is checked when it is read, so damage in blocks that nobody had to read is not found; `thin_check` is for
  that.
"""

from thinpool.metadata.books import Books, DeviceDetails, read_books
from thinpool.metadata.mappings import BlockRange
from thinpool.metadata.snapshot import metadata_snapshot, pinned_books, release_leftover
from thinpool.metadata.superblock import Superblock, read_superblock
from thinpool.metadata.usage import DeviceUsage, LayerUsage

__all__ = [
    "BlockRange",
    "Books",
    "DeviceDetails",
    "DeviceUsage",
    "LayerUsage",
    "Superblock",
    "metadata_snapshot",
    "pinned_books",
    "read_books",
    "read_superblock",
    "release_leftover",
]
