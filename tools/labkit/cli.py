"""The command line of tools/lab."""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.errors import Interrupted, LabError
from labkit.launcher import Disk, Request, run

_DESCRIPTION = """\
Run a command as root inside a Linux kernel that has device-mapper, whatever this machine's kernel has.

The guest sees this machine's files at their own paths. It may write anywhere, and nothing of it reaches this
machine: writes go to memory and vanish with the lab. What is to stay goes to $LAB_OUT.
"""

_EPILOG = """\
in the guest:
  $LAB_OUT       folder that outlives the lab (--out names it)
  $LAB_SCRATCH   fast folder in memory that does not (also $TMPDIR)
  $LAB_DISKS     paths of the disks, separated by spaces, in the order of the options
  $LAB_KERNEL    uml or qemu
  python and thinpool are those of this checkout's .venv; modprobe works for every module of the kernel;
  the working folder is the caller's if that lies in the checkout, else the checkout; stdin is empty.

exit status:
  the command's own (128+N if signal N killed it)
  2    wrong usage                   124  ended at the time limit
  125  the guest did not come up     129, 130, 143  ended by SIGHUP, Ctrl-C, SIGTERM

examples:
  tools/lab -- dmsetup targets
  tools/lab --disk 4G -- sh -c 'mkfs.ext4 -q $LAB_DISKS && mount $LAB_DISKS /mnt && df /mnt'
  tools/lab --out results --timeout 300 -- python -m pytest -m kernel
  tools/lab --kernel qemu --cpus 2 -- nproc
  tools/lab --keep-disk disk.img -- mkfs.ext4 -q /dev/ubda      # disk.img is there for the next lab

docs/lab.md tells more: how it works, power cuts, limits, troubleshooting.
"""


def parse(arguments: Sequence[str]) -> Request:
    """Turn a command line into a request; wrong usage ends the process with status 2."""
    parser = argparse.ArgumentParser(
        prog="tools/lab",
        usage="tools/lab [OPTION]... -- COMMAND [ARGUMENT]...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--kernel", choices=("uml", "qemu"), default="uml", help="User Mode Linux (default, fast) or QEMU (many CPUs)")
    add("--cpus", type=_count, default=1, metavar="N", help="processors; more than 1 with --kernel qemu only")
    add("--memory", type=_size, default=3 << 30, metavar="SIZE", help="memory of the guest, as in 512M (default 3G)")
    add("--disk", type=_new_disk, action="append", dest="disks", metavar="SIZE", help="an empty disk; repeatable")
    add(
        "--keep-disk",
        type=_kept_disk,
        action="append",
        dest="disks",
        metavar="FILE",
        help="a disk whose content stays in FILE (made with 4G, sparse, if missing or empty); repeatable",
    )
    add("--out", type=Path, metavar="DIR", help="the folder behind $LAB_OUT, made if missing")
    add("--timeout", type=_seconds, metavar="S", help="end the lab after so many seconds, with status 124")
    add("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command or not command[0]:
        parser.error("a command to run is missing: tools/lab [OPTION]... -- COMMAND [ARGUMENT]...")
    return Request(
        command=command,
        kernel=options.kernel,
        cpus=options.cpus,
        memory=options.memory,
        disks=options.disks or [],
        out=options.out,
        timeout=options.timeout,
    )


def main(arguments: Sequence[str]) -> int:
    """Run tools/lab; gives back the exit status."""
    try:
        return run(parse(arguments))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.status
    except Interrupted as interrupt:
        return interrupt.status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141  # as a program that SIGPIPE ends


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE | re.ASCII)
    size = int(match[1]) << (" KMGT".index(match[2].upper() or " ") * 10) if match else 0
    if size == 0 or size % 4096:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}; accepted are whole 4 KiB blocks, as in 512M or 4G")
    return size


def _new_disk(text: str) -> Disk:
    return Disk(size=_size(text))


def _kept_disk(text: str) -> Disk:
    return Disk(file=Path(text))


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,2}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"not a number of processors: {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}")
    return float(text)
