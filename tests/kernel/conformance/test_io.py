"""Programs in a layer find a file system as they expect it, above all where a file came from a lower layer."""

import ctypes
import errno
import fcntl
import io
import mmap
import os
import select
import socket
import struct
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.conformance.drivers import Driver
from tests.kernel.conformance.layers import fill, told
from thinpool import Store

pytestmark = pytest.mark.kernel(device_mapper=False)

_BLOCK = 4096


def lower(root: Path) -> None:
    (root / "d").mkdir()
    (root / "f").write_bytes(b"lower" * 4000)
    (root / "d/g").write_text("g")


@pytest.fixture
def root(store: Store) -> Iterator[Path]:
    """A mounted active layer with files from below."""
    fill(store, "base", lower)
    store.prepare("work", "base")
    with store.mount("work") as root:
        yield root


def test_mapped_memory(root: Path) -> None:
    with (root / "f").open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        assert mapping[:5] == b"lower"
        mapping[:5] = b"upper"
        mapping.flush()
        assert (root / "f").read_bytes()[:10] == b"upperlower"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as private:
            private[:5] = b"mine!"
        assert (root / "f").read_bytes()[:5] == b"upper"


def test_direct_input_and_output(root: Path) -> None:
    with mmap.mmap(-1, _BLOCK) as buffer:
        buffer[:] = b"d" * _BLOCK
        fd = os.open(root / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        try:
            assert os.pwritev(fd, [buffer], _BLOCK) == _BLOCK
            buffer[:] = bytes(_BLOCK)
            assert os.preadv(fd, [buffer], _BLOCK) == _BLOCK
            assert buffer[:] == b"d" * _BLOCK
        finally:
            os.close(fd)
    assert (root / "direct").read_bytes() == bytes(_BLOCK) + b"d" * _BLOCK


def test_locks_exclude_each_other(root: Path) -> None:
    with (root / "f").open("r+b") as one, (root / "f").open("r+b") as two:
        fcntl.flock(one, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        span = struct.pack("@hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
        fcntl.fcntl(one, fcntl.F_OFD_SETLK, span)
        with pytest.raises(OSError, match="unavailable"):
            fcntl.fcntl(two, fcntl.F_OFD_SETLK, span)


def test_appends_of_two_writers_do_not_overwrite_each_other(root: Path) -> None:
    with (root / "f").open("ab", buffering=0) as one, (root / "f").open("ab", buffering=0) as two:
        for number in range(10):
            (one if number % 2 else two).write(b"%d" % number)
    assert (root / "f").read_bytes() == b"lower" * 4000 + b"0123456789"


def test_events_of_what_is_made_and_changed(root: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    watcher = libc.inotify_init1(os.O_CLOEXEC)
    assert watcher >= 0
    try:
        assert libc.inotify_add_watch(watcher, os.fsencode(root / "d"), 0x100 | 0x8 | 0x200) >= 0
        (root / "d/new").write_text("x")
        (root / "d/g").unlink()
        seen = set()
        while select.select([watcher], [], [], 0)[0]:
            data = os.read(watcher, 4096)
            while data:
                mask, length = struct.unpack_from("=iIII", data)[1], struct.unpack_from("=iIII", data)[3]
                seen.add((mask & 0xFFF, data[16 : 16 + length].rstrip(b"\0")))
                data = data[16 + length :]
        assert seen == {(0x100, b"new"), (0x8, b"new"), (0x200, b"g")}
    finally:
        os.close(watcher)


def test_files_without_a_name(root: Path) -> None:
    try:
        fd = os.open(root, os.O_TMPFILE | os.O_RDWR)
    except OSError as error:  # what programs take for "this file system has none", open(2)
        if error.errno == errno.EOPNOTSUPP:
            return
        raise
    try:
        os.write(fd, b"named at last")
        directory = os.open("/proc/self/fd", os.O_RDONLY)
        os.link(f"{fd}", root / "named", src_dir_fd=directory)
        os.close(directory)
        assert (root / "named").read_bytes() == b"named at last"
    finally:
        os.close(fd)


def test_an_unlinked_file_is_still_read_and_written(root: Path) -> None:
    with (root / "f").open("r+b") as file:
        (root / "f").unlink()
        assert file.read(5) == b"lower"
        file.write(b"!")
        file.seek(5)
        assert file.read(1) == b"!"
        assert os.fstat(file.fileno()).st_nlink == 0
    assert not (root / "f").exists()


def test_a_file_is_the_same_file_after_the_first_write(root: Path) -> None:
    before = (root / "f").stat()
    with (root / "f").open("ab") as file:
        file.write(b"!")
        assert os.fstat(file.fileno()).st_ino == before.st_ino
    after = (root / "f").stat()
    assert (after.st_dev, after.st_ino) == (before.st_dev, before.st_ino)


def test_holes_are_kept_and_found(root: Path, driver: Driver) -> None:
    fd = os.open(root / "sparse", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, b"end", 8 << 20)
        os.fsync(fd)
        assert os.pread(fd, 100, 4 << 20) == bytes(100)
        if driver.tells_holes:
            assert os.lseek(fd, 0, os.SEEK_DATA) >= (8 << 20) - 65_536
            assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.fstat(fd).st_blocks * 512 < 1 << 20
    finally:
        os.close(fd)


def test_data_copied_inside_the_kernel(root: Path) -> None:
    with (root / "f").open("rb") as source, (root / "copy").open("wb") as copy:
        left = 20_000
        while left:
            left -= os.copy_file_range(source.fileno(), copy.fileno(), left)
    with (root / "f").open("rb") as source, (root / "sent").open("wb") as sent:
        assert os.sendfile(sent.fileno(), source.fileno(), 0, 20_000) == 20_000
    assert (root / "copy").read_bytes() == (root / "sent").read_bytes() == b"lower" * 4000


def test_a_directory_read_while_its_entries_go(root: Path) -> None:
    for number in range(300):
        (root / "d" / f"{number}").touch()
    with os.scandir(root / "d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    (root / "d").rmdir()
    assert not (root / "d").exists()


def test_a_directory_that_is_not_empty_is_not_removed(root: Path) -> None:
    with pytest.raises(OSError, match="not empty"):
        (root / "d").rmdir()
    with pytest.raises(OSError, match="not empty"):
        (root / "other").mkdir()
        (root / "other").rename(root / "d")
    assert (root / "d/g").read_text() == "g"


def test_the_working_directory_has_a_name(root: Path) -> None:
    before = os.open(".", os.O_RDONLY)
    os.chdir(root / "d")
    try:
        (root / "d/g").write_text("changed")
        assert os.getcwd() == str(root / "d")
        assert os.path.samestat(os.stat(".."), root.stat())
    finally:
        os.fchdir(before)
        os.close(before)


def test_sockets_and_fifos_connect(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(root / "socket"))
        server.listen()
        client.connect(str(root / "socket"))
        connection, _ = server.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(5) == b"hello"
    os.mkfifo(root / "fifo")
    reader = os.open(root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(root / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(writer)
    os.close(reader)


def test_syncing_and_the_room_that_is_left(root: Path) -> None:
    fd = os.open(root / "f", os.O_RDWR)
    os.pwrite(fd, b"synced", 0)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    found = os.statvfs(root)
    assert 0 < found.f_bavail <= found.f_blocks
    assert found.f_namemax >= 242


def test_a_command_in_a_layer(store: Store) -> None:
    store.import_layer("tools", tools())
    store.prepare("job", "tools")
    assert store.run("job", ["/bin/sh", "-c", "echo inside >/file; exit 7"]) == 7
    assert store.run("job", ["sh", "-c", "test -f /file && rm /file && mkdir /made && cd /made && pwd >here"]) == 0
    assert store.run("job", ["/missing"]) == 127
    assert store.run("job", ["sh", "-c", "test -c /dev/null && test -d /proc/self"]) == 0
    assert told(store.changes("job")) == [("A", "/made"), ("A", "/made/here")]
    assert store.run("tools", ["sh", "-c", "echo x >/file"]) != 0
    store.commit("done", "job")
    store.view("look", "done")
    assert store.run("look", ["sh", "-c", "test -f /made/here && ! echo x >/file"]) == 0


def tools() -> io.BytesIO:
    """A root file system with a shell."""
    out = io.BytesIO()
    busybox = Path("/bin/busybox").read_bytes()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in ("bin", "dev", "proc", "sys"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        member = tarfile.TarInfo("bin/busybox")
        member.size, member.mode = len(busybox), 0o755
        tar.addfile(member, io.BytesIO(busybox))
        for applet in ("sh", "test", "rm", "mkdir", "pwd", "echo"):
            member = tarfile.TarInfo(f"bin/{applet}")
            member.type, member.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(member)
    out.seek(0)
    return out
