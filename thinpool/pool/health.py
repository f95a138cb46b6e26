"""The state of a pool, as people and programs read it."""

import attrs


@attrs.frozen
class PoolStatus:
    """The state of a thin pool; sizes in bytes.

    Attributes:
        name: the device-mapper name of the pool.
        mode: `rw`, `ro`, `out_of_data_space`, `fail`, or `inactive`.
        needs_check: the kernel marked the metadata as needing a check.
        transaction_id: the user-space counter in the metadata.
        data_used: bytes of data in use.
        data_total: size of the data device.
        metadata_used: bytes of metadata in use.
        metadata_total: size of the metadata device.
        block_size: the pool's data block size.
    """

    name: str
    mode: str
    needs_check: bool
    transaction_id: int
    data_used: int
    data_total: int
    metadata_used: int
    metadata_total: int
    block_size: int
