"""Single GGUF files under a URL: plain web servers by our own client, object stores by fsspec.

Such a place says nothing about what a file must be. A hash is taken from the reference (`?sha256=`), else from a file
of the same name with `.sha256` behind it, as sha256sum writes it; where neither is there, what arrives first is pinned,
later fetches are held to it, and the artifact carries a note that says so. Without a hash nothing is resumed by a later
process."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import FetchFailed
from modelyard.models.card import UNKNOWN
from modelyard.models.download import Download, Expected, Meter, Refusal, Unwritable
from modelyard.models.hashing import Progress, sha256_of_file
from modelyard.models.object_stores import open_source
from modelyard.models.publishing import publish_checked
from modelyard.models.references import ObjectReference
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import StoredArtifact, StoredFile
from modelyard.models.web import Answer, Patience, Web, raise_if_passing
from modelyard.settings import Settings

UNVERIFIED = "unverified source: nothing but the first fetch says what these bytes must be; ?sha256= would"
_SIDECAR = re.compile(rb"\\?([0-9a-fA-F]{64})(?:[ \t].*)?\s*", re.DOTALL)
_SIDECAR_BYTES = 4096


def fetch_object(
    reference: ObjectReference,
    store: Store,
    settings: Settings,
    on_progress: Progress,
    *,
    again: bool = False,
    patience: Patience = Patience(),  # noqa: B008  (a frozen value)
) -> StoredArtifact:
    """The artifact under a URL: as it was pinned, or with `again` as it is there now.

    Raises FetchFailed, ModelRefused, UsageError where a driver is not installed, ModelyardError for a full disk."""
    known = store.find(str(reference)) if reference.sha256 else None if again else store.pinned(str(reference))
    if known:
        return known
    if settings.network.offline:
        raise FetchFailed(
            f"{reference} is not on this machine, and the settings say offline",
            hint="unset MODELYARD_OFFLINE, or bring it over with modelyard models pack",
        )
    with store.writing() as writer:
        try:
            got = _bring(reference, writer, store, settings, on_progress, patience)
        except Unwritable as full:
            raise writer.translated(full.error, full.missing_bytes) from full
        artifact = _artifact(reference, got, store.clock.wall())
        publish_checked(store, writer, artifact)
        writer.pin(str(reference), artifact)
    return artifact


@dataclass(frozen=True, slots=True)
class _Arrived:
    sha256: str
    size_bytes: int
    verified: bool


def _artifact(reference: ObjectReference, got: _Arrived, now: float) -> StoredArtifact:
    file = StoredFile(path=reference.file_name, sha256=got.sha256, size_bytes=got.size_bytes)
    return StoredArtifact(
        name=str(reference.pinned(got.sha256)),
        title=reference.file_name[: -len(".gguf")],
        format="gguf",
        entry=file.path,
        files=(file,),
        sha256=got.sha256,
        lineage=f"fetched from {ObjectReference(reference.url)}"
        + ("" if got.verified else ", pinned at the first fetch"),
        licence=UNKNOWN,
        source=str(ObjectReference(reference.url)),
        fetched_at=now,
        notes=() if got.verified else (UNVERIFIED,),
    )


def _bring(
    reference: ObjectReference,
    writer: StoreWriter,
    store: Store,
    settings: Settings,
    on_progress: Progress,
    patience: Patience,
) -> _Arrived:
    async def over_the_web() -> _Arrived:
        async with Web(settings.network, patience) as web:
            sha256 = reference.sha256 or await _web_sidecar(web, reference)
            expected = Expected(await _web_size(web, reference), sha256=sha256)
            path = _place(writer, expected)
            meter = Meter(on_progress, expected.size_bytes)
            one = Download(web, reference.url, path, expected, meter, _refusal(reference), store.clock)
            return _keep(writer, reference, path, await one.run(), sha256)

    if reference.scheme in ("http", "https"):
        return asyncio.run(over_the_web())
    source = open_source(reference)
    sha256 = reference.sha256 or _parse_sidecar(source.read_beside(".sha256", _SIDECAR_BYTES))
    expected = Expected(source.size_bytes(), sha256=sha256)
    path = _place(writer, expected)
    source.copy_to(path, Meter(on_progress, expected.size_bytes))
    return _keep(writer, reference, path, sha256_of_file(path, on_progress), sha256)


def _place(writer: StoreWriter, expected: Expected) -> Path:
    path = writer.incoming(expected.hash_name) if expected.hash_name else writer.partial_folder() / "object"
    there = path.stat().st_size if path.exists() else 0
    writer.require_space((expected.size_bytes or 0) - there)
    return path


def _keep(writer: StoreWriter, reference: ObjectReference, path: Path, found: str, expected: str) -> _Arrived:
    size = path.stat().st_size
    if expected and found != expected:
        path.unlink()
        raise FetchFailed(
            f"{reference} is not what was promised: its SHA-256 is {found}, not {expected}",
            hint="nothing of it was kept: the file was changed at its source, or the hash belongs to another one",
        )
    file = StoredFile(path=reference.file_name, sha256=found, size_bytes=size)
    writer.keep_hashed(path, found, size, file, str(reference))
    return _Arrived(found, size, bool(expected))


# --- plain web servers


async def _web_size(web: Web, reference: ObjectReference) -> int | None:
    """None where the server does not say it without sending the file."""
    # Some object stores sign a URL for GET alone, so another status means nothing.
    async with web.ask(reference.url, method="HEAD") as answer:
        return answer.response.content_length if answer.status == 200 else None


async def _web_sidecar(web: Web, reference: ObjectReference) -> str:
    head, _, query = reference.url.partition("?")
    async with web.ask(f"{head}.sha256" + (f"?{query}" if query else "")) as answer:
        raise_if_passing(answer)
        return _parse_sidecar(await answer.response.content.read(_SIDECAR_BYTES)) if answer.status == 200 else ""


def _parse_sidecar(content: bytes) -> str:
    """Empty for a page that is something else, such as a web server's own "not found"."""
    found = _SIDECAR.fullmatch(content)
    return found[1].decode().lower() if found else ""


def _refusal(reference: ObjectReference) -> Refusal:
    def refuse(answer: Answer) -> FetchFailed:
        if answer.status in (401, 403):
            return FetchFailed(
                f"{answer.origin} does not let us read {reference} (status {answer.status})",
                hint="use a signed URL, or fetch the file by hand and name its path",
            )
        return FetchFailed(
            f"{reference} is not there: {answer.origin} answers {answer.status}", hint="check the URL in a browser"
        )

    return refuse
