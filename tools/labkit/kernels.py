"""The two kernels: where they are, and the command lines that boot them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit import packages
from labkit.errors import LabError, UsageError

HOST_ROOT, CONTROL, OUT = "hostroot", "control", "out"
"""Names of the folders that the guest mounts from the host: `/` read-only, and two writable ones."""

# crc32c comes first: libcrc32c, which others need, looks for it at once and fails without
_MODULES = ("crc32c_generic", "overlay", "loop", "dm-thin-pool", "ext4")
_VIRTIO_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "virtio_blk")


@dataclass(frozen=True)
class Machine:
    """What the guest is made of.

    Attributes:
        cpus: number of processors.
        memory: bytes.
        disks: paths on the host that the emulator opens, in the order of `$LAB_DISKS`.
        folders: name to host path of the folders the guest mounts.
        run_dir: the lab's own folder on the host.
        initramfs: the guest's first file system.
    """

    cpus: int
    memory: int
    disks: Sequence[str]
    folders: dict[str, Path]
    run_dir: Path
    initramfs: Path


@dataclass(frozen=True)
class Kernel:
    """A kernel that can be booted on this host.

    Attributes:
        name: `uml` or `qemu`.
        image: the file that is run or loaded.
        modules: its module tree on the host.
        boot_modules: the modules inserted before anything else.
        boot_limit: seconds after which a boot has failed.
    """

    name: str
    image: Path
    modules: Path
    boot_modules: Sequence[str] = field(default=_MODULES)
    boot_limit: float = 60.0

    @property
    def release(self) -> str:
        """The kernel's release, as `uname -r` gives it."""
        return self.modules.name

    def command(self, machine: Machine) -> list[str]:
        """The argument list that boots the machine."""
        return (_uml_command if self.name == "uml" else _qemu_command)(self, machine)

    def environment(self, machine: Machine) -> dict[str, str]:
        """The environment of the emulator; User Mode Linux keeps the guest's memory in a file in $TMPDIR."""
        return {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "TMPDIR": str(_memory_folder(machine))}

    def disk_paths(self, count: int) -> list[str]:
        """Where so many disks appear in the guest."""
        stem = "/dev/ubd" if self.name == "uml" else "/dev/vd"
        return [stem + chr(ord("a") + number) for number in range(count)]

    def share_type(self) -> str:
        """The type of the file system that carries host folders into the guest."""
        return "hostfs" if self.name == "uml" else "9p"


def find_kernel(name: str, cpus: int, cache: Path) -> Kernel:
    """The kernel of that name, installed if need be.

    Raises:
        UsageError: more processors than it can have.
        LabError: it cannot be installed, or is not complete.
    """
    if name == "uml":
        if cpus != 1:
            raise UsageError(f"--cpus {cpus}: the uml kernel has one processor; --kernel qemu has as many as wanted")
        packages.install(["uml"], cache)
        if own := os.environ.get("THINPOOL_LAB_UML"):
            return _own_kernel(Path(own), os.environ.get("THINPOOL_LAB_MODULES"))
        kernel = Kernel(name, Path("/usr/bin/linux.uml"), _only_folder(Path("/usr/lib/uml/modules")))
    else:
        packages.install(["qemu"], cache)
        home = packages.debian_kernel(cache)
        modules = _only_folder(home / "lib" / "modules")
        images = (home / "boot" / f"{stem}-{modules.name}" for stem in ("vmlinux", "vmlinuz"))
        image = next(filter(Path.exists, images), None)
        if image is None:
            raise LabError(f"no kernel image in {home / 'boot'}; remove {home} to have it fetched again")
        kernel = Kernel(name, image, modules, (*_VIRTIO_MODULES, *_MODULES), boot_limit=240.0)
    if instead := os.environ.get("THINPOOL_LAB_MODULES"):
        return Kernel(name, kernel.image, Path(instead, kernel.release), kernel.boot_modules, kernel.boot_limit)
    return kernel


def _own_kernel(image: Path, modules: str | None) -> Kernel:
    """A User Mode Linux that was built by hand, whose release is the name of the one folder that the modules are in."""
    if not image.is_file():
        raise UsageError(f"THINPOOL_LAB_UML={image}: there is no such file")
    if not modules:
        raise UsageError("THINPOOL_LAB_UML needs THINPOOL_LAB_MODULES, the folder with the modules of that kernel")
    return Kernel("uml", image, _only_folder(Path(modules)))


def _memory_folder(machine: Machine) -> Path:
    shared = Path("/dev/shm")
    try:
        space = os.statvfs(shared)
    except OSError:
        return machine.run_dir
    fits = space.f_bavail * space.f_frsize > machine.memory and not space.f_flag & os.ST_NOEXEC
    return shared if fits else machine.run_dir


def _only_folder(parent: Path) -> Path:
    folders = sorted(parent.iterdir()) if parent.is_dir() else []
    if not folders:
        raise LabError(f"no kernel modules below {parent}")
    return folders[-1]


def _uml_command(kernel: Kernel, machine: Machine) -> list[str]:
    disks = [f"ubd{number}={path}" for number, path in enumerate(machine.disks)]
    return [
        str(kernel.image),
        f"uml_dir={machine.run_dir}/",  # a folder of its own, or two labs meet in the home directory
        "umid=uml",
        f"mem={machine.memory >> 20}M",
        f"initrd={machine.initramfs}",
        *disks,
        "con=null",
        "con0=null,fd:1",
        "con1=null",
        "quiet",
        "panic=-1",
    ]


def _qemu_command(kernel: Kernel, machine: Machine) -> list[str]:
    accelerator = "kvm" if os.environ.get("THINPOOL_LAB_KVM") == "1" else "tcg,thread=multi"
    command = [
        "/usr/bin/qemu-system-x86_64",
        *("-name", machine.run_dir.name),
        *("-M", "q35", "-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max"),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory >> 20}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-kernel", str(kernel.image), "-initrd", str(machine.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
    ]
    for tag, path in machine.folders.items():
        mode = ",readonly=on" if tag == HOST_ROOT else ""
        share = f"local,id={tag},path={_quoted(path)},security_model=none,multidevs=remap{mode}"
        command += ["-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
    for number, disk in enumerate(machine.disks):
        drive = f"file={_quoted(disk)},format=raw,if=none,id=disk{number},discard=unmap"
        command += ["-drive", drive, "-device", f"virtio-blk-pci,drive=disk{number}"]
    return command


def _quoted(value: object) -> str:
    return str(value).replace(",", ",,")  # QEMU's way to put a comma into an option
