"""The parts of README.md, and of the pages in docs, that tests execute or compare."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
DRIVERS = Path(__file__).parents[1] / "docs" / "drivers.md"


def example(name: str, page: Path = README) -> str:
    """The code block after the comment that names it."""
    found = re.search(rf"<!-- example: {name} -->\n```\w+\n(.*?)\n```", page.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def after(name: str) -> str:
    """The paragraph or table after the comment that names it."""
    found = re.search(rf"<!-- {name} -->\n(.*?)(?:\n\n|\Z)", README.read_text(), re.DOTALL)
    assert found is not None
    return found[1].strip()
