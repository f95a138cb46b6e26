"""Entry of the `thinpool` command and of `python -m thinpool`.

Only `--version` is answered here, before anything heavy is imported; all else is `thinpool.cli.app`.
"""

import sys

from thinpool import __version__


def main() -> int:
    """Run the command line given in `sys.argv`; the exit status."""
    try:
        arguments = sys.argv[1:]
        if arguments == ["--version"]:
            sys.stdout.write(f"thinpool {__version__}\n")
            return 0
        from thinpool.cli import signals  # noqa: PLC0415 - after the quick answer

        signals.install()
        from thinpool.cli.app import run  # noqa: PLC0415 - an interrupt during the long import is caught here

        try:
            return run(arguments)
        finally:
            signals.disregard()
    except KeyboardInterrupt as interrupt:
        # Before there was anything to undo, or after all was said; without an import, which may be what it broke.
        return 128 + getattr(interrupt, "signum", 2)


if __name__ == "__main__":
    sys.exit(main())
