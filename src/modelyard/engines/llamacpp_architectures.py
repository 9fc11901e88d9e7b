"""The architectures that llama.cpp writes text with: those that its library (xllamacpp 2026.10.11549) loads by name.

The names stand in its table (`LLM_ARCH_NAMES`, llama-arch.cpp), but a stripped library does not list them. Each was
asked of the library itself, by a file that holds nothing but the name: one that it loads is refused for what the file
lacks, any other by its name. `tests/acceptance/test_llamacpp_server.py` asks again.

Left out, because no chat or continuation comes out of them: embedding models (bert, ...), encoder-decoders (t5), parts
of others and drafts (clip, eagle3, ...), speech (qwen3tts, ...) and diffusion (dream, llada, ...)."""

from __future__ import annotations

_NAMES = """
afmoe apertus arcee arctic arwkv7 baichuan bailingmoe bailingmoe2 bailingmoe3 bitnet bloom chameleon chatglm codeshell
cogvlm cohere2 cohere2moe command-r dbrx deci deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 dots1 dots3note
ernie4_5 ernie4_5-moe exaone exaone-moe exaone4 falcon falcon-h1 gemma gemma2 gemma3 gemma3n gemma4 glm-dsa glm4
glm4moe glm5-next gpt-oss gpt2 gptneox granite granite_swa granitehybrid granitemoe graniteswitch grok grovemoe
hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 hy_v4 internlm2 jais jais2 jamba k2-horizon kimi-k3 kimi-linear
laguna lfm2 lfm2moe llama llama4 maincoder mamba mamba2 maple mellum mimo2 minicpm minicpm3 minimax-01 minimax-m2
mistral3 mistral4 mpt nanbeige nemotron nemotron_h nemotron_h_moe olmo olmo2 olmoe openelm orion paddleocr
pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen35 qwen35moe qwen3moe
qwen3next qwen3vl qwen3vlmoe qwen4exp refact rwkv6 rwkv6qwen2 rwkv7 seed_oss smallthinker smollm3 spark2_5 stablelm
starcoder starcoder2 step35 talkie xverse
"""

ARCHITECTURES = frozenset(_NAMES.split())
