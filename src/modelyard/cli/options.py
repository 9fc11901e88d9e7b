"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

What = Annotated[
    str, typer.Argument(help="A deployment file (.yaml), a name of the catalogue, a path, or hf://org/name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
