"""Tries a JSON schema before the engine sees it, because a schema that does not compile kills the engine.

GenAI compiles a request's grammar inside `step()`, at its first sampled token. If that throws, every request of that
step stays half scheduled and each later `step()` throws too: one client's bad schema would end everyone's answers,
and no call checks a grammar alone. So each schema first constrains one token of a model of nothing (an OpenVINO graph
that multiplies its input by zero) which shares the real tokenizer. It costs under a millisecond once compiled, a
failure there hurts nobody, and the tokenizer's grammar cache keeps what was compiled for the real request.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from typing import Any


class GrammarTrial:
    def __init__(self, genai: Any, tokenizer: Any, vocabulary_size: int) -> None:
        self._genai = genai
        self._openvino: Any = importlib.import_module("openvino")
        self._numpy: Any = importlib.import_module("numpy")
        xml, weights = self._model_of_nothing(vocabulary_size)
        self._pipeline: Any = genai.LLMPipeline(xml, weights, tokenizer, "CPU", ATTENTION_BACKEND="SDPA")

    def run(self, structured_output: Any) -> None:
        """Raises what the engine raises when the grammar cannot be compiled."""
        config = self._genai.GenerationConfig(max_new_tokens=1, ignore_eos=True)
        config.apply_chat_template = False
        config.structured_output_config = structured_output
        self._pipeline.generate(self._openvino.Tensor(self._numpy.array([[1]], dtype=self._numpy.int64)), config)

    def _model_of_nothing(self, vocabulary_size: int) -> tuple[str, Any]:
        np = self._numpy
        ops: Any = importlib.import_module("openvino.opset13")
        inputs = [ops.parameter([-1, -1], np.int64, name=name) for name in ("input_ids", "attention_mask")]
        inputs += [
            ops.parameter([-1, -1], np.int64, name="position_ids"),
            ops.parameter([-1], np.int32, name="beam_idx"),
        ]
        for parameter in inputs:
            parameter.output(0).set_names({parameter.get_friendly_name()})
        tokens = ops.unsqueeze(ops.convert(inputs[0], "f32"), ops.constant(np.array([2])))
        logits = ops.multiply(tokens, ops.constant(np.zeros((1, 1, vocabulary_size), np.float32)))
        result = ops.result(logits.output(0))
        result.output(0).set_names({"logits"})
        model = self._openvino.Model([result], inputs, "nothing")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "nothing.xml")
            self._openvino.save_model(model, path)
            with open(path, encoding="utf-8") as file:
                xml = file.read()
            weights = np.fromfile(os.path.join(folder, "nothing.bin"), dtype=np.uint8)
        return xml, self._openvino.Tensor(weights)
