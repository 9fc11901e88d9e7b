"""What `modelyard models pack` puts together: deployments, their weights, the wheels of their engines."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from modelyard import __version__
from modelyard.cli.output import OUT
from modelyard.cli.prepare import look
from modelyard.cli.seven_steps import SevenSteps
from modelyard.engines.contract import Requirements
from modelyard.engines.hosting import requirements_here
from modelyard.engines.registry import engine
from modelyard.errors import CannotPlan, UsageError
from modelyard.hardware.machine import probe
from modelyard.models.card import UNKNOWN
from modelyard.models.gate import check_folder
from modelyard.models.hashing import Progress
from modelyard.models.pack import DEPLOYMENT, Pack, PackedEngine, PackedFile
from modelyard.models.pack_writing import write_pack
from modelyard.models.sources import STORED, comes_from_store, resolve
from modelyard.models.store import Store
from modelyard.models.stored import Pin, StoredArtifact, StoredFile
from modelyard.models.wheel_files import fetch_wheels
from modelyard.records.plan import Artifact
from modelyard.settings import Settings
from modelyard.spec.deployment import Deployment, default_deployment, load
from modelyard.spec.rewriting import with_models
from modelyard.state import StateDirectory


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


_PACKED = "set MODELYARD_BUILD to a build that has one: modelyard engines list"


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
        if file is None:
            text = _minimal(chosen[0].deployment, models[0])
        else:
            changed = [new if new != one.deployment.model else None for new, one in zip(models, chosen, strict=True)]
            text = with_models(file, changed)
        self._add(DEPLOYMENT, text.encode())
        engines = {one.engine: self._requirements(one.engine) for one in chosen}
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            for number, needs in enumerate(engines.values()):
                self._wheels(needs, Path(scratch) / str(number))
            pack = Pack(
                made_by=__version__,
                **this_machine(),
                files=tuple(self.files.values()),
                artifacts=tuple(self.artifacts.values()),
                pins=tuple(self.pins),
                engines=tuple(
                    PackedEngine(name=name, version=needs.version, build=needs.build, lock_sha256=hash_of_lock(needs))
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
        needs = requirements_here(engine(name), probe(), platform.python_version(), asked=self.settings.build)
        if needs.packages and not needs.lock:
            raise CannotPlan(f"{name} for {needs.build} comes without a lock: it cannot be packed", hint=_PACKED)
        return needs

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


def this_machine() -> dict[str, str]:
    """What wheels are chosen by."""
    return {
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "platform": sys.platform,
        "machine": platform.machine(),
    }


def hash_of_lock(needs: Requirements) -> str:
    return hashlib.sha256(needs.lock.encode()).hexdigest() if needs.packages else ""
