"""External tools for coarse work: found once, run with an argument list, what they say kept in the error."""

import os
import shutil

import attrs

from thinpool.errors import ToolError

_PACKAGES = {
    "blkid": "util-linux",
    "e2fsck": "e2fsprogs",
    "mke2fs": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "modprobe": "kmod",
    "thin_check": "thin-provisioning-tools",
    "thin_repair": "thin-provisioning-tools",
    "xfs_repair": "xfsprogs",
}
_ADMIN_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_SAID_MAX = 300


@attrs.frozen
class Tool:
    """An installed program.

    Attributes:
        name: as it is asked for.
        path: where it is.
    """

    name: str
    path: str

    def run(self, *arguments: str, timeout: float = 600.0, accept: tuple[int, ...] = (0,)) -> str:
        """Run it to its end, in the C locale: what it wrote on standard output.

        Args:
            arguments: as they are, without a shell.
            timeout: seconds.
            accept: exit statuses that are no failure.

        Raises:
            ToolError: it failed, was killed, or took longer than `timeout` seconds (it is killed then).
        """
        import sh  # noqa: PLC0415 - it loads asyncio, which most commands have no use for

        environment = {"PATH": os.environ.get("PATH", _ADMIN_PATH), "LC_ALL": "C.UTF-8"}
        command = sh.Command(self.path)
        try:
            done = command(*arguments, _env=environment, _timeout=timeout, _tty_out=False, _ok_code=accept)
            return str(done)
        except sh.TimeoutException as error:
            raise ToolError(f"{self.name} took longer than {timeout:.0f} s and was ended") from error
        except sh.ErrorReturnCode as error:
            said = error.stderr.decode(errors="replace").strip() or error.stdout.decode(errors="replace").strip()
            last = " / ".join(said.splitlines()[-3:])[-_SAID_MAX:]
            raise ToolError(f"{self.name} failed with status {error.exit_code}: {last or 'it said nothing'}") from error


def tool(name: str) -> Tool:
    """Find a program on PATH or in the administrator's folders.

    Raises:
        ToolError: it is not installed; the hint names Debian's package.
    """
    path = shutil.which(name) or shutil.which(name, path=_ADMIN_PATH)
    if path is None:
        package = _PACKAGES.get(name, name)
        raise ToolError(f"{name} is not installed", hint=f"apt-get install {package}")
    return Tool(name, path)
