"""Mount namespaces with a /dev that nobody looks after, as in many containers."""

import subprocess
import sys

_SETUP = """
set -e
if test -n "$1"; then
    mount -t tmpfs -o mode=755 tmpfs "$1"
    for name in null zero urandom; do touch "$1/$name"; mount --bind "/dev/$name" "$1/$name"; done
    mount --rbind "$1" /dev
fi
mount -t tmpfs tmpfs /run/udev
if test -n "$2"; then mount --bind "$2" /proc/misc; fi
exec "$3" -c "$4"
"""


def run_without_udevd(script: str, *, dev: str = "", misc: str = "") -> str:
    """Run Python in a mount namespace of its own, where nothing speaks of an udevd: what it prints.

    Args:
        script: the Python.
        dev: an empty folder, to become a /dev with none of the nodes that a devtmpfs has; "" leaves /dev as it is.
        misc: a file to be seen as /proc/misc; "" leaves that as it is.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh"]
    done = subprocess.run(
        [*command, dev, misc, sys.executable, script], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
