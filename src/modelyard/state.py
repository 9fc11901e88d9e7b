"""The state directory: who may write it, where each thing lies, and which version of the layout it is."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import ModelyardError, StateLocked

LAYOUT_VERSION = 1
# sun_path holds 108 bytes on Linux and 104 on macOS; our longest socket name is well under 44.
MAX_SOCKET_FOLDER_BYTES = 60


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Paths below one root. Folders are made by `open_state`; files belong to whoever is named beside them."""

    root: Path

    @property
    def layout(self) -> Path:
        """The version of all this."""
        return self.root / "layout"

    @property
    def store(self) -> Path:
        """Content-addressed model files: models.store."""
        return self.root / "store"

    @property
    def wheels(self) -> Path:
        """Packages that came with an unpacked deployment: environments are made of them where no index can be asked."""
        return self.root / "wheels"

    @property
    def environments(self) -> Path:
        """Engines' isolated installations: node.environments."""
        return self.root / "environments"

    @property
    def locks(self) -> Path:
        """Locks of engines' builds that were made here, from an index that the operator named."""
        return self.root / "locks"

    @property
    def package_cache(self) -> Path:
        """What uv has fetched for environments, on their own disk so that files are linked: node.package_cache."""
        return self.root / "package-cache" / "uv"

    @property
    def deployments(self) -> Path:
        """What is wanted, one file per deployment: control."""
        return self.root / "deployments"

    @property
    def evidence(self) -> Path:
        """What was proved, one folder per deployment: verify."""
        return self.root / "evidence"

    @property
    def conformance(self) -> Path:
        """What the conformance kit last found, one file per engine: verify.conformance."""
        return self.root / "conformance"

    @property
    def selftest(self) -> Path:
        """What each row of the self-test last found, one file per row and form: selftest."""
        return self.root / "selftest"

    @property
    def journal(self) -> Path:
        """Finished-request records: the gateway's workers append, everyone else reads."""
        return self.root / "journal"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def launches(self) -> Path:
        """One file per running shim: what it runs."""
        return self.root / "launches"

    @property
    def topology(self) -> Path:
        """Written by control, read by the gateway."""
        return self.root / "topology.json"

    @property
    def keys(self) -> Path:
        """The key log: appended by control, followed by the gateway."""
        return self.root / "keys.ndjson"

    @property
    def spending(self) -> Path:
        """What each key has used in this day and month: written by control, read by a gateway that starts."""
        return self.root / "spending.json"

    @property
    def audit(self) -> Path:
        """Who did what: appended by control."""
        return self.root / "audit.ndjson"

    @property
    def debug(self) -> Path:
        """Prompts and answers of open debug windows: written by the gateway, removed by control."""
        return self.root / "debug"

    @property
    def admin_key(self) -> Path:
        return self.root / "admin.key"

    @property
    def yard(self) -> Path:
        """Where the running yard listens: written by yard once both sockets are bound."""
        return self.root / "yard.json"

    @property
    def yard_lock(self) -> Path:
        """Held by the running yard for as long as it lives."""
        return self.root / "yard.lock"

    @property
    def lease(self) -> Path:
        """Renewed by yard, watched by every shim."""
        return self.root / "lease"

    @property
    def rendezvous(self) -> Path:
        """The unix socket that yard owns, shims dial, and control accepts on."""
        return self.sockets / "shims.sock"

    @property
    def rates(self) -> Path:
        """How fast this machine is: hardware.rates."""
        return self.root / "rates.json"

    @property
    def rates_lock(self) -> Path:
        """Held while this machine is measured: two measurements at once would see each other."""
        return self.root / "rates.lock"

    @property
    def sockets(self) -> Path:
        """Unix sockets. A deep root would overflow the kernel's limit for socket paths: then a short private folder
        named after the root is used instead."""
        inside = self.root / "run"
        if len(os.fsencode(inside)) <= MAX_SOCKET_FOLDER_BYTES:
            return inside
        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"modelyard-{os.getuid()}-{name}"


def open_state(root: Path) -> StateDirectory:
    """The directory at `root`, made if absent (0700), migrated if older. Refuses a newer layout and a foreign owner."""
    state = StateDirectory(root)
    try:
        for folder in (root, state.store, state.environments, state.deployments, state.evidence, state.journal):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (state.logs, state.launches, state.sockets):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ModelyardError(
            f"the state directory {root} cannot be made: {error.strerror}",
            hint="set MODELYARD_STATE to a folder on a disk with space that you may write",
        ) from error
    if state.sockets.stat().st_uid != os.getuid():
        raise ModelyardError(f"{state.sockets} belongs to another user", hint="set MODELYARD_STATE to a shorter path")
    _check_layout(state)
    return state


def _check_layout(state: StateDirectory) -> None:
    if not state.layout.exists():
        write_atomically(state.layout, f"{LAYOUT_VERSION}\n".encode())
        return
    found = state.layout.read_text().strip()
    if found != str(LAYOUT_VERSION):
        raise ModelyardError(
            f"{state.root} has layout {found}; this Modelyard writes layout {LAYOUT_VERSION}",
            hint="upgrade Modelyard, or name another folder in MODELYARD_STATE",
        )


def admin_key(state: StateDirectory) -> str:
    """The key of the admin API, made on first use; only the owner of the state directory can read it."""
    try:
        return state.admin_key.read_text().strip()
    except FileNotFoundError:
        write_atomically(state.admin_key, f"ma_{secrets.token_urlsafe(32)}\n".encode())
        return state.admin_key.read_text().strip()


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Readers see the old bytes or the new ones, also after a power cut."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def is_locked(path: Path) -> bool:
    """Whether some process holds the lock at this moment."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    """Not by the first refusal: whoever asks `is_locked` at this moment has the lock himself for an instant."""
    for pause_s in (0.0, *(0.01,) * 20):
        time.sleep(pause_s)
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    return False


@contextmanager
def locked(path: Path, *, holding: str, wait: bool = False) -> Generator[None]:
    """Hold an exclusive lock that the kernel frees when this process ends, however it ends.

    Raises StateLocked at once unless `wait`; `holding` says in the message what the other process is doing."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if wait:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        elif not _taken(descriptor):
            raise StateLocked(
                f"another Modelyard process is {holding} ({path.parent})",
                hint="wait for it, see `modelyard status`, or name another folder in MODELYARD_STATE",
            )
        yield
    finally:
        os.close(descriptor)
