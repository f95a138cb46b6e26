"""What can go wrong with a lab, and the exit status of each."""

from typing import ClassVar


class LabError(Exception):
    """The lab did not come up; the command was not run, or did not end by itself."""

    status: ClassVar[int] = 125


class UsageError(LabError):
    """The command line asks for something that the lab cannot do."""

    status = 2


class Interrupted(BaseException):
    """A signal asked the lab to end.

    Attributes:
        status: 128 and the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 128 + signum
