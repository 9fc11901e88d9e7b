"""How fast this machine really is: measured once, kept in the state directory, bound to the machine's fingerprint.

What a planner makes of it is `EngineRates.least_step_s`: a roofline with a fixed cost for each layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import msgspec

from modelyard.records.base import Record, UnreadableRecord, decode, encode
from modelyard.state import StateDirectory, write_atomically

# In calm the middle round is about as fast as the best; what lies further apart is not the machine alone. (The slowest
# of many short rounds says little: one interrupt makes it.)
_CALM_LAG = 0.15
# Time that the hypervisor gave to others, or that other processes of this machine took from our processors.
_CALM_SHARE = 0.05


class Spread(Record):
    """Of several rounds: the least, the middle and the most, in the unit of the field that holds it."""

    low: float
    median: float
    high: float
    rounds: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """`values` has at least one."""
        return Spread(low=min(values), median=statistics.median(values), high=max(values), rounds=len(values))

    @property
    def lag(self) -> float:
        """Of a rate: by which share the middle round is slower than the best."""
        return 1 - self.median / self.high if self.high else 0.0


class EngineRates(Record):
    """What an engine's own kernels reach, all threads together.

    `gemm_per_s`: operations (two for each multiply-add) per second of a large matrix product, by the type that was
    really computed in. `weight_read_bytes_per_s`: bytes of weights per second when one token meets a matrix far larger
    than the caches, by the type that the weights are stored in. `layer_overhead_s`: seconds that a layer takes when it
    has next to no weights, from the difference between a long and a short chain of them. `call_overhead_s`: what one
    call costs beside its layers. `kernels` names what the engine ran, by the same types."""

    engine: str
    version: str
    gemm_per_s: dict[str, Spread] = msgspec.field(default_factory=dict[str, Spread])
    weight_read_bytes_per_s: dict[str, Spread] = msgspec.field(default_factory=dict[str, Spread])
    layer_overhead_s: Spread | None = None
    call_overhead_s: Spread | None = None
    kernels: dict[str, str] = msgspec.field(default_factory=dict[str, str])

    def least_step_s(
        self, *, weight_bytes: float, stored: str, operations: float, computed: str, layers: int
    ) -> Spread | None:
        """Seconds that a step takes at least, in which every weight is read once and `operations` are computed:

            max(weight_bytes / weight_read_bytes_per_s, operations / gemm_per_s) + layers * layer_overhead_s + call

        One token of one sequence: 2 operations for each weight, and `weight_bytes` decides; a prompt: that times its
        tokens, and `operations` decide. Scheduling, sampling and attention over a long context come on top and differ
        by engine: what a running engine shows beside this bound is what calibration has to learn. None where the types
        `stored` and `computed` were not measured."""
        read, gemm = self.weight_read_bytes_per_s.get(stored), self.gemm_per_s.get(computed)
        if read is None or gemm is None or self.layer_overhead_s is None:
            return None
        none = Spread(low=0.0, median=0.0, high=0.0, rounds=0)
        layer, call = self.layer_overhead_s, self.call_overhead_s or none
        return Spread(
            low=max(weight_bytes / read.high, operations / gemm.high) + layers * layer.low + call.low,
            median=max(weight_bytes / read.median, operations / gemm.median) + layers * layer.median + call.median,
            high=max(weight_bytes / read.low, operations / gemm.low) + layers * layer.high + call.high,
            rounds=min(read.rounds, gemm.rounds, layer.rounds),
        )


class Rates(Record, tag_field="schema", tag="machine-rates/v1"):
    """`read_bytes_per_s` and `copy_bytes_per_s` are of memory, over all our cores at once, in a buffer beyond the last
    cache; a copied byte counts twice, as in STREAM. `at` is Unix seconds. `stolen` and `others` are shares of our
    processors' time that the hypervisor and other processes took meanwhile; None where the kernel does not say."""

    machine: str
    at: float
    threads: int
    buffer_bytes: int
    read_bytes_per_s: Spread
    copy_bytes_per_s: Spread
    stolen: float | None = None
    others: float | None = None
    engines: tuple[EngineRates, ...] = ()

    def of_engine(self, name: str) -> EngineRates | None:
        return next((one for one in self.engines if one.engine == name), None)

    def doubts(self) -> tuple[str, ...]:
        """Why these numbers may be worse than the machine is, in words; empty where it was calm."""
        found: list[str] = []
        if self.stolen is not None and self.stolen > _CALM_SHARE:
            found.append(f"the hypervisor gave {self.stolen:.0%} of our processors' time to others")
        if self.others is not None and self.others > _CALM_SHARE:
            found.append(f"other processes took {self.others:.0%} of our processors' time")
        for name, spread in (("read", self.read_bytes_per_s), ("copy", self.copy_bytes_per_s)):
            if spread.lag > _CALM_LAG:
                found.append(f"the middle round of the memory {name} was {spread.lag:.0%} slower than the best")
        return tuple(found)


def load_rates(state: StateDirectory, machine_fingerprint: str) -> Rates | None:
    """What was measured on this very machine; None where nothing was, or on another one, or by another version."""
    try:
        found = decode(state.rates.read_bytes(), Rates)
    except (OSError, UnreadableRecord):
        return None
    return found if found.machine == machine_fingerprint else None


def save_rates(state: StateDirectory, rates: Rates) -> bool:
    """Keeps `rates` and says so: what was measured in a crowd does not replace what the same machine reached in calm,
    unless it knows an engine that the calm measurement does not."""
    known = load_rates(state, rates.machine)
    if known is not None and rates.doubts() and not known.doubts() and _engines(known) >= _engines(rates):
        return False
    write_atomically(state.rates, encode(rates))
    return True


def _engines(rates: Rates) -> set[tuple[str, str]]:
    return {(one.engine, one.version) for one in rates.engines}


class Rounds(msgspec.Struct):
    """What a measuring program prints: the values of each round, in the units of EngineRates."""

    gemm_per_s: dict[str, list[float]] = {}
    weight_read_bytes_per_s: dict[str, list[float]] = {}
    layer_overhead_s: list[float] = []
    call_overhead_s: list[float] = []
    kernels: dict[str, str] = {}


def engine_rates(engine: str, version: str, text: str) -> EngineRates:
    """From the JSON of a measuring program. Raises ValueError."""
    try:
        rounds = msgspec.json.decode(text, type=Rounds)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    return EngineRates(
        engine=engine,
        version=version,
        gemm_per_s={kind: Spread.of(values) for kind, values in rounds.gemm_per_s.items() if values},
        weight_read_bytes_per_s={
            kind: Spread.of(values) for kind, values in rounds.weight_read_bytes_per_s.items() if values
        },
        layer_overhead_s=Spread.of(rounds.layer_overhead_s) if rounds.layer_overhead_s else None,
        call_overhead_s=Spread.of(rounds.call_overhead_s) if rounds.call_overhead_s else None,
        kernels=rounds.kernels,
    )
