"""Verification against the real engine program and the real model."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path

import pytest
import pytest_asyncio

from modelyard.clock import SYSTEM
from modelyard.engines.contract import Capabilities
from modelyard.models.catalogue import SMOLLM2, KnowledgeProbe
from modelyard.records.fingerprint import Fingerprint
from modelyard.verify import run
from modelyard.verify.report import explain

pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

PROGRAM = Path(run.__file__).parents[1] / "programs" / "openvino_server.py"
CONTEXT_TOKENS = 2048


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address(openvino_python: str, smollm2_gguf: str) -> AsyncGenerator[str]:
    """Where the engine listens once it is ready; one load serves every test of this file."""
    with tempfile.TemporaryDirectory() as folder:
        listen, config = f"unix:{folder}/engine.sock", Path(folder) / "config.json"
        config.write_text(json.dumps(_configuration(smollm2_gguf, listen)))
        process = await asyncio.create_subprocess_exec(
            openvino_python, str(PROGRAM), "--config", str(config), stdout=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(120):
                await _ready(process)
            yield listen
        finally:
            with suppress(ProcessLookupError):
                process.terminate()
            await process.communicate()


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stdout is not None
    seen: list[bytes] = []
    async for line in process.stdout:
        seen.append(line)
        if line.startswith(b"ready "):
            return
    raise AssertionError(f"the engine ended: {seen[-5:]}")


def _configuration(model: str, listen: str) -> dict[str, object]:
    return {
        "model_path": model,
        "served_name": "smollm2",
        "address": listen,
        "threads": 2,
        "kv_cache_bytes": 256 << 20,
        "max_batched_tokens": 128,
        "max_sequences": 8,
        "max_queued": 64,
        "context_tokens": CONTEXT_TOKENS,
        "prefix_cache": True,
        "speculative_tokens": 0,
        "draft_model": "",
        "properties": {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "u8",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
        },
        "stall_s": 20,
        "default_temperature": 1.0,
        "default_top_p": 1.0,
    }


def target(address: str, *probes: KnowledgeProbe) -> run.Target:
    capabilities = Capabilities(
        formats=frozenset({"gguf"}),
        architectures=frozenset({"llama"}),
        endpoints=frozenset({"/v1/chat/completions", "/v1/completions"}),
        unix_socket=True,
        structured_output=True,
        cached_token_usage=True,
        drains_on_terminate=False,
    )
    fingerprint = Fingerprint(artifact="a", engine="e", configuration="c", machine="m")
    return run.Target("smollm2", address, "smollm2", capabilities, CONTEXT_TOKENS, fingerprint, probes)


async def test_every_claim_of_the_real_engine_holds(address: str) -> None:
    wanted = target(address, *SMOLLM2.probes)
    report = await run.verify(wanted, clock=SYSTEM, on_result=lambda _: None)
    assert report.green, explain(report)
    assert report.skipped == ()
    assert {evidence.check for evidence in report.evidence} == run.required_checks(wanted)


async def test_the_real_model_can_fail_a_probe(address: str) -> None:
    wanted = target(
        address, KnowledgeProbe(kind="chat", prompt="What is the capital of Japan?", expected="Atlantis", margin=0.5)
    )
    report = await run.verify(wanted, clock=SYSTEM, on_result=lambda _: None, only=run.SMOKE)
    assert [evidence.verdict for evidence in report.evidence] == ["red"]
    assert "Tokyo" in report.evidence[0].measured
