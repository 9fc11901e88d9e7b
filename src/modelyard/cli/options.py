"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

What = Annotated[str, typer.Argument(help="A deployment file (.yaml), a name of the catalogue, or a path.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
