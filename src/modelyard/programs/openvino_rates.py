"""How fast OpenVINO's kernels are here: `python openvino_rates.py --threads N --buffer-bytes N`.

The last line of stdout is a JSON object with the values of each round: `gemm_per_s` (operations per second, two for
each multiply-add), `weight_read_bytes_per_s`, `layer_overhead_s`, `call_overhead_s`, `kernels`. Lines before it say
what is being measured. Types are those that the kernels really computed in, as the compiled model tells; what the
machine has no kernel for is left out, not measured under a wrong name. Weights are as large as the buffer, which is
beyond the caches; they are packed into the kernel's own layout and for a moment there twice."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

# As in openvino_engine.import_genai: without the module, nothing is sent home at import.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
ov: Any = importlib.import_module("openvino")
ops: Any = importlib.import_module("openvino.opset13")

# Many short rounds: on a busy machine some of them are left alone.
ROUNDS = 9
_ROUND_S = 0.05
# A prefill-shaped product: many rows of a prompt against one large matrix.
_ROWS, _COLUMNS = 1024, 2048
# Llama-shaped layers with next to no weights: all of them stay in the caches.
_WIDTH, _HEADS, _SHORT, _LONG = 64, 4, 8, 40
_GEMM_HINTS = ("f32", "bf16", "f16")


def tensor(kind: Any, shape: list[int], value: float) -> Any:
    """A constant; written, so that its pages are real."""
    made = ov.Tensor(kind, ov.Shape(shape))
    made.data[:] = value
    return ops.constant(made)


def compiled(output: Any, inputs: list[Any], threads: int, precision: str) -> Any:
    properties = {
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": "1",
        "INFERENCE_PRECISION_HINT": precision,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "32",
    }
    return ov.Core().compile_model(ov.Model([output], inputs), "CPU", properties)


def kernel(model: Any) -> tuple[str, str]:
    """(type, name) of the matrix product that the compiled model runs."""
    for node in model.get_runtime_model().get_ops():
        told = {name: str(value.astype(str)) for name, value in node.get_rt_info().items() if hasattr(value, "astype")}
        if told.get("layerType") in ("FullyConnected", "MatMul"):
            return told.get("runtimePrecision", ""), told.get("primitiveType", "")
    return "", ""


def timed(call: Callable[[], object]) -> list[float]:
    """Seconds of one call, the mean of a round, for each round; the first calls warm up."""
    call()
    began = time.perf_counter()
    call()
    repeats = max(1, round(_ROUND_S / max(1e-9, time.perf_counter() - began)))
    rounds: list[float] = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(repeats):
            call()
        rounds.append((time.perf_counter() - began) / repeats)
    return rounds


def caller(model: Any, shape: list[int]) -> Callable[[], object]:
    request = model.create_infer_request()
    given = ov.Tensor(ov.Type.f32, ov.Shape(shape))
    given.data[:] = 0.5
    request.set_input_tensor(given)
    return request.infer


def gemm(threads: int, precision: str) -> tuple[str, str, list[float]]:
    """One product in `precision`, which the machine may turn into another."""
    given = ops.parameter([_ROWS, _COLUMNS], ov.Type.f32)
    product = ops.matmul(given, tensor(ov.Type.f32, [_COLUMNS, _COLUMNS], 0.01), False, True)
    return measured_gemm(compiled(product, [given], threads, precision))


def gemm_int8(threads: int) -> tuple[str, str, list[float]]:
    """A product of quantised activations and weights, the form that becomes an int8 kernel where there is one."""
    given = ops.parameter([_ROWS, _COLUMNS], ov.Type.f32)
    low, high = (ops.constant([[bound]], ov.Type.f32) for bound in (-1.28, 1.27))
    rounded = ops.fake_quantize(given, low, high, low, high, 256)
    weights = ops.convert(tensor(ov.Type.i8, [_COLUMNS, _COLUMNS], 3), "f32")
    scaled = ops.multiply(weights, tensor(ov.Type.f32, [_COLUMNS, 1], 0.01))
    return measured_gemm(compiled(ops.matmul(rounded, scaled, False, True), [given], threads, "f32"))


def measured_gemm(model: Any) -> tuple[str, str, list[float]]:
    kind, name = kernel(model)
    operations = 2.0 * _ROWS * _COLUMNS * _COLUMNS
    return kind, name, [operations / one for one in timed(caller(model, [_ROWS, _COLUMNS]))]


def weight_read(threads: int, kind: str, buffer_bytes: int) -> list[float]:
    """Bytes per second of weights that one token meets, stored as `kind`: as decoding reads them."""
    size = 4 if kind == "f32" else 1
    rows = max(1, buffer_bytes // (_COLUMNS * size))
    given = ops.parameter([1, _COLUMNS], ov.Type.f32)
    if kind == "f32":
        weights = tensor(ov.Type.f32, [rows, _COLUMNS], 0.01)
    else:
        stored = ops.convert(tensor(ov.Type.u8, [rows, _COLUMNS], 130), "f32")
        centred = ops.subtract(stored, tensor(ov.Type.f32, [rows, 1], 128.0))
        weights = ops.multiply(centred, tensor(ov.Type.f32, [rows, 1], 0.01))
    model = compiled(ops.matmul(given, weights, False, True), [given], threads, "f32")
    return [rows * _COLUMNS * size / one for one in timed(caller(model, [1, _COLUMNS]))]


def chain(threads: int, layers: int) -> Callable[[], object]:
    """One token through `layers` llama-shaped layers, attention over itself alone, without positions or a cache."""
    given = ops.parameter([1, 1, _WIDTH], ov.Type.f32)
    flow: Any = given
    for _ in range(layers):
        flow = ops.add(flow, _attention(_normalised(flow)))
        flow = ops.add(flow, _feed_forward(_normalised(flow)))
    return caller(compiled(flow, [given], threads, "f32"), [1, 1, _WIDTH])


def _normalised(flow: Any) -> Any:
    square = ops.power(flow, ops.constant([2.0], ov.Type.f32))
    mean = ops.reduce_mean(square, ops.constant([-1], ov.Type.i64), True)
    root = ops.sqrt(ops.add(mean, ops.constant([1e-5], ov.Type.f32)))
    return ops.multiply(ops.divide(flow, root), tensor(ov.Type.f32, [_WIDTH], 1.0))


def _linear(flow: Any, width_in: int, width_out: int) -> Any:
    return ops.matmul(flow, tensor(ov.Type.f32, [width_out, width_in], 0.01), False, True)


def _attention(flow: Any) -> Any:
    split = ops.constant([1, 1, _HEADS, _WIDTH // _HEADS], ov.Type.i64)
    order = ops.constant([0, 2, 1, 3], ov.Type.i64)
    parts = [ops.transpose(ops.reshape(_linear(flow, _WIDTH, _WIDTH), split, False), order) for _ in range(3)]
    mixed = ops.transpose(ops.scaled_dot_product_attention(*parts), order)
    return _linear(ops.reshape(mixed, ops.constant([1, 1, _WIDTH], ov.Type.i64), False), _WIDTH, _WIDTH)


def _feed_forward(flow: Any) -> Any:
    gate = ops.swish(_linear(flow, _WIDTH, 2 * _WIDTH))
    return _linear(ops.multiply(gate, _linear(flow, _WIDTH, 2 * _WIDTH)), 2 * _WIDTH, _WIDTH)


def overheads(threads: int) -> tuple[list[float], list[float]]:
    """(per layer, per call) in seconds: slope and intercept over a short and a long chain, round by round."""
    short, long = (timed(chain(threads, layers)) for layers in (_SHORT, _LONG))
    layer = [max(0.0, (most - least) / (_LONG - _SHORT)) for least, most in zip(short, long, strict=True)]
    call = [max(0.0, least - _SHORT * slope) for least, slope in zip(short, layer, strict=True)]
    return layer, call


def measure(threads: int, buffer_bytes: int) -> dict[str, Any]:
    found: dict[str, Any] = {"gemm_per_s": {}, "weight_read_bytes_per_s": {}, "kernels": {}}
    wanted: list[Callable[[], tuple[str, str, list[float]]]] = [
        *(lambda hint=hint: gemm(threads, hint) for hint in _GEMM_HINTS),
        lambda: gemm_int8(threads),
    ]
    for make in wanted:
        print("matrix products", flush=True)
        kind, name, rounds = make()
        if kind and kind not in found["gemm_per_s"]:
            found["gemm_per_s"][kind] = rounds
            found["kernels"][kind] = name
    for kind in ("f32", "u8"):
        print(f"weights in {kind}", flush=True)
        found["weight_read_bytes_per_s"][kind] = weight_read(threads, kind, buffer_bytes)
    print("layers", flush=True)
    found["layer_overhead_s"], found["call_overhead_s"] = overheads(threads)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--buffer-bytes", type=int, required=True)
    given = parser.parse_args()
    print(json.dumps(measure(given.threads, given.buffer_bytes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
