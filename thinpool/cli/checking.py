"""Commands that look for what is wrong with a store, and mend it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs
import click

from thinpool.cli import output
from thinpool.cli.command import command
from thinpool.cli.settings import Settings

if TYPE_CHECKING:
    from thinpool.findings import Finding

_FOUND = 1


@command(
    "check",
    examples=[
        ("thinpool check", "is all well? exit status 0 says so"),
        ("thinpool check --json | jq -r '.[].problem'", "what is wrong, for a program"),
    ],
)
def check(settings: Settings) -> int:
    """Compare records, storage, kernel, mounts and pool metadata, and list what does not agree.

    Nothing is changed. What processes that died left half done is listed with what `recover` does about it; other
    commands do the same by themselves before they change anything. Exit status 0: nothing found; 1: something.
    """
    with settings.open_store() as store:
        found = store.check()
    if settings.json:
        output.write_json([attrs.asdict(finding) for finding in found])
    else:
        output.write_lines(_lines(found) if found else ["nothing found"])
    return _FOUND if found else 0


@command(
    "recover",
    examples=[
        ("thinpool recover --dry-run", "what would be done"),
        ("thinpool recover", "do it"),
    ],
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
def recover(settings: Settings, *, dry_run: bool) -> int:
    """Mend what processes that died left half done, and list what cannot be mended.

    What may be somebody's data is never touched: it is named, with what can be done about it. Exit status 0: nothing
    is left; 1: something is, or would be.
    """
    with settings.open_store() as store:
        if dry_run:
            found = store.check()
            mended, left = [each for each in found if each.remedy], [each for each in found if not each.remedy]
        else:
            done = store.recover()
            mended, left = list(done.mended), list(done.left)
    if settings.json:
        fields = [attrs.asdict(each) | {"mended": each in mended and not dry_run} for each in [*mended, *left]]
        output.write_json(fields)
    else:
        output.write_lines(_report(mended, left, dry_run=dry_run))
    return _FOUND if left else 0


def _report(mended: Sequence["Finding"], left: Sequence["Finding"], *, dry_run: bool) -> Iterator[str]:
    if not mended and not left:
        yield "nothing found"
    for each in mended:
        yield f"{'would mend' if dry_run else 'mended'}: {output.escape(each.subject)}: {output.escape(each.problem)}"
        yield f"    {each.remedy}: {output.escape(each.reason)}"
    yield from _lines(left)


def _lines(found: Iterable["Finding"]) -> Iterator[str]:
    for each in found:
        yield f"{each.kind}: {output.escape(each.subject)}: {output.escape(each.problem)}"
        yield f"    {'recover: ' + each.remedy if each.remedy else 'nothing is done'}: {output.escape(each.reason)}"
