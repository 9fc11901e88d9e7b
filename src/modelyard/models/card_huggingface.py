"""The card of a Hugging Face folder: config.json, the safetensors headers, the tokenizer's configuration."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from modelyard.errors import ModelRefused
from modelyard.models.card import UNKNOWN, Card, printable
from modelyard.models.json_files import JsonObject, is_array, is_object, read_json_object
from modelyard.models.safetensors import Tensor, read_tensors

# model_type of the text part, where every layer keeps plain keys and values for every token unless the configuration
# says otherwise (windows, chunks, layer types). Everything else is said to be unknown.
STANDARD_ATTENTION = frozenset(
    ("granite", "llama", "mimo", "minimax_m2", "mistral", "mixtral", "olmo2", "phi3", "smollm3", "starcoder2")
) | frozenset(("qwen2", "qwen2_moe", "qwen2_5_vl_text", "qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text"))
TEXT_PARTS = ("text_config", "llm_config", "language_config")
MAX_NUMBER = 1 << 31
MAX_INDEX_BYTES = 64 << 20
# Elements of packed weights are not parameters.
PACKED_DTYPES = frozenset(("U8", "I8", "I32", "U32", "F4", "F6_E2M3", "F6_E3M2"))


def card_of_folder(folder: Path) -> Card:
    """Raises ModelRefused where a header is damaged, or the folder is not a whole model."""
    tokenizer = _optional(folder / "tokenizer_config.json")
    return card_of_config(
        read_json_object(folder / "config.json"),
        name=folder.name,
        quantisation=_optional(folder / "hf_quant_config.json"),
        tensors=read_weights(folder),
        tokenizer=tokenizer,
        chat_template=_chat_template(folder, tokenizer),
        licence=_licence(folder),
    )


def card_of_config(
    config: JsonObject,
    *,
    name: str,
    tensors: Sequence[Tensor] = (),
    quantisation: JsonObject | None = None,
    tokenizer: JsonObject | None = None,
    chat_template: str = "",
    licence: str = UNKNOWN,
) -> Card:
    """The same from parsed files. Without `tensors` the card knows no weights. `quantisation` is hf_quant_config.json,
    where ModelOpt of 2025 and before says what config.json does not."""
    text = next((part for key in TEXT_PARTS if is_object(part := config.get(key))), config)
    heads = _number(text, "num_attention_heads")
    kv_heads = _number(text, "num_key_value_heads")
    head_dim = _number(text, "head_dim")
    layers, hidden = _number(text, "num_hidden_layers"), _number(text, "hidden_size")
    unknown = _why_unknown(text)
    if not unknown:
        kv_heads = kv_heads or heads
        head_dim = head_dim or (hidden // heads if hidden and heads else None)
    kv_values = 2 * (layers or 0) * (kv_heads or 0) * (head_dim or 0)
    if not unknown and not kv_values:
        unknown = "config.json does not give layers, heads and their size"
    quantised = _quantised(config, text, quantisation or {})
    weight_bytes: Counter[str] = Counter()
    for tensor in tensors:
        weight_bytes[tensor.dtype] += tensor.size_bytes
    return Card(
        format="huggingface",
        architecture=_text(config, "model_type") or UNKNOWN,
        name=printable(name),
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=_number(text, "v_head_dim") or head_dim,
        vocabulary=_number(text, "vocab_size"),
        context_tokens=_number(text, "max_position_embeddings"),
        parameters=None if quantised else _parameters(tensors),
        weight_bytes=dict(weight_bytes),
        kv_values_per_token=None if unknown else kv_values,
        kv_unknown_because=unknown,
        chat_template_sha256=_sha256(chat_template) if chat_template else None,
        licence=licence,
        tokenizer=_text(tokenizer or {}, "tokenizer_class") or UNKNOWN,
        rope=_rope(text),
        quantisation=quantised or _commonest(weight_bytes) or _dtype(text) or _dtype(config) or UNKNOWN,
    )


def read_weights(folder: Path) -> list[Tensor]:
    """Every tensor of the model in `folder`, each file's header checked against the file, and the index against them.

    Raises ModelRefused where the index names something else than a plain file in the folder, or a tensor is not
    where the index says."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return list(read_tensors(_only_weights_file(folder)))
    weight_map = read_json_object(index, limit_bytes=MAX_INDEX_BYTES).get("weight_map")
    if not is_object(weight_map) or not weight_map:
        raise ModelRefused(f"{index} has no weight_map", hint="fetch the folder again")
    names = sorted({_plain_file_name(index, value) for value in weight_map.values()})
    tensors = {name: read_tensors(folder / name) for name in names}
    found = {tensor.name: name for name, group in tensors.items() for tensor in group}
    for tensor, name in weight_map.items():
        if found.get(tensor) != name:
            raise ModelRefused(
                f"{index}: tensor {tensor[:200]!r} is not in {name}",
                hint="files of two downloads are mixed: fetch again",
            )
    return [tensor for group in tensors.values() for tensor in group]


def _only_weights_file(folder: Path) -> Path:
    usual = folder / "model.safetensors"
    files = [usual] if usual.exists() else sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelRefused(
            f"{folder} holds {len(files)} safetensors files and no model.safetensors.index.json",
            hint="a model folder has config.json and its weights as safetensors; fetch it again",
        )
    return files[0]


def _plain_file_name(index: Path, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"\w[\w.+=@-]*\.safetensors", value, re.ASCII):
        raise ModelRefused(
            f"{index}: weight_map names {str(value)[:200]!r}; expected a safetensors file beside the index",
            hint="the index tries to reach outside the folder: do not trust this model",
        )
    return value


def _why_unknown(text: JsonObject) -> str:
    """Why plain attention over every token is not certain; empty where it is."""
    layer_types = text.get("layer_types")
    if text.get("kv_lora_rank"):
        return "latent attention (MLA) keeps a compressed vector per token"
    if is_array(layer_types) and any(kind != "full_attention" for kind in layer_types):
        return "layers of several kinds keep different things per token"
    if text.get("sliding_window") and text.get("use_sliding_window") is not False:
        return "some layers keep only a sliding window"
    if (kind := _text(text, "model_type") or UNKNOWN) not in STANDARD_ATTENTION:
        return f"the attention of model type {kind} is not known to this version"
    return ""


def _parameters(tensors: Sequence[Tensor]) -> int | None:
    if not tensors or any(tensor.dtype in PACKED_DTYPES for tensor in tensors):
        return None
    return sum(tensor.elements for tensor in tensors)


def _quantised(config: JsonObject, text: JsonObject, separate: JsonObject) -> str:
    """Method and number format, from wherever this model says it; empty where the weights are not quantised."""
    places = (config.get("quantization_config"), text.get("quantization_config"), separate.get("quantization"))
    settings = next((place for place in places if is_object(place)), None)
    if settings is None:
        return ""
    number_format = next(filter(None, (_text(settings, key) for key in ("quant_algo", "fmt", "format"))), "")
    words = (_text(settings, "quant_method"), number_format)
    return " ".join(word for word in words if word) or "by an unknown method"


def _commonest(weight_bytes: Counter[str]) -> str:
    return max(weight_bytes, key=lambda name: weight_bytes[name], default="")


def _dtype(part: JsonObject) -> str:
    """What transformers 5 calls dtype was torch_dtype before."""
    return _text(part, "dtype") or _text(part, "torch_dtype")


def _rope(text: JsonObject) -> str:
    """transformers 5 gathers in rope_parameters what earlier versions had as rope_theta and rope_scaling."""
    parameters = text.get("rope_parameters", text.get("rope_scaling"))
    settings = parameters if is_object(parameters) else {}
    base = settings.get("rope_theta", text.get("rope_theta"))
    kind = _text(settings, "rope_type") or _text(settings, "type")
    words = [f"base {base:g}"] if isinstance(base, int | float) and 0 < base < 1e15 else []
    words += [f"scaling {kind}"] if kind and kind != "default" else []
    return ", ".join(words) or UNKNOWN


def _chat_template(folder: Path, tokenizer: JsonObject | None) -> str:
    """chat_template.jinja wins, as in transformers; of several named ones the default is meant."""
    file = folder / "chat_template.jinja"
    if file.exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelRefused(f"{file} cannot be read: {error}", hint="fetch the folder again") from error
    template = (tokenizer or {}).get("chat_template")
    if is_array(template):
        named = (item for item in template if is_object(item) and item.get("name") == "default")
        template = next((item.get("template") for item in named), "")
    return template if isinstance(template, str) else ""


def _licence(folder: Path) -> str:
    """The `license:` of the front matter of README.md."""
    readme = folder / "README.md"
    if not readme.is_file():
        return UNKNOWN
    with readme.open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    found = re.match(r"---\n(?:.*\n)*?license:[ \t]*['\"]?([\w.+-]+)", head)
    return printable(found.group(1)) if found else UNKNOWN


def _sha256(text: str) -> str:
    """JSON may hold half of a surrogate pair, which no UTF-8 has."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _optional(path: Path) -> JsonObject | None:
    return read_json_object(path) if path.exists() else None


def _number(source: JsonObject, key: str) -> int | None:
    value = source.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < MAX_NUMBER:
        raise ModelRefused(
            f"config.json: {key} is {str(value)[:40]!r}; expected a whole number below {MAX_NUMBER}",
            hint="the file is damaged: fetch it again",
        )
    return value


def _text(source: JsonObject, key: str) -> str:
    value = source.get(key)
    return printable(value) if isinstance(value, str) else ""
