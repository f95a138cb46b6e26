"""A /dev that nobody looks after, as in many containers: a plain tmpfs with none of the nodes that devtmpfs makes."""

import subprocess
import sys

_SETUP = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
for name in null zero urandom; do touch "$1/$name"; mount --bind "/dev/$name" "$1/$name"; done
if test -n "$3"; then mount -t tmpfs tmpfs /run/udev; fi
if test -n "$4"; then mount --bind "$4" /proc/misc; fi
mount --rbind "$1" /dev
exec "$5" -c "$2"
"""


def run_in_private_dev(script: str, folder: str, *, hide_udev: bool = True, misc: str = "") -> str:
    """Run Python in a mount namespace of its own, with an empty /dev: what it prints.

    Args:
        script: the Python.
        folder: an empty folder, to be mounted on in the namespace alone.
        hide_udev: let /run/udev be empty too.
        misc: a file to be seen as /proc/misc.
    """
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh"]
    arguments = [folder, script, "y" if hide_udev else "", misc, sys.executable]
    done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
