"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT = typer.Argument(
    help="A deployment file (.yaml), a name of the catalogue, a path, or where a model is: hf://org/name[:quant], ...;"
    " without it ./modelyard.yaml, or else the packaged model."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
