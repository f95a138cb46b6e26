"""Where two trees may differ, as a driver knows it, so that a comparison looks nowhere else."""

from collections.abc import Iterable

import attrs


@attrs.define(eq=False)
class Place:
    """One entry that may differ, and what matters below it if it is a directory.

    Attributes:
        children: the entries in it that may differ, by name.
        listed: which names are in it may differ too, so all of them are looked at, each for itself.
        whole: all that is below it may differ.
    """

    children: dict[str, "Place"] = attrs.field(factory=dict)
    listed: bool = False
    whole: bool = False

    @property
    def leads_on(self) -> bool:
        """True where something below it is to be looked at."""
        return bool(self.children) or self.listed or self.whole


@attrs.define(eq=False)
class Scope:
    """A superset of what differs between two trees.

    A directory that is in one of them only is always looked at as a whole. Of a file with several names, all names that
    it has in either tree must be in the scope if one of them was added or removed, or if its inode was changed.

    Attributes:
        root: the root directory.
        same_inodes: the trees number their inodes alike, so that two directories of one path are looked at as a whole
            where their numbers differ; else whoever makes the scope has to say where one was replaced.
    """

    root: Place = attrs.field(factory=Place)
    same_inodes: bool = True

    def add(self, parts: Iterable[str], *, listed: bool = False, whole: bool = False) -> None:
        """Take in the entry with these names down from the root."""
        place = self.root
        for part in parts:
            found = place.children.get(part)
            if found is None:
                found = place.children[part] = Place()
            place = found
        place.listed = place.listed or listed
        place.whole = place.whole or whole
