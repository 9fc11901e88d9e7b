"""What is wanted: `modelyard.yaml`, strict, every error with file, line and key.

A file holds one deployment, its keys at the top, or several in a list under `deployments:`. A list rather than several
YAML documents, because the file has one gateway section, editors check one document against one schema, and a `---`
too many is easily overlooked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from modelyard.spec.sizes import schema_hook
from modelyard.spec.wanted import (
    API_VERSION,
    Deployment,
    DeploymentFile,
    Gateway,
    Limits,
    ManyDeployments,
    OneDeployment,
    Timeouts,
    Tls,
    absolute,
    is_path,
)

__all__ = [
    "Deployment",
    "DeploymentFile",
    "Gateway",
    "Limits",
    "Timeouts",
    "Tls",
    "default_deployment",
    "is_path",
    "json_schema",
    "load",
    "load_file",
]


def load(path: Path) -> tuple[Deployment, ...]:
    """The deployments of a file, in its order. Raises SpecError."""
    return load_file(path).deployments


def load_file(path: Path) -> DeploymentFile:
    """Deployments and gateway of a file. Raises SpecError naming file, line and key."""
    # Only who has a file pays for importing YAML.
    from modelyard.spec.reading import read_file

    return read_file(path)


def default_deployment(model: str = "smollm2") -> Deployment:
    """The deployment of `up` without a file: `model` (a catalogue name, a URL, or a path) with planned limits."""
    if "://" in model:
        return Deployment(name=_name_from(_last_of(model)), model=model)
    if not is_path(model):
        return Deployment(name=_name_from(model), model=model)
    path = Path(absolute(model, Path()))
    return Deployment(name=_name_from(path.stem if path.suffix.lower() == ".gguf" else path.name), model=str(path))


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of the file, for editors and for the reference; every key has a description."""
    forms, definitions = msgspec.json.schema_components(
        (OneDeployment, ManyDeployments), schema_hook=schema_hook, ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"Modelyard deployment file ({API_VERSION})",
        "anyOf": list(forms),
        "$defs": definitions,
    }


def _last_of(url: str) -> str:
    """`Qwen3-0.6B-GGUF` of `hf://Qwen/Qwen3-0.6B-GGUF@main:Q8_0`."""
    # The first part is an organisation, a bucket or a host with its port; in an Ollama reference it is all there is.
    rest = re.sub(r"^[^/]*/+(?=[^/])", "", url.partition("://")[2])
    path = re.split(r"[?#@:]", rest, maxsplit=1)[0].rstrip("/")
    return re.sub(r"\.gguf$", "", path.rpartition("/")[2], flags=re.IGNORECASE)


def _name_from(text: str) -> str:
    """The nearest legal public name."""
    return re.sub(r"[^a-z0-9.]+|[.-]{2,}", "-", text.lower())[:63].strip(".-") or "model"
