"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT = typer.Argument(
    help="A deployment file (.yaml), a name of the catalogue, or a path; ./modelyard.yaml or the packaged model if left out."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
