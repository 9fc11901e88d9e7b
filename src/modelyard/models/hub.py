"""Models of a Hugging Face hub, or of a mirror of one.

What a branch or tag means is asked once and pinned: the same reference stays the same bytes, also offline, until it is
fetched anew. Every file is checked by the hash that the hub lists for the pinned commit, whether it comes from the hub,
from our store, or from the cache of Hugging Face's own client, where it is used in place. The small files come first,
so that a model that asks for code is refused before its weights are fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modelyard.errors import FetchFailed, ModelRefused, ModelyardError
from modelyard.models.card import UNKNOWN
from modelyard.models.download import Download, Meter, Unwritable
from modelyard.models.gate import check_remote_code
from modelyard.models.hashing import Progress
from modelyard.models.hub_api import HubApi, HubFile, Snapshot
from modelyard.models.hub_cache import HubCache
from modelyard.models.hub_choice import INDEX, choose_gguf, choose_small, choose_weights, wants_gguf
from modelyard.models.json_files import is_object, read_json_object
from modelyard.models.publishing import publish_checked, refused
from modelyard.models.references import HubReference
from modelyard.models.store import KEPT_S, Store, StoreWriter
from modelyard.models.stored import StoredArtifact, StoredFile
from modelyard.models.web import Patience, Unreachable, Web
from modelyard.settings import Settings

PARALLEL = 4


def fetch_from_hub(
    reference: HubReference,
    store: Store,
    settings: Settings,
    on_progress: Progress,
    *,
    again: bool = False,
    patience: Patience = Patience(),  # noqa: B008  (a frozen value)
) -> StoredArtifact:
    """The artifact of `reference`: as it was pinned, or with `again` as the hub has it now."""
    if not again and (found := store.pinned(str(reference))):
        return found
    with store.writing() as writer:
        fetch = _Fetch(reference, store, writer, settings, on_progress)
        try:
            return asyncio.run(fetch.run(patience))
        except Unwritable as full:
            raise writer.translated(full.error, full.missing_bytes) from full


@dataclass(frozen=True, slots=True)
class _Got:
    """A file that is here and right. `place` is where it lies if not in the store."""

    file: StoredFile
    place: Path | None = None


@dataclass
class _Fetch:
    reference: HubReference
    store: Store
    writer: StoreWriter
    settings: Settings
    on_progress: Progress
    notes: list[str] = field(default_factory=list[str])
    _kept: set[str] = field(default_factory=set[str])

    async def run(self, patience: Patience) -> StoredArtifact:
        async with Web(self.settings.network, patience) as web:
            self._web = web
            self._api = HubApi(web, self.settings.hub, self.reference)
            self._cache = HubCache(self.settings.hub.cache, self.reference, self.store.hashes)
            snapshot = await self._snapshot()
            self._pinned = self.reference.at(snapshot.commit)
            artifact = self.store.find(str(self._pinned)) or await self._bring(snapshot)
        self.writer.pin(str(self.reference), artifact)
        self.writer.garbage(older_than_s=KEPT_S)
        return artifact

    async def _snapshot(self) -> Snapshot:
        if self.settings.network.offline:
            if found := self._cache.snapshot():
                return found
            raise FetchFailed(
                f"{self.reference} is not on this machine, and the settings say offline",
                hint="unset MODELYARD_OFFLINE and HF_HUB_OFFLINE, or bring it over with modelyard models pack",
            )
        try:
            return await self._api.snapshot()
        except Unreachable as error:
            if found := self._cache.snapshot():
                self.notes.append(f"{error.message}: taken as the Hugging Face cache has it")
                return found
            raise

    async def _bring(self, snapshot: Snapshot) -> StoredArtifact:
        if wants_gguf(snapshot.files, self.reference):
            file = choose_gguf(snapshot.files, self.reference)
            got = await self._obtain([file], snapshot.commit, lambda path: Path(path).name)
            return self._publish(self._artifact("gguf", got, snapshot.licence), got)
        chosen = choose_small(snapshot.files)
        if not any(file.path == "config.json" for file in chosen):
            raise ModelRefused(
                f"{self.reference} has weights and no config.json",
                hint="it is no model in the usual form (perhaps an adapter): use another copy",
            )
        small = await self._obtain(chosen, snapshot.commit, self._in_folder)
        indexed = self._look_at(small)
        weights = choose_weights(snapshot.files, indexed, self.reference)
        got = await self._obtain(weights, snapshot.commit, self._in_folder)
        return self._publish(self._artifact("huggingface", small + got, snapshot.licence), small + got)

    def _publish(self, artifact: StoredArtifact, got: Iterable[_Got]) -> StoredArtifact:
        return publish_checked(self.store, self.writer, artifact, _places(got), self.on_progress)

    def _in_folder(self, path: str) -> str:
        return f"{self.reference.title}/{path}"

    # --- bytes

    async def _obtain(self, files: Iterable[HubFile], commit: str, stored_path: Callable[[str], str]) -> list[_Got]:
        """Each file from where it is already, the others from the hub, some at a time."""
        got: dict[str, _Got] = {}
        missing: list[HubFile] = []
        for file in files:
            if (found := await asyncio.to_thread(self._here, file, stored_path(file.path))) is not None:
                got[file.path] = found
            else:
                missing.append(file)
        self._require_space(missing)
        meter = Meter(self.on_progress, sum(file.size_bytes for file in missing))
        turns = asyncio.Semaphore(PARALLEL)
        tasks = {
            file.path: asyncio.create_task(self._download(file, commit, stored_path(file.path), meter, turns))
            for file in sorted(missing, key=lambda file: -file.size_bytes)
        }
        try:
            # Not a TaskGroup: one trouble is to be told, and a group would wrap it.
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        got |= {path: _Got(task.result()) for path, task in tasks.items()}
        self._kept |= {one.file.sha256 for one in got.values()}
        return list(got.values())

    def _here(self, file: HubFile, path: str) -> _Got | None:
        expected = file.expected
        if expected.sha256:
            stored = StoredFile(path=path, sha256=expected.sha256, size_bytes=file.size_bytes)
            if self.writer.has(stored, self.on_progress):
                return _Got(stored)
        if found := self._cache.verified(expected, self.on_progress):
            place, sha256 = found
            return _Got(StoredFile(path=path, sha256=sha256, size_bytes=place.stat().st_size), place)
        return None

    def _require_space(self, missing: Sequence[HubFile]) -> None:
        """What is there of an earlier fetch of the same files needs no space; what is left of others gives way."""
        paths = [self.writer.incoming(file.expected.hash_name) for file in missing if file.expected.hash_name]
        there = sum(path.stat().st_size for path in paths if path.exists())
        needed = sum(file.size_bytes for file in missing) - there
        try:
            self.writer.require_space(needed)
        except ModelyardError:
            self.writer.garbage(keep=[*paths, *(self.store.blob_path(sha256) for sha256 in self._kept)])
            self.writer.require_space(needed)

    async def _download(
        self, file: HubFile, commit: str, stored_path: str, meter: Meter, turns: asyncio.Semaphore
    ) -> StoredFile:
        expected = file.expected
        if not expected.hash_name:
            raise FetchFailed(
                f"{self.settings.hub.endpoint} does not say the hash of {file.path}",
                hint="this mirror is not complete: name another one in HF_ENDPOINT",
            )
        async with turns:
            if self.settings.network.offline:
                raise FetchFailed(
                    f"{file.path} of {self.reference} is not in the Hugging Face cache, and the settings say offline",
                    hint="unset MODELYARD_OFFLINE and HF_HUB_OFFLINE, or fetch it where there is a network",
                )
            path = self.writer.incoming(expected.hash_name)
            url, refusal = self._api.url_of(file, commit), self._api.refusal
            one = Download(self._web, url, path, expected, meter, refusal, self.store.clock, self._api.token)
            sha256 = await one.run()
            size = path.stat().st_size
            stored = StoredFile(path=stored_path, sha256=sha256, size_bytes=size)
            self.writer.keep_hashed(path, sha256, size, stored, f"{self.reference}: {file.path}")
            return stored

    # --- what it is

    def _look_at(self, small: Sequence[_Got]) -> frozenset[str] | None:
        """The gate on the small files alone, then which files the index of the weights names; None without one."""
        artifact = self._artifact("huggingface", small)
        folder = self.writer.link(artifact, _places(small))
        try:
            for got in small:
                check_remote_code(self.store.folder(artifact.name) / got.file.path)
            index = folder / INDEX
            weight_map = read_json_object(index, limit_bytes=64 << 20).get("weight_map") if index.exists() else None
        except ModelRefused as error:
            raise refused(self.writer, artifact, folder, error) from error
        return frozenset(str(value) for value in weight_map.values()) if is_object(weight_map) else None

    def _artifact(
        self, kind: Literal["gguf", "huggingface"], got: Sequence[_Got], licence: str = UNKNOWN
    ) -> StoredArtifact:
        in_place = [one for one in got if one.place is not None]
        where = ", used in place from the Hugging Face cache" if in_place else ""
        first = got[0].file
        return StoredArtifact(
            name=str(self._pinned),
            title=first.path.removesuffix(".gguf") if kind == "gguf" else self.reference.title,
            format=kind,
            entry=first.path if kind == "gguf" else self.reference.title,
            files=tuple(one.file for one in got),
            sha256=first.sha256 if kind == "gguf" else "",
            lineage=f"fetched as {self._pinned}{where}",
            licence=licence,
            source=f"{self.settings.hub.endpoint}/{self.reference.repository}",
            fetched_at=self.store.clock.wall(),
            place=str(self._cache.blobs) if in_place else "",
            notes=tuple(self.notes),
        )


def _places(got: Iterable[_Got]) -> dict[str, Path]:
    return {one.file.path: one.place for one in got if one.place is not None}
