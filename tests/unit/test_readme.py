from tests.readme import after
from thinpool.pool.options import PoolOptions, describe

LATER = {"change": "may change", "grow": "may grow", "keep": "fixed"}


def options_table() -> str:
    defaults = PoolOptions().to_mapping()
    rows = []
    for option in describe():
        default = f"`{defaults[option.key]}`" if defaults[option.key] else ""
        rows.append(f"| `{option.key}` | {default} | {LATER[option.later]} | {option.help} |")
    return "\n".join(["| option | default | later | what |", "|---|---|---|---|", *rows])


def test_the_table_of_options_is_complete() -> None:
    assert after("table: options") == options_table()
