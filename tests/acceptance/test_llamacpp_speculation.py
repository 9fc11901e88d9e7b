"""Guessing ahead on the real llama.cpp: fewer passes where it guesses right, the same words."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from test_llamacpp_server import Running, start, stop, wait_ready

from modelyard.engines.contract import Installed

pytestmark = pytest.mark.acceptance

COUNTED = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1, 2, 3, 4,"


@pytest.fixture(scope="module")
def server(llamacpp: Installed, smollm2_gguf: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = start(llamacpp.python, smollm2_gguf, tmp_path_factory.mktemp("engine"), speculative_tokens=5)
    yield wait_ready(running)
    stop(running)


def test_a_text_that_repeats_its_prompt_takes_fewer_passes_than_tokens(server: Running) -> None:
    before = server.metric("n_decode_total")
    answer = server.client.completions.create(model="smollm2", prompt=COUNTED, max_tokens=36, temperature=0)
    passes = server.metric("n_decode_total") - before
    assert answer.choices[0].text.startswith(" 5, 6, 7, 8, 9")
    assert answer.usage is not None and answer.usage.completion_tokens == 36
    assert passes < 24
