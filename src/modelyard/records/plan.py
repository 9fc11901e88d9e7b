"""What will run, what it is expected to need and to do, and what was not chosen and why."""

from __future__ import annotations

import msgspec

from modelyard.records.base import Record


class Artifact(Record):
    """One concrete, hashed set of files. `path` is a file (gguf) or a folder (huggingface); `sha256` is over the
    content: both are empty while the artifact is still to be made. `recommended` are engine settings that the model's
    authors advise; `notes` are what an operator should know of where it came from."""

    name: str
    format: str
    path: str
    sha256: str
    size_bytes: int
    lineage: str
    recommended: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    notes: tuple[str, ...] = ()


class Setting(Record):
    """One effective setting and the reason for its value."""

    name: str
    value: str | int | float | bool
    reason: str


class Prediction(Record):
    """An expected value with the interval that it should lie in."""

    what: str
    value: float
    low: float
    high: float
    unit: str


class Rejected(Record):
    """An alternative that was not chosen, and the number or fact that decided it."""

    what: str
    reason: str


class ReplicaPlan(Record):
    """One engine to run. `settings` holds every value that the engine is started with, nothing is left to defaults;
    `ranks` is how many processes of it share the model's weights. `build` is the engine's build that it is planned for,
    and `accelerators` are the indices of those that it has to itself: none, where it computes on the processor."""

    name: str
    engine: str
    served_name: str
    artifact: Artifact
    max_in_flight: int
    context_tokens: int
    settings: tuple[Setting, ...]
    startup_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    hang_timeout_s: float = 20.0
    ranks: int = 1
    build: str = "cpu"
    accelerators: tuple[int, ...] = ()

    def setting(self, name: str) -> str | int | float | bool:
        """The value of a setting that the plan must have (KeyError otherwise)."""
        for setting in self.settings:
            if setting.name == name:
                return setting.value
        raise KeyError(name)


class Plan(Record, tag_field="schema", tag="plan/v1"):
    deployment: str
    replicas: tuple[ReplicaPlan, ...]
    predictions: tuple[Prediction, ...] = ()
    rejected: tuple[Rejected, ...] = ()
