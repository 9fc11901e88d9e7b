"""What every engine adapter promises. Adapters do no I/O: they turn plans into launches and read what engines say."""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from modelyard.records.base import Record
from modelyard.records.fingerprint import sha256_of
from modelyard.records.plan import ReplicaPlan

Build = Literal["cpu", "cuda", "rocm"]


def any_machine() -> dict[str, frozenset[str]]:
    """Where a program of wheels for the usual 64-bit processors runs, with no instruction set that is not basic."""
    return {"x86_64": frozenset(), "aarch64": frozenset()}


class Conversion(Record):
    """How an engine's own environment makes an artifact that it serves out of one that it does not.

    `program` is run by the environment's interpreter as `PROGRAM SOURCE FOLDER`: it fills the empty folder and says
    `progress {"stage", "done", "total"}` lines in bytes, or `error: cause` (exit code 2: this model cannot be
    converted). `recipe` names what the program does, and changes with every change of its result; `done` is its verb in
    lineages. `dtype` and `element_bytes` are of the weights that it writes; `suffix` ends the new artifact's name."""

    source: str
    target: str
    architectures: frozenset[str]
    program: str
    recipe: str
    done: str
    dtype: str
    element_bytes: int
    suffix: str


class Capabilities(Record):
    """What an engine can do. Sets are of the names used in artifacts and in the gateway's routes; `refused_fields`
    are request fields that it cannot honour, `ignored_fields` those that it takes and does nothing about;
    `cache_salt`: it keeps the cached prefixes of requests apart that differ in this field; `metrics` are the fields
    of EngineMetrics that it reports; `load_progress`: its log tells how far a load is; `loopback_ports`: its
    processes talk to each other over TCP ports on loopback, which every user of the machine can reach; `machines` are
    the processor architectures that it runs on, each with the instruction sets that it needs there, by the names that
    the hardware probe uses; `conversions` make its formats out of others; `reasoning_field` is what it calls a model's
    thoughts in chat answers, where it tells them apart; `continues_chat`: with `continue_final_message` it goes on with
    the text of a last message that is an assistant's. What is claimed here is what the conformance kit tries."""

    formats: frozenset[str]
    architectures: frozenset[str]
    endpoints: frozenset[str]
    unix_socket: bool
    structured_output: bool
    cached_token_usage: bool
    drains_on_terminate: bool
    refused_fields: frozenset[str] = frozenset()
    ignored_fields: frozenset[str] = frozenset()
    cache_salt: bool = False
    metrics: frozenset[str] = frozenset()
    load_progress: bool = False
    loopback_ports: bool = False
    machines: dict[str, frozenset[str]] = msgspec.field(default_factory=any_machine)
    conversions: tuple[Conversion, ...] = ()
    reasoning_field: Literal["", "reasoning", "reasoning_content"] = ""
    continues_chat: bool = False


class Requirements(Record):
    """One build of the environment that the engine lives in: the packages that the adapter names, at exact versions,
    and what the whole takes.

    `lock` is the text of the lock file (engines.locks.shipped): every package that is installed, with its hashes.
    `pinned_here`: it has none of ours, because no public index has its wheels; the operator makes one (node.pinning).
    `without` are packages that others ask for and that are left out. `local_builds` are packages that indexes also
    carry under the same version with a suffix (torch 2.13.0+cpu): what the index at hand has decides. On Linux the
    plain build of such a package is the one for GPUs."""

    packages: tuple[str, ...]
    version: str
    download_bytes: int
    installed_bytes: int
    import_check: str
    build: Build = "cpu"
    lock: str = ""
    without: tuple[str, ...] = ()
    local_builds: tuple[str, ...] = ()
    pinned_here: bool = False


class Installed(Record):
    """A ready environment. `python` is its interpreter; `lock_sha256` hashes what was really installed."""

    engine: str
    version: str
    python: str
    root: str
    lock_sha256: str
    build: Build = "cpu"

    @property
    def fingerprint(self) -> str:
        """The engine's part of a Fingerprint."""
        return sha256_of([self.engine, self.version, self.lock_sha256])


class Addresses(Record):
    """Where this launch shall listen (`unix:/path` or `http://127.0.0.1:port`) and its private folder for files."""

    listen: str
    folder: str


class Probes(Record):
    """How to ask a running engine. Paths are on its own address; `health_timeout_s` is per probe."""

    health_path: str
    metrics_path: str | None
    health_timeout_s: float = 5.0


class LaunchSpec(Record, tag_field="schema", tag="launch/v1"):
    """One process group to start. `files` are written into the launch's folder before the start (name -> content);
    `environ` is all that the engine gets; `effective` is the whole configuration that goes into the fingerprint.

    `ranks` is how many processes compute together; the first one of the group starts the others, and none of them
    outlives any other. `scratch` is a folder for what the engine leaves lying about (sockets of its own, temporary
    files): made before the start, removed with everything in it when the launch is over, together with shared memory
    whose name has `modelyard-`, the folder's name and `-` in it; empty where it needs none."""

    argv: tuple[str, ...]
    environ: dict[str, str]
    cwd: str
    files: dict[str, str]
    address: str
    probes: Probes
    effective: dict[str, str | int | float | bool]
    terminate_grace_s: float = 5.0
    ranks: int = 1
    scratch: str = ""


class Progress(Record):
    """How far a load is: `fraction` in 0..1 where the engine says it."""

    stage: str
    fraction: float | None = None


class EngineMetrics(Record):
    """What the engine reports of itself; None where it does not: absent is never zero.

    `work_done` only rises, and rises while tokens (prompt or output) are being processed."""

    running: float | None = None
    waiting: float | None = None
    work_done: float | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    kv_used_ratio: float | None = None


class ExitReport(Record):
    """How a process ended. `code` and `signal` exclude each other; `tail` is the last 50 lines of its log."""

    code: int | None
    signal: int | None
    out_of_memory: bool
    tail: tuple[str, ...]


class Failure(Record):
    """Why an engine ended. A permanent failure is not tried again: the same start would end the same way."""

    kind: Literal[
        "bad_config", "model", "does_not_fit", "out_of_memory", "killed", "crashed", "hung", "start_timeout", "unproved"
    ]
    cause: str
    fix: str
    permanent: bool


class Engine(Protocol):
    """An adapter: a name, a Capabilities value, and pure functions."""

    name: str
    capabilities: Capabilities
    requirements: Requirements

    def launch(self, replica: ReplicaPlan, install: Installed, net: Addresses) -> LaunchSpec: ...

    def read_progress(self, line: str) -> Progress | None:
        """What a log line says about the load; None for any other line."""
        ...

    def read_metrics(self, text: str) -> EngineMetrics: ...

    def explain_failure(self, exit: ExitReport) -> Failure: ...
