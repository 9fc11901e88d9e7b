"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT = typer.Argument(
    help="A deployment file (.yaml), a name of the catalogue, a path, or hf://org/name; without it ./modelyard.yaml, or"
    " else the packaged model."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
