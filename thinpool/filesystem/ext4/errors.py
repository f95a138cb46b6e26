"""The one error of the reader."""


class Unreadable(Exception):
    """Why a file system cannot be read on its device, in words for people.

    It is of another kind, uses a feature that is not known here, was not left in a clean state, or is damaged; what
    is damaged is named with its number. Whoever reads looks at the mounted tree instead.
    """
