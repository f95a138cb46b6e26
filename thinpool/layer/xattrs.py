"""Extended attributes that belong to a layer, read and written relative to a directory's descriptor.

Up to Linux 6.12 no system call takes a directory descriptor and a name for extended attributes. `/proc/self/fd/N/NAME`
does the same: the kernel goes straight to the open directory, and the `l` calls do not follow the last part.
"""

import errno
import os
from collections.abc import Mapping

# selinux labels are the host's policy, the rest is bookkeeping of overlayfs (fs/overlayfs/overlayfs.h) and properties
# of one file system; a layer that could carry overlay's own would redirect lookups once it is mounted as a lower layer
OWN = "trusted.thinpool."
"""What the names of attributes begin with that are of no layer, but of thinpool itself."""

_FOREIGN = ("security.selinux", "trusted.overlay.", "user.overlay.", "btrfs.", OWN)
_ACLS = ("system.posix_acl_access", "system.posix_acl_default")

_CAPABILITY = "security.capability"

ACL_ACCESS, ACL_DEFAULT = _ACLS


def belongs(name: str) -> bool:
    """True for the attributes that are part of a layer's content."""
    if name.startswith("system."):
        return name in _ACLS
    return not name.startswith(_FOREIGN)


def path_of(dir_fd: int, name: str | bytes) -> str:
    """A path to a directory's entry that goes through the open directory, for calls that take no descriptor."""
    return f"/proc/self/fd/{dir_fd}/{os.fsdecode(name)}"


def read(file: int | str) -> Mapping[str, bytes]:
    """The attributes of an open file, or of a path whose last part is not followed, in the order of their names."""
    follow = isinstance(file, int)
    try:
        names = os.listxattr(file, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    if not names:
        return {}
    found = {}
    for name in sorted(names):
        if belongs(name):
            try:
                found[name] = os.getxattr(file, name, follow_symlinks=follow)
            except OSError as error:
                if error.errno != errno.EINVAL or name != _CAPABILITY:
                    raise  # no capability that the kernel knows: it grants nothing
    return found


def write(file: int | str, name: str, value: bytes) -> bool:
    """Set an attribute; False where the file system, or this type of file, takes none of that kind."""
    try:
        os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
    except OSError as error:
        # EPERM: user.* on what is neither a file nor a directory (xattr(7))
        if error.errno == errno.EOPNOTSUPP or (error.errno == errno.EPERM and name.startswith("user.")):
            return False
        raise
    return True


def drop_acls(file: int | str) -> None:
    """Remove the access control lists that a new entry inherited from its directory."""
    for name in _ACLS:
        try:
            os.removexattr(file, name, follow_symlinks=isinstance(file, int))
        except OSError as error:
            if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES}:
                raise


def has_default_acl(fd: int) -> bool:
    """True where new entries of an open directory inherit an access control list."""
    try:
        os.getxattr(fd, ACL_DEFAULT)
    except OSError as error:
        if error.errno not in {errno.ENODATA, errno.EOPNOTSUPP}:
            raise
        return False
    return True
