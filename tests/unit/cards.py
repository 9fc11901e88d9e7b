"""Cards of models that several tests plan with."""

from __future__ import annotations

from modelyard.models.card import Card

# The packaged model: SmolLM2-135M-Instruct in Q4_1.
SMOLLM2 = Card(
    format="gguf",
    architecture="llama",
    name="SmolLM2 135M",
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    value_dim=64,
    vocabulary=49152,
    context_tokens=8192,
    parameters=134_515_008,
    weight_bytes={"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544},
    kv_values_per_token=30 * 3 * 128,
    quantisation="Q4_1",
)
