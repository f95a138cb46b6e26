"""Write to a file until standard input ends, then print the begin and the end of each write that took a while.

At real-time priority, so that a write which could go on does; it sleeps between two writes, to leave the processor
to those that are measured.
"""

import itertools
import os
import select
import sys
import time

_BLOCK = b"\xa5" * 4096
_BLOCKS = 256
_PAUSE_SECONDS = 0.0002
_NOTED_SECONDS = 0.0001


def main(path: str) -> None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    noted: list[tuple[float, float]] = []
    print("writing", flush=True)
    for number in itertools.count():
        begun = time.perf_counter()
        os.pwrite(file, _BLOCK, number % _BLOCKS * len(_BLOCK))
        ended = time.perf_counter()
        if ended - begun > _NOTED_SECONDS:
            noted.append((begun, ended))
        if select.select([sys.stdin], [], [], _PAUSE_SECONDS)[0]:
            break
    os.close(file)
    for begun, ended in noted:
        print(f"{begun:.9f} {ended:.9f}")


if __name__ == "__main__":
    main(sys.argv[1])
