"""What a look at a store finds that is not as it should be, and what is done about it."""

from collections.abc import Sequence

import attrs


@attrs.frozen
class Finding:
    """One thing that is not as it should be.

    Attributes:
        kind: what sort of thing, one of those in docs/recovery.md.
        subject: what it is about: a layer, a device, a file.
        problem: what is wrong with it.
        remedy: what `recover` does about it; None where it does nothing.
        reason: why that is safe; or, where nothing is done, why not, and what an administrator can do.
    """

    kind: str
    subject: str
    problem: str
    remedy: str | None
    reason: str

    @property
    def key(self) -> tuple[str, str]:
        """What makes two findings the same one, found twice."""
        return self.kind, self.subject


@attrs.frozen
class Recovered:
    """What a recovery came to.

    Attributes:
        mended: what was found before, and is not there any more.
        left: what is there still.
    """

    mended: Sequence[Finding]
    left: Sequence[Finding]
