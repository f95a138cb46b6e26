import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thinpool.errors import ArchiveError
from thinpool.oci.digests import blob_path, chain_ids, check_digest, digest_of

digests = st.binary(max_size=8).map(digest_of)


@given(st.binary())
def test_a_digest_leads_to_its_blob(data: bytes) -> None:
    assert blob_path(digest_of(data)) == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"


GOOD = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "sha256:" + "/" * 64,
        "sha256:" + "." * 64,
        GOOD[:-1],
        GOOD + "0",
        GOOD + "\n",
        " " + GOOD,
        GOOD.upper(),
        GOOD.replace("a", "A"),
        GOOD.replace("0", "\u0660"),
        "sha512:" + "0a" * 64,
        "md5:" + "0a" * 16,
        "../" + GOOD,
    ],
)
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(ArchiveError, match="accepted is sha256: and 64 digits"):
        blob_path(text)


@given(st.text())
def test_no_text_leads_elsewhere(text: str) -> None:
    try:
        path = blob_path(check_digest(text))
    except ArchiveError:
        return
    assert path == "blobs/sha256/" + text.removeprefix("sha256:")
    assert set(text.removeprefix("sha256:")) <= set("0123456789abcdef")


@given(st.lists(digests, max_size=5))
def test_chain_ids_are_those_of_the_specification(diff_ids: list[str]) -> None:
    chain = chain_ids(diff_ids)
    assert len(chain) == len(diff_ids)
    if diff_ids:
        assert chain[0] == diff_ids[0]
    for number in range(1, len(diff_ids)):
        text = f"{chain[number - 1]} {diff_ids[number]}"
        assert chain[number] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
