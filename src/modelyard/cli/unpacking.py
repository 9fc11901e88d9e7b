"""What `modelyard models unpack` does: a pack becomes models, engines and a deployment file of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from modelyard import __version__
from modelyard.cli.packing import hash_of_lock, this_machine
from modelyard.engines.builds import builds
from modelyard.engines.contract import Requirements
from modelyard.engines.registry import engine
from modelyard.errors import FetchFailed, UsageError
from modelyard.models.hashing import Progress
from modelyard.models.pack import DAMAGED, DEPLOYMENT, OpenPack, Pack, PackedEngine, PackedFile
from modelyard.models.publishing import publish_checked
from modelyard.models.store import Store, StoreWriter
from modelyard.models.stored import StoredFile
from modelyard.node.environments import ensure
from modelyard.node.making import InstallProgress
from modelyard.settings import Settings
from modelyard.state import StateDirectory, write_atomically


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
        self._check_deployment(pack.manifest, deployment)
        store = Store(self.state)
        with store.writing() as writer:
            writer.require_space(pack.manifest.size_bytes)
            scratch = writer.partial_folder()
            self._take(pack, writer, scratch)
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
        made_for, here = {"python": manifest.python, "machine": manifest.machine}, this_machine()
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
            if needs is None or hash_of_lock(needs) != packed.lock_sha256:
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
                member = scratch / str(len(self._wheels))
                _write(chunks, member, file)
                if file.path == DEPLOYMENT:
                    self._text = member.read_bytes()
                else:
                    self._wheels.append((member, file.path.removeprefix("wheels/")))
            done += file.size_bytes
            self.on_progress("unpack", done, total)

    def _check_deployment(self, manifest: Pack, deployment: Path) -> None:
        packed = next((file.sha256 for file in manifest.files if file.path == DEPLOYMENT), "")
        if deployment.exists() and hashlib.sha256(deployment.read_bytes()).hexdigest() != packed:
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


def _write(chunks: Iterable[bytes], path: Path, file: PackedFile) -> None:
    digest = hashlib.sha256()
    with path.open("wb") as target:
        for chunk in chunks:
            digest.update(chunk)
            target.write(chunk)
    if digest.hexdigest() != file.sha256:
        raise FetchFailed(f"{file.path} of the pack is not what its manifest says", hint=DAMAGED)
