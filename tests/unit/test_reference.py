"""The reference is generated, and what is committed is what the code says now."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
specification = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
assert specification is not None and specification.loader is not None
generate = importlib.util.module_from_spec(specification)
specification.loader.exec_module(generate)


@pytest.mark.parametrize("page", generate.PAGES)
def test_a_page_of_the_reference_is_what_the_code_says(page: str) -> None:
    assert (DOCS / "reference" / page).read_text() == generate.PAGES[page](), "run: ./yard dev python docs/generate.py"


def test_the_exported_schema_names_every_key_of_a_deployment() -> None:
    schema = json.loads((DOCS / "reference" / "modelyard.schema.json").read_text())
    assert {"name", "model", "engine", "limits"} <= set(schema["$defs"]["Deployment"]["properties"])
