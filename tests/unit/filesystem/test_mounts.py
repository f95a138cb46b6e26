import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from thinpool.filesystem.mounts import MountEntry, mount_table, parse_mountinfo

PATHS = st.binary(min_size=1, max_size=40).map(lambda raw: b"/" + raw.replace(b"\0", b""))
WORDS = st.from_regex(rb"[a-z0-9._]{1,12}", fullmatch=True)


def escape(raw: bytes) -> bytes:
    """As the kernel's mangle() in fs/proc_namespace.c does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in raw)


@given(
    st.integers(1, 1 << 31),
    st.integers(0, 4095),
    st.integers(0, 1 << 20),
    PATHS,
    PATHS,
    st.booleans(),
    WORDS,
    PATHS,
    st.integers(0, 3),
)
def test_any_line_is_read_back(
    number: int,
    major: int,
    minor: int,
    root: bytes,
    target: bytes,
    read_only: bool,
    fs_type: bytes,
    source: bytes,
    tags: int,
) -> None:
    flags = b"ro,noatime" if read_only else b"rw,noatime"
    line = b"%d 1 %d:%d %s %s %s" % (number, major, minor, escape(root), escape(target), flags)
    line += b"".join(b" shared:%d" % tag for tag in range(tags))
    line += b" - %s %s rw,errors=continue" % (fs_type, escape(source))
    assert parse_mountinfo(line) == MountEntry(
        number,
        (major, minor),
        os.fsdecode(root),
        Path(os.fsdecode(target)),
        read_only,
        fs_type.decode(),
        os.fsdecode(source),
    )


def test_the_table_of_this_process_is_read() -> None:
    assert any(entry.target == Path("/proc") and entry.fs_type == "proc" for entry in mount_table())
