"""What `modelyard models pack` puts together and `unpack` takes apart: deployments, their weights, their engines."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from modelyard import __version__
from modelyard.cli.output import OUT
from modelyard.cli.prepare import look
from modelyard.cli.seven_steps import SevenSteps
from modelyard.engines.builds import builds
from modelyard.engines.contract import Requirements
from modelyard.engines.hosting import requirements_here
from modelyard.engines.registry import engine
from modelyard.errors import FetchFailed, UsageError
from modelyard.hardware.machine import probe
from modelyard.models.card import UNKNOWN
from modelyard.models.gate import check_folder
from modelyard.models.hashing import Progress
from modelyard.models.pack import DAMAGED, DEPLOYMENT, OpenPack, Pack, PackedEngine, PackedFile
from modelyard.models.pack_writing import write_pack
from modelyard.models.publishing import publish_checked
from modelyard.models.sources import STORED, comes_from_store, resolve
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import Pin, StoredArtifact, StoredFile
from modelyard.models.wheel_files import fetch_wheels
from modelyard.node.environments import ensure
from modelyard.node.making import InstallProgress
from modelyard.records.plan import Artifact
from modelyard.settings import Settings
from modelyard.spec.deployment import Deployment, default_deployment, load
from modelyard.spec.rewriting import with_models
from modelyard.state import StateDirectory, write_atomically


@dataclass(frozen=True, slots=True)
class Chosen:
    """One deployment with what was found for it."""

    deployment: Deployment
    artifact: Artifact
    engine: str


def choose(
    what: str, engine_name: str | None, state: StateDirectory, settings: Settings
) -> tuple[list[Chosen], Path | None]:
    """What is to be packed, planned as `up` would plan it here, and the deployment file if `what` is one."""
    file = Path(what) if what.endswith((".yaml", ".yml")) else None
    if file is not None and engine_name is not None:
        raise UsageError("--engine is for a model without a deployment file", hint="write the engine into the file")
    chosen: list[Chosen] = []
    for deployment in load(file) if file is not None else (default_deployment(what),):
        if engine_name is not None:
            deployment = msgspec.structs.replace(deployment, engine=engine_name)
        found = look(deployment, state, settings, SevenSteps(deployment.name, OUT, as_json=False))
        # What is made of the model here for its engine is made there again: the pack carries what it is made of.
        artifact = resolve(deployment.model, state, settings)
        chosen.append(Chosen(deployment, artifact, found.plan.replicas[0].engine))
    return chosen, file


@dataclass
class Packing:
    """Collects what belongs into one pack."""

    store: Store
    settings: Settings
    on_progress: Progress
    artifacts: dict[str, StoredArtifact] = field(default_factory=dict[str, StoredArtifact])
    pins: list[Pin] = field(default_factory=list[Pin])
    sources: dict[str, Path | bytes] = field(default_factory=dict[str, "Path | bytes"])
    files: dict[str, PackedFile] = field(default_factory=dict[str, PackedFile])

    def run(self, chosen: Sequence[Chosen], file: Path | None, out: Path) -> tuple[Pack, str]:
        """The manifest that was written to `out`, and its hash. `file` is the deployment file, if there is one."""
        models = [self._model(one) for one in chosen]
        text = with_models(file, models) if file is not None else _minimal(chosen[0].deployment, models[0])
        self._add(DEPLOYMENT, text.encode())
        engines = {one.engine: self._requirements(one.engine) for one in chosen}
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            for number, needs in enumerate(engines.values()):
                self._wheels(needs, Path(scratch) / str(number))
            pack = Pack(
                made_by=__version__,
                **_this_machine(),
                files=tuple(self.files.values()),
                artifacts=tuple(self.artifacts.values()),
                pins=tuple(self.pins),
                engines=tuple(
                    PackedEngine(name=name, version=needs.version, build=needs.build, lock_sha256=_hash_of_lock(needs))
                    for name, needs in engines.items()
                ),
            )
            return pack, write_pack(out, pack, self.sources, self.on_progress)

    def _model(self, chosen: Chosen) -> str:
        """The reference by which the other machine finds the model in its store."""
        reference = chosen.deployment.model
        stored = self.store.record(reference) or self.store.pinned(reference) if comes_from_store(reference) else None
        if stored is None:
            stored = self._from_this_machine(chosen.artifact)
            reference = stored.name
        else:
            folder = self.store.folder(stored.name)
            for file in stored.files:
                self._add(f"blobs/{file.sha256}", folder / file.path, file.sha256, file.size_bytes)
        if stored.name != reference:
            self.pins.append(Pin(reference=reference, name=stored.name))
        self.artifacts[stored.name] = msgspec.structs.replace(stored, place="")
        return reference

    def _from_this_machine(self, artifact: Artifact) -> StoredArtifact:
        """A model that is used where it lies, under the name that it will have in the other machine's store."""
        path = Path(artifact.path)
        members = check_folder(path) if path.is_dir() else [path]
        entry = re.sub(r"[^\w.+-]+", "-", path.name, flags=re.ASCII).strip(".-_+") or f"model.{artifact.format}"
        files: list[StoredFile] = []
        for member in members:
            sha256, size = self.store.hashes.of_file(member, self.on_progress), member.stat().st_size
            inside = f"{entry}/{member.relative_to(path).as_posix()}" if path.is_dir() else entry
            files.append(StoredFile(path=inside, sha256=sha256, size_bytes=size))
            self._add(f"blobs/{sha256}", member, sha256, size)
        return StoredArtifact(
            name=f"{STORED}://{artifact.name}-{artifact.sha256[:12]}",
            title=artifact.name,
            format=artifact.format,
            entry=entry,
            files=tuple(files),
            sha256=artifact.sha256,
            lineage=f"packed: {artifact.lineage}",
            licence=UNKNOWN,
            source="a pack",
            recommended=artifact.recommended,
            notes=artifact.notes,
        )

    def _requirements(self, name: str) -> Requirements:
        return requirements_here(engine(name), probe(), platform.python_version(), asked=self.settings.build)

    def _wheels(self, needs: Requirements, folder: Path) -> None:
        if needs.packages:
            folder.mkdir()
            for wheel in fetch_wheels(needs.lock, needs.download_bytes, folder, self.settings, self.on_progress):
                self._add(f"wheels/{wheel.name}", wheel, self.store.hashes.of_file(wheel), wheel.stat().st_size)

    def _add(self, path: str, source: Path | bytes, sha256: str = "", size_bytes: int = 0) -> None:
        if isinstance(source, bytes):
            sha256, size_bytes = hashlib.sha256(source).hexdigest(), len(source)
        self.files[path] = PackedFile(path=path, sha256=sha256, size_bytes=size_bytes)
        self.sources[path] = source


def _minimal(deployment: Deployment, model: str) -> str:
    """The deployment file of a model that was packed by its name alone."""
    lines = {"apiVersion": "modelyard/v1", "name": deployment.name, "model": model, "engine": deployment.engine}
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in lines.items())


def _this_machine() -> dict[str, str]:
    """What wheels are chosen by."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": sys.platform,
        "machine": platform.machine(),
    }


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of a pack."""

    manifest: Pack
    sha256: str
    deployment: Path


@dataclass
class Unpacking:
    """Takes a pack into the store and the state directory: everything checked first, named last."""

    state: StateDirectory
    settings: Settings
    on_progress: Progress
    _text: bytes = b""
    _wheels: list[tuple[Path, str]] = field(default_factory=list[tuple[Path, str]])

    def run(self, pack: OpenPack, deployment: Path) -> Unpacked:
        """`deployment` is where the deployment file goes. Raises UsageError where something else is there, or the pack
        is for another machine; FetchFailed where a byte is not what the manifest says."""
        self._check(pack.manifest)
        store = Store(self.state)
        with store.writing() as writer:
            writer.require_space(pack.manifest.size_bytes)
            scratch = writer.partial_folder()
            self._take(pack, writer, scratch)
            self._check_deployment(deployment)
            self._check_names(pack.manifest, store)
            for artifact in pack.manifest.artifacts:
                publish_checked(store, writer, artifact)
            by_name = {artifact.name: artifact for artifact in pack.manifest.artifacts}
            for pin in pack.manifest.pins:
                if pin.name in by_name:
                    writer.pin(pin.reference, by_name[pin.name])
            self.state.wheels.mkdir(exist_ok=True)
            for path, name in self._wheels:
                path.replace(self.state.wheels / name)
        write_atomically(deployment, self._text, mode=0o644)
        return Unpacked(pack.manifest, pack.sha256, deployment)

    def _check(self, manifest: Pack) -> None:
        made_for, here = {"python": manifest.python, "machine": manifest.machine}, _this_machine()
        made_for["platform"] = manifest.platform
        if any(packed.lock_sha256 for packed in manifest.engines) and made_for != here:
            wanted, found = (
                f"Python {one['python']} on {one['platform']}, {one['machine']}" for one in (made_for, here)
            )
            raise UsageError(
                f"the pack's engines are for {wanted}; this is {found}",
                hint="pack it again on a machine of this kind, with this Python",
            )
        for packed in manifest.engines:
            needs = _build_of(packed)
            if needs is None or _hash_of_lock(needs) != packed.lock_sha256:
                raise UsageError(
                    f"the pack was made by Modelyard {manifest.made_by}, for {packed.name} {packed.version} "
                    f"({packed.build}), which this Modelyard {__version__} does not install from the same packages",
                    hint="use the same version of Modelyard on both machines, and pack again",
                )

    def _take(self, pack: OpenPack, writer: StoreWriter, scratch: Path) -> None:
        done, total = 0, pack.manifest.size_bytes
        for file, chunks in pack.files():
            if file.path.startswith("blobs/"):
                stored = StoredFile(path=file.path, sha256=file.sha256, size_bytes=file.size_bytes)
                writer.keep_chunks(chunks, stored, f"{file.path} of the pack")
            else:
                data = _read_all(chunks, file)
                if file.path == DEPLOYMENT:
                    self._text = data
                else:
                    wheel = scratch / f"{len(self._wheels)}.whl"
                    wheel.write_bytes(data)
                    self._wheels.append((wheel, file.path.removeprefix("wheels/")))
            done += file.size_bytes
            self.on_progress("unpack", done, total)

    def _check_deployment(self, deployment: Path) -> None:
        if deployment.exists() and deployment.read_bytes() != self._text:
            raise UsageError(f"{deployment} is there already, and is another one", hint="name another file with --file")

    def _check_names(self, manifest: Pack, store: Store) -> None:
        """A pinned name means the same bytes everywhere: a pack cannot put others in their place."""
        for artifact in manifest.artifacts:
            known = store.find(artifact.name)
            if known is not None and known.sha256 != artifact.sha256:
                raise FetchFailed(
                    f"{artifact.name} is in the store already, with other content than in the pack",
                    hint=f"look at both; modelyard models remove {artifact.name} makes room for the packed one",
                )

    def make_environments(self, manifest: Pack) -> None:
        """From the wheels that came along, without asking any index. Raises EnvironmentFailed."""
        alone = replace(
            self.settings.index, index_url="", extra_index_urls=(), find_links=(str(self.state.wheels),), offline=True
        )

        def heard(progress: InstallProgress) -> None:
            self.on_progress(progress.stage, progress.done_bytes or 0, progress.whole_bytes)

        for packed in manifest.engines:
            if (needs := _build_of(packed)) is not None:
                ensure(needs, packed.name, self.state, alone, heard, environ=self.settings.environ)


def _build_of(packed: PackedEngine) -> Requirements | None:
    return next((needs for needs in builds(engine(packed.name)) if needs.build == packed.build), None)


def _hash_of_lock(needs: Requirements) -> str:
    return hashlib.sha256(needs.lock.encode()).hexdigest() if needs.packages else ""


def _read_all(chunks: Iterable[bytes], file: PackedFile) -> bytes:
    data = b"".join(chunks)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise FetchFailed(f"{file.path} of the pack is not what its manifest says", hint=DAMAGED)
    return data
