"""Which files of a repository are the model: pure, from their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from modelyard.errors import ModelRefused, UsageError
from modelyard.models.gate import FORBIDDEN_SUFFIXES, PICKLE
from modelyard.models.hub_api import HubFile
from modelyard.models.references import HubReference

# What people mean where they do not say: most quality for its size, by common experience and llama.cpp's own choice.
USUAL_QUANT = "Q4_K_M"
INDEX = "model.safetensors.index.json"
_QUANT = re.compile(r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|BF16|FP?16|F32|MXFP4\w*|TQ\d_\d))$", re.IGNORECASE)
_PART = re.compile(r"-\d{5}-of-\d{5}$")
_NOT_THE_MODEL = re.compile(r"(?:^|[-._/])(?:mmproj|imatrix|adapter|lora)(?:$|[-._])", re.IGNORECASE)
# Beside the weights, at the top of the repository: configuration, tokenizer, template, licence.
_SMALL = re.compile(r".*\.(?:json|jinja|model|tiktoken)|(?:merges|vocab)\.txt|README\.md|LICEN[CS]E.*", re.IGNORECASE)
_SMALL_BYTES = 64 << 20
_WEIGHTS_NAMES = ("model.safetensors",)


def wants_gguf(files: Sequence[HubFile], reference: HubReference) -> bool:
    """A choice always means a GGUF file; without one, safetensors come first where there are any."""
    return bool(reference.choice) or not any(_is_weights(file.path) for file in files)


def choose_gguf(files: Sequence[HubFile], reference: HubReference) -> HubFile:
    """The one GGUF file that is meant. Raises UsageError naming what there is, ModelRefused where there is nothing
    that could be served."""
    whole = [file for file in files if file.path.lower().endswith(".gguf") and not _NOT_THE_MODEL.search(file.path)]
    if not whole:
        raise _no_weights(files, reference)
    found = _matching(whole, reference.choice) if reference.choice else _usual(whole)
    if any(_PART.search(_stem(file)) for file in found):
        raise ModelRefused(
            f"{reference} is split over {len(found)} files, which no engine here is given",
            hint="choose a smaller quantisation, or join the parts (llama-gguf-split --merge) and name the file",
        )
    if len(found) == 1:
        return found[0]
    names = ", ".join(sorted(file.path for file in found) or sorted(_quant(file) for file in whole))
    if not found and reference.choice:
        raise UsageError(f"{reference.repository} has no {reference.choice}: it has {names}", hint=_say(whole))
    meant = "several files" if found else "several quantisations"
    raise UsageError(f"{reference} has {meant}, and which one is not said: {names}", hint=_say(found or whole))


def choose_small(files: Iterable[HubFile]) -> tuple[HubFile, ...]:
    """What belongs to the weights of a safetensors model, never code and never a pickle."""
    return tuple(
        file
        for file in files
        if "/" not in file.path and _SMALL.fullmatch(file.path) and file.size_bytes <= _SMALL_BYTES
    )


def choose_weights(
    files: Sequence[HubFile], indexed: frozenset[str] | None, reference: HubReference
) -> tuple[HubFile, ...]:
    """The safetensors files: those that the index names, or the only one. `indexed` is None where there is no index.

    Raises ModelRefused where they are not there."""
    weights = {file.path: file for file in files if _is_weights(file.path)}
    if indexed is not None:
        if missing := sorted(indexed - weights.keys()):
            raise ModelRefused(
                f"{reference} is not whole: its index names {missing[0]!r}, which is not there",
                hint="the upload may be unfinished: choose another revision, or another copy of this model",
            )
        return tuple(weights[name] for name in sorted(indexed))
    usual = [weights[name] for name in _WEIGHTS_NAMES if name in weights]
    found = usual or list(weights.values())
    if len(found) != 1:
        raise (
            _no_weights(files, reference)
            if not found
            else ModelRefused(
                f"{reference} holds {len(found)} safetensors files and no {INDEX}",
                hint="it is no model in the usual form: use another copy",
            )
        )
    return tuple(found)


def _usual(files: list[HubFile]) -> list[HubFile]:
    return files if len(files) == 1 else _matching(files, USUAL_QUANT)


def _matching(files: list[HubFile], choice: str) -> list[HubFile]:
    if choice.lower().endswith(".gguf"):
        return [file for file in files if file.path == choice]
    wanted = re.compile(rf"(?:^|[-._/]){re.escape(choice)}$", re.IGNORECASE)
    return [file for file in files if wanted.search(_PART.sub("", _stem(file)))]


def _stem(file: HubFile) -> str:
    return file.path[: -len(".gguf")]


def _quant(file: HubFile) -> str:
    found = _QUANT.search(_PART.sub("", _stem(file)))
    return found[1] if found else file.path


def _say(files: list[HubFile]) -> str:
    return f"say which: hf://org/name:{_quant(sorted(files, key=lambda file: file.size_bytes)[0])}"


def _is_weights(path: str) -> bool:
    return "/" not in path and path.endswith(".safetensors") and not _NOT_THE_MODEL.search(path)


def _no_weights(files: Sequence[HubFile], reference: HubReference) -> ModelRefused:
    pickles = sorted(file.path for file in files if FORBIDDEN_SUFFIXES.get(_suffix(file.path)) == PICKLE)
    if pickles:
        return ModelRefused(
            f"{reference} has its weights as {pickles[0]} only: {PICKLE}",
            hint="look for a safetensors or GGUF conversion of this model; one is usually offered under a similar name",
        )
    return ModelRefused(
        f"{reference} holds neither safetensors nor GGUF weights",
        hint="only these are served: look for a conversion of this model",
    )


def _suffix(path: str) -> str:
    return "." + path.rpartition(".")[2].lower()
