"""`ccnet guide`."""

import difflib
from pathlib import Path
from typing import Annotated

import typer

from ccnet_cli.cli.options import examples
from ccnet_cli.cli.output import markdown
from ccnet_cli.errors import InputError

GUIDES = Path(__file__).parents[1] / "guides"
app = typer.Typer()


def guide_names(incomplete: str = "") -> list[str]:
    """The guides whose names begin so."""
    return sorted(path.stem for path in GUIDES.glob("*.md") if path.stem.startswith(incomplete))


@app.command(epilog=examples("ccnet guide", "ccnet guide extending", "ccnet guide extending > extending.md"))
def guide(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="The guide; all of them are listed if left out.", autocompletion=guide_names
        ),
    ] = None,
) -> None:
    """Show a chapter of the manual, or list them.

    On a terminal it is formatted; through a pipe it is the Markdown file.
    """
    names = guide_names()
    if name is None:
        for each in names:
            print(f"{each:{max(map(len, names))}}  {_title(each)}")
    elif name in names:
        markdown((GUIDES / f"{name}.md").read_text(encoding="utf-8"))
    else:
        near = difflib.get_close_matches(name, names, n=1)
        raise InputError(f"guide {name}", "unknown", f"did you mean {near[0]}?" if near else "see ccnet guide")


def _title(name: str) -> str:
    """The heading of a guide's first line."""
    return (GUIDES / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
