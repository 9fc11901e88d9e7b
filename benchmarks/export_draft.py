"""Run by an OpenVINO environment's Python: writes the model and the tokenizer of the GGUF file beside it, in the only
form that OpenVINO GenAI reads a draft model from."""

import importlib
import sys

# What it would send home at import: see openvino_engine.import_genai.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
genai = importlib.import_module("openvino_genai")
scheduler = genai.SchedulerConfig()
scheduler.num_kv_blocks = 4
genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {"enable_save_ov_model": True})
genai.Tokenizer(sys.argv[1], enable_save_ov_model=True)
