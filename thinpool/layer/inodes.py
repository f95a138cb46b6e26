"""Sets of inode numbers, of which there may be millions."""

_BITS = 9
_PAGE_BYTES = 1 << (_BITS - 3)


class InodeSet:
    """Inode numbers as bits in small pages: file systems give numbers out in runs."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> None:
        """Put a number in."""
        page = self._pages.get(number >> _BITS)
        if page is None:
            page = self._pages[number >> _BITS] = bytearray(_PAGE_BYTES)
        low = number & ((1 << _BITS) - 1)
        page[low >> 3] |= 1 << (low & 7)

    def __contains__(self, number: int) -> bool:
        page = self._pages.get(number >> _BITS)
        low = number & ((1 << _BITS) - 1)
        return page is not None and bool(page[low >> 3] >> (low & 7) & 1)
