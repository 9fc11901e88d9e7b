"""A deployment file with other values in it and everything else as its author wrote it, comments too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from modelyard.spec import yaml_tree


def with_models(path: Path, models: Sequence[str | None]) -> str:
    """The text of the file at `path`, in which the deployments, in their order, have these `models`; None leaves one.

    Raises SpecError as reading it does."""
    document = yaml_tree.read(path)
    text = path.read_text(encoding="utf-8")
    several = ("deployments",) in document.lines
    replaced: list[tuple[tuple[int, int], str]] = []
    for at, model in enumerate(models):
        if model is None:
            continue
        steps: yaml_tree.Steps = ("deployments", at, "model") if several else ("model",)
        replaced.append((document.spans[steps], json.dumps(model, ensure_ascii=False)))
    for (begin, end), value in sorted(replaced, reverse=True):
        text = text[:begin] + value + text[end:]
    return text
