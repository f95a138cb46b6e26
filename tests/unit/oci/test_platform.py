import platform

import pytest

from thinpool.errors import ArchiveError
from thinpool.oci.platform import Platform, this_machine


def test_this_machine_in_the_words_of_go() -> None:
    known = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "riscv64": "riscv64", "ppc64le": "ppc64le"}
    here = this_machine()
    assert here.os == "linux"
    assert here.architecture == known.get(platform.machine(), here.architecture)


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/amd64"])
def test_text(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "a//c"])
def test_no_platform(text: str) -> None:
    with pytest.raises(ArchiveError, match="accepted is OS/ARCHITECTURE"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("image", "host", "rank"),
    [
        ("linux/amd64", "linux/amd64", 0),
        ("linux/amd64/v2", "linux/amd64", 1),
        ("linux/arm64", "linux/arm64/v8", 1),
        ("linux/amd64", "linux/arm64", None),
        ("windows/amd64", "linux/amd64", None),
        ("linux/arm/v7", "linux/arm/v7", 0),
        ("linux/arm/v6", "linux/arm/v7", 2),
        ("linux/arm/v8", "linux/arm/v7", None),
        ("linux/arm", "linux/arm/v7", 1),
        ("linux/arm", "linux/arm/v6", None),
        ("linux/arm/v7", "linux/arm/v8", 2),
    ],
)
def test_what_runs_where(image: str, host: str, rank: int | None) -> None:
    assert Platform.parse(image).rank(Platform.parse(host)) == rank
