"""Command lines that people run today, read into deployment files: nothing lost in silence, no secret copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from modelyard.cli.engines_import import deployment_file, import_command
from modelyard.engines import import_llamacpp, import_vllm
from modelyard.engines.command_lines import read_command
from modelyard.errors import UsageError
from modelyard.spec.deployment import load

SECRET = "hf_verysecret"

# Forms as they stand in issues and manuals of the engines; names and numbers are ours.
GOLDEN: dict[str, tuple[str, str]] = {
    "a script of several lines, with underscores": (
        """vllm serve Distill-8B \\
             --served-model-name distill --gpu_memory_utilization 0.5 --max_num_seqs 20 --max_model_len 10000 \\
             --enable-auto-tool-choice --tool-call-parser deepseek_v3 --port 5050 --max_num_batched_tokens 5000""",
        """\
apiVersion: modelyard/v1
name: distill
model: ./Distill-8B
engine: vllm
gateway:
  port: 5050  # --port 5050
limits:
  context_tokens: 10000  # --max_model_len 10000
  max_in_flight: 20  # --max_num_seqs 20
settings:
  "--gpu-memory-utilization": 0.5  # --gpu_memory_utilization 0.5
  max_batched_tokens: 5000  # --max_num_batched_tokens 5000

# Not taken over:
#   --enable-auto-tool-choice: tool calls: not in this version
#   --tool-call-parser deepseek_v3: tool calls: not in this version
""",
    ),
    "a background job with variables": (
        f"""CUDA_VISIBLE_DEVICES=0,1 HF_TOKEN={SECRET} nohup python3 -m vllm.entrypoints.openai.api_server
            --model /models/Big-70B-AWQ --served-model-name big big70 -tp=2 --quantization awq --max-model-len 32k
            --enable-prefix-caching --no-enable-chunked-prefill --trust-remote-code --host 0.0.0.0 --api-key {SECRET}
            -O3 > vllm.log 2>&1 &""".replace("\n", "\\\n"),
        """\
apiVersion: modelyard/v1
name: big
model: /models/Big-70B-AWQ
engine: vllm
limits:
  context_tokens: 32000  # --max-model-len 32k
settings:
  "--enable-chunked-prefill": false  # --no-enable-chunked-prefill
  "--optimization-level": 3  # -O3
  "--quantization": awq  # --quantization awq
  prefix_cache: true  # --enable-prefix-caching
  tensor_parallel: 2  # -tp 2

# Not taken over:
#   CUDA_VISIBLE_DEVICES=0,1: which devices a replica has is planned
#   HF_TOKEN: a secret, not copied; set HF_TOKEN in the environment of modelyard
#   --served-model-name big70: one name, one model
#   --trust-remote-code: code that comes with a model is never run
#   --api-key: a secret, not copied; keys are Modelyard's own: modelyard keys create NAME
#   --host 0.0.0.0: reachable from other machines, which Modelyard serves with TLS only: set gateway.host and \
gateway.tls, or start with `modelyard up --host ADDRESS --insecure-listen` where something else guards it
""",
    ),
    "a container of vLLM": (
        f"""docker run --runtime nvidia --gpus all -v /srv/models:/models --env "HF_TOKEN={SECRET}"
            -p 127.0.0.1:9000:8000 --ipc=host vllm/vllm-openai:v0.11.0 --model mistralai/Mistral-7B-Instruct-v0.3
            --revision abc123 --dtype bfloat16 --max-model-len 8192 --host 0.0.0.0""".replace("\n", "\\\n"),
        """\
apiVersion: modelyard/v1
name: mistral-7b-instruct-v0.3
model: hf://mistralai/Mistral-7B-Instruct-v0.3@abc123
engine: vllm
gateway:
  port: 9000  # -p 127.0.0.1:9000:8000
limits:
  context_tokens: 8192  # --max-model-len 8192
settings:
  dtype: bfloat16  # --dtype bfloat16

# Not taken over:
#   HF_TOKEN: a secret, not copied; set HF_TOKEN in the environment of modelyard
#   --runtime nvidia: of the container, which there is not
#   --gpus all: of the container, which there is not
#   -v /srv/models:/models: engines run without a container: name the model by its path on this machine
#   --ipc host: of the container, which there is not
""",
    ),
    "a llama-server that was built here": (
        f"""./build/bin/llama-server -m models/qwen2.5-7b-instruct-q4_k_m.gguf -a qwen -ngl 99 -c 131072 -np 4
            --host 127.0.0.1 --port 8081 --api-key {SECRET} --jinja --chat-template-kwargs '{{"thinking":false}}'
            -fa -ctk q8_0 -ctv q8_0 -t 8 --temp 0.7""".replace("\n", "\\\n"),
        """\
apiVersion: modelyard/v1
name: qwen
model: ./models/qwen2.5-7b-instruct-q4_k_m.gguf
engine: llama.cpp
gateway:
  host: "127.0.0.1"  # --host 127.0.0.1
  port: 8081  # --port 8081
limits:
  context_tokens: 32768  # -c 131072 for 4 slots
  max_in_flight: 4  # -np 4
settings:
  cache_type_k: q8_0  # -ctk q8_0
  cache_type_v: q8_0  # -ctv q8_0
  flash_attention: "on"  # -fa
  threads: 8  # -t 8

# Not taken over:
#   -ngl 99: llama.cpp on GPUs: not in this version
#   --api-key: a secret, not copied; keys are Modelyard's own: modelyard keys create NAME
#   --jinja: templates are always rendered so
#   --chat-template-kwargs {"thinking":false}: thoughts in a field of their own: not in this version
#   --temp 0.7: how an answer is sampled is for each request to say, or for the model's authors
""",
    ),
    "a llama-server that fetches, told by variables": (
        f"LLAMA_ARG_CTX_SIZE=16384 LLAMA_API_KEY={SECRET} llama-server -hf ggml-org/gemma-3-4b-it-GGUF:Q4_K_M -kvu"
        " -np 2 --my-token hf_verysecret --frobnicate 7",
        """\
apiVersion: modelyard/v1
name: gemma-3-4b-it
model: hf://ggml-org/gemma-3-4b-it-GGUF:Q4_K_M
engine: llama.cpp
limits:
  context_tokens: 16384  # -c 16384
  max_in_flight: 2  # -np 2

# Not taken over:
#   LLAMA_API_KEY: a secret, not copied; keys are Modelyard's own: modelyard keys create NAME
#   -kvu: planned from the model and the machine
#   --my-token: not a flag that we know (llama.cpp of October 2026)
#   --frobnicate 7: not a flag that we know (llama.cpp of October 2026)
""",
    ),
    "a container of llama.cpp": (
        "podman run -d --name llm -v /srv:/models -p 8080:8080 ghcr.io/ggml-org/llama.cpp:server"
        " -m /models/7B/ggml-model.gguf -c 512 --host 0.0.0.0 --port 8080",
        """\
apiVersion: modelyard/v1
name: ggml-model
model: /models/7B/ggml-model.gguf
engine: llama.cpp
gateway:
  port: 8080  # -p 8080:8080
limits:
  context_tokens: 512  # -c 512

# Not taken over:
#   --name llm: of the container, which there is not
#   -v /srv:/models: engines run without a container: name the model by its path on this machine
""",
    ),
    "vLLM on a CPU, run by uv": (
        "VLLM_CPU_KVCACHE_SPACE=8 uv run --with vllm vllm serve Qwen/Qwen3-0.6B --max-model-len -1 -dp 2"
        " --speculative-config.method ngram --ssl-certfile c.pem --ssl-keyfile k.pem --host 10.0.0.1",
        """\
apiVersion: modelyard/v1
name: qwen3-0.6b
model: hf://Qwen/Qwen3-0.6B
engine: vllm
gateway:
  host: "10.0.0.1"  # --host 10.0.0.1
  tls:
    cert: c.pem  # --ssl-certfile
    key: k.pem  # --ssl-keyfile
limits:
  kv_cache: "8GiB"  # VLLM_CPU_KVCACHE_SPACE=8
replicas: 2  # -dp 2

# Not taken over:
#   --max-model-len -1: planned where nothing is said
#   --speculative-config.method ngram: give the whole value at once, as JSON
""",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_a_command_line_becomes_this_file(case: str, tmp_path: Path) -> None:
    line, expected = GOLDEN[case]
    text = deployment_file(read_command(line))
    assert text == expected
    file = tmp_path / "modelyard.yaml"
    file.write_text(text)
    [deployment] = load(file)
    assert deployment.engine in ("vllm", "llama.cpp")


@pytest.mark.parametrize("case", GOLDEN)
def test_no_secret_is_copied(case: str) -> None:
    line, _ = GOLDEN[case]
    assert SECRET not in deployment_file(read_command(line))


@pytest.mark.parametrize(
    "line",
    [
        f"vllm serve a/b --api-key {SECRET} {SECRET}",
        f"vllm serve a/b --api_key={SECRET}",
        f"vllm serve a/b --some-new-secret {SECRET}",
        f"vllm serve a/b --otlp-traces-endpoint http://ada:{SECRET}@host:4317",
        f"AWS_SECRET_ACCESS_KEY={SECRET} MY_PASSWORD={SECRET} vllm serve a/b",
        f"docker run -e VLLM_API_KEY={SECRET} --env=OTHER_TOKEN={SECRET} vllm/vllm-openai --model a/b",
        f"llama-server -mu https://ada:{SECRET}@host/m.gguf --api-key-file /{SECRET}",
        f"llama-server -m a.gguf -hft {SECRET}",
    ],
)
def test_a_secret_in_whatever_place_is_not_copied(line: str) -> None:
    text = deployment_file(read_command(line))
    assert SECRET not in text and "# Not taken over:" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "an empty line"),
        ("docker ps", "'docker ps' starts no engine"),
        ("docker run ubuntu bash", "'ubuntu' is no image of an engine"),
        ("docker run --rm", "names no image"),
        ("vllm bench latency", "'vllm bench latency' starts no engine"),
        ("vllm serve --port 80", "names no model"),
        ("llama-server -c 10", "names no model"),
        ("vllm serve x --port", "--port has no value"),
        ("vllm serve 'x", "cannot be split"),
    ],
)
def test_what_cannot_be_read_is_said(line: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read_command(line)
    assert caught.value.hint


WORDS = st.one_of(
    st.sampled_from(
        [*import_vllm.DIALECT.flags, *import_vllm.ALIASES, *import_llamacpp.FLAGS, *import_llamacpp.ALIASES]
    ),
    st.text(alphabet="ab1.=-_:/{}'\"# \n%$\u2028é", max_size=12),
    st.sampled_from(["0.9", "32k", "auto", "-1", "true", "a,b", '{"a": 1}']),
)


@given(st.sampled_from(["vllm serve", "llama-server"]), st.lists(WORDS, max_size=12))
def test_whatever_follows_the_file_is_yaml_that_says_the_same(program: str, words: list[str]) -> None:
    import shlex

    try:
        found = read_command(
            f"{program} {shlex.join(['-m' if program.startswith('llama') else '--model', 'a/b.gguf', *words])}"
        )
    except UsageError as error:
        assert error.hint
        return
    whole = yaml.safe_load(deployment_file(found))
    assert (whole["name"], whole["model"], whole["engine"]) == (found.name, found.model, found.engine)
    for one in found.taken:
        value = whole
        for key in one.key.split("."):
            value = value[key]
        assert value == one.value


def test_it_is_written_where_it_is_asked_for_and_never_over_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "modelyard.yaml"
    import_command(["vllm", "serve", "Qwen/Qwen3-0.6B", "--max-num-seqs", "4", "--jinja"], output=file)
    assert load(file)[0].limits.max_in_flight == 4
    said = capsys.readouterr().out
    assert "1 flag was not taken over" in said and f"plan {file}" in said
    with pytest.raises(UsageError, match="is there already"):
        import_command(["vllm serve x"], output=file)


@pytest.mark.parametrize("dialect", [import_vllm.DIALECT, import_llamacpp.DIALECT], ids=lambda one: one.engine)
def test_every_alias_and_variable_leads_to_a_flag_and_every_flag_somewhere(dialect: import_vllm.Dialect) -> None:
    assert {
        name for name in (*dialect.aliases.values(), *dialect.environ.values()) if name not in dialect.flags
    } == set()
    nowhere = {name for name, flag in dialect.flags.items() if not (flag.key or flag.reason or flag.only_raw)}
    assert nowhere == set()
