"""The names that a shell completes, read where they lie.

No other process is asked and nothing heavy is imported: somebody waits with a finger on TAB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from modelyard import settings


def _deployments() -> Iterable[str]:
    folder = settings.load().state_dir / "deployments"
    return (path.stem for path in folder.glob("*.json"))


def _engines() -> Iterable[str]:
    from modelyard.engines.registry import names

    return names()


def _models() -> Iterable[str]:
    from modelyard.models.catalogue import ENTRIES

    return (*ENTRIES, *(str(path) for path in Path().glob("*.yaml")), *(str(path) for path in Path().glob("*.gguf")))


KINDS: dict[str, Callable[[], Iterable[str]]] = {"deployments": _deployments, "engines": _engines, "models": _models}


def names(kind: str) -> list[str]:
    """In order; none of a kind that there is not: completion is no place for complaints."""
    return sorted(KINDS[kind]()) if kind in KINDS else []
