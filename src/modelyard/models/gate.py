"""The file gate: what is served is data. Anything that an engine could be talked into running is refused.

Safetensors and GGUF only: pickles, remote code (`auto_map`, `trust_remote_code`, Python files), archives, executables,
links that leave the folder and special files are refused with the reason, before any engine sees the path. The gate
judges the files as they are now; what is served later is bound to them by the artifact's hash."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from modelyard.errors import ModelRefused
from modelyard.models.card import printable
from modelyard.models.gguf import MAGIC
from modelyard.models.json_files import is_array, is_object, read_json_object

MAX_FILES = 10_000
MAX_DEPTH = 16
HEAD_BYTES = 512

PICKLE = "it may be a pickle, which runs code when it is loaded"
CODE = "it is code, and would run with our rights"
ARCHIVE = "archives are not unpacked: their members escape every check"
_BY_REASON: tuple[tuple[str, tuple[str, ...]], ...] = (
    (PICKLE, (".bin", ".ckpt", ".dill", ".h5", ".hdf5", ".joblib", ".keras", ".npy", ".npz", ".pickle", ".pkl")),
    (PICKLE, (".pt", ".pt2", ".pth")),
    (CODE, (".dll", ".dylib", ".exe", ".ipynb", ".py", ".pyc", ".pyi", ".sh", ".so")),
    (ARCHIVE, (".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst")),
)
FORBIDDEN_SUFFIXES = {suffix: reason for reason, suffixes in _BY_REASON for suffix in suffixes}
# Offset, bytes, reason: what a file is, whatever its name says.
FORBIDDEN_MAGIC = (
    *((0, bytes((0x80, protocol)), PICKLE) for protocol in (2, 3, 4, 5)),
    (0, b"\x93NUMPY", PICKLE),
    (0, b"\x89HDF\r\n\x1a\n", PICKLE),
    (0, b"\x7fELF", CODE),
    (0, b"MZ", CODE),
    (0, b"#!", CODE),
    (0, b"PK\x03\x04", ARCHIVE),
    (0, b"PK\x05\x06", ARCHIVE),
    (0, b"\x1f\x8b", ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", ARCHIVE),
    (0, b"BZh", ARCHIVE),
    (0, b"\xfd7zXZ\x00", ARCHIVE),
    (0, b"\x28\xb5\x2f\xfd", ARCHIVE),
    (0, b"Rar!", ARCHIVE),
    (257, b"ustar", ARCHIVE),
)
# Their keys are vocabulary and tensor names, not instructions.
DATA_JSON = frozenset(("tokenizer.json", "vocab.json", "added_tokens.json", "model.safetensors.index.json"))
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
REMOTE_CODE_KEYS = frozenset(("auto_map", "custom_pipelines", "trust_remote_code"))


def check_gguf(path: Path) -> None:
    """Raises ModelRefused unless `path` is (or links to) a regular, readable file that begins as GGUF does."""
    _check_kind(path, _resolved(path))
    if not _head(path).startswith(MAGIC):
        _refuse(path, "it does not begin with GGUF")


def check_folder(folder: Path) -> list[Path]:
    """The files of the model in `folder`, sorted, hidden ones left out. Raises ModelRefused at the first bad one.

    A Hugging Face cache is understood: links of `snapshots/REVISION` into `blobs` of the same repository are its
    normal form. Elsewhere too a link may lead to a blob of such a cache, or of our own store, which are named by their
    hash; no other link may leave the folder."""
    roots = _allowed_roots(folder)
    files: list[Path] = []
    for path in _walk(folder):
        target = _resolved(path)
        if not _is_blob(target) and not any(target.is_relative_to(root) for root in roots):
            _refuse(path, f"it leads out of the folder, to {target}")
        _check_name(path)
        _check_kind(path, target)
        _check_magic(path)
        check_remote_code(path)
        files.append(path)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelRefused(f"{folder} holds no safetensors file", hint="only safetensors and GGUF weights are served")
    return sorted(files)


def _allowed_roots(folder: Path) -> tuple[Path, ...]:
    here = _resolved(folder)
    if here.parent.name == "snapshots" and here.parent.parent.name.startswith("models--"):
        return here, here.parent.parent / "blobs"
    return (here,)


def _is_blob(target: Path) -> bool:
    """By its place: nothing else that is worth reading lies at `models--*/blobs/HASH` or `blobs/sha256/AA/HASH`."""
    folder, above = target.parent, target.parent.parent
    of_cache = folder.name == "blobs" and above.name.startswith("models--")
    ours = above.name == "sha256" and above.parent.name == "blobs" and target.name.startswith(folder.name)
    return (of_cache or ours) and _HASH.fullmatch(target.name) is not None


def _walk(folder: Path) -> Iterator[Path]:
    """Every file, through real folders only: a link to a folder is yielded and then refused as no regular file."""
    pending, seen = [(folder, 0)], 0
    while pending:
        here, depth = pending.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            _refuse(here, f"it cannot be read: {error.strerror}")
        for entry in entries:
            seen += 1
            if seen > MAX_FILES or depth > MAX_DEPTH:
                _refuse(folder, f"it holds more than {MAX_FILES} files, or is deeper than {MAX_DEPTH} folders")
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append((Path(entry.path), depth + 1))
            else:
                yield Path(entry.path)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        _refuse(path, f"its link cannot be followed: {error}")


def _check_kind(path: Path, target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except OSError as error:
        _refuse(path, f"it cannot be read: {error.strerror}")
    if not stat.S_ISREG(mode):
        _refuse(path, "it is not a regular file")
    if not os.access(target, os.R_OK):
        _refuse(path, "it may not be read by this user", hint="change its permissions")


def _check_name(path: Path) -> None:
    if not path.name.isprintable():
        _refuse(path, "its name is not printable text")
    for suffix in {suffix.lower() for suffix in path.suffixes[-2:]}:
        if reason := FORBIDDEN_SUFFIXES.get(suffix):
            _refuse(path, reason, hint=_instead(reason))


def _check_magic(path: Path) -> None:
    head = _head(path)
    for offset, magic, reason in FORBIDDEN_MAGIC:
        if head[offset : offset + len(magic)] == magic and not _is_safetensors_length(path, head):
            _refuse(path, f"by its content, {reason}", hint=_instead(reason))


def _is_safetensors_length(path: Path, head: bytes) -> bool:
    """A safetensors file begins with a length, whose bytes may look like anything; then comes its JSON."""
    return path.suffix == ".safetensors" and head[8:9] == b"{" and head[3:8] == bytes(5)


def check_remote_code(path: Path) -> None:
    """Raises ModelRefused where the JSON file at `path` asks for code that came with the model; others pass unread."""
    if path.suffix.lower() != ".json" or path.name in DATA_JSON or path.name.endswith(".index.json"):
        return
    config = read_json_object(path)
    pending: list[object] = [config]
    while pending:
        value = pending.pop()
        if is_object(value):
            for key in sorted(REMOTE_CODE_KEYS & value.keys()):
                if value[key]:
                    _refuse(
                        path,
                        f"its {key!r} asks the engine to run code that came with the model",
                        hint="use a conversion of the model to an architecture that engines have built in",
                    )
            pending.extend(value.values())
        elif is_array(value):
            pending.extend(value)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES)
    except OSError as error:
        _refuse(path, f"it cannot be read: {error.strerror}")


def _instead(reason: str) -> str:
    if reason == PICKLE:
        return "use the safetensors or GGUF form of this model; delete the file if engines do not need it"
    return "delete the file if engines do not need it, or use another copy of this model"


def _refuse(path: Path, reason: str, *, hint: str = "") -> NoReturn:
    raise ModelRefused(
        f"{printable(str(path), 1000)} is refused: {reason}", hint=hint or "use another copy of this model"
    )
