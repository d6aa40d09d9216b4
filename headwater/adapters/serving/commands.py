"""The lines that serve an export: :func:`command_of`, and its README: :func:`readme`."""

from __future__ import annotations

from headwater.adapters.serving.facts import RUNTIMES
from headwater.adapters.serving.traits import Subject
from headwater.adapters.serving.wish import Exported, Wish

_COMMANDS = {
    "vllm": "vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name}={folder}",
    "sglang": "python -m sglang.launch_server --model-path {base} --max-lora-rank {rank} "
    "--lora-paths {name}={folder}",
    "llama.cpp": "llama-server -m BASE.gguf --lora {folder}/lora.gguf",
    "ollama": "ollama create {name} -f {folder}/Modelfile",
    "mlx": "mlx_lm.generate --model {base} --adapter-path {folder} --prompt TEXT",
    "openvino": "openvino_genai.LLMPipeline(BASE, 'CPU', adapters=openvino_genai.AdapterConfig("
    "openvino_genai.Adapter('{folder}/adapter_model.safetensors')))",
    "peft": "PeftModel.from_pretrained(base, '{folder}')",
    "merged": "any runtime of the base: {folder}",
}


def command_of(done: Exported, wish: Wish) -> str:
    """The lines that serve what was written."""
    return _COMMANDS[done.runtime].format(
        base=wish.base or "BASE",
        rank=done.ranks[-1] if done.ranks else 0,
        name=done.folder.name,
        folder=done.folder,
    )


def readme(subject: Subject, done: Exported) -> str:
    """Markdown: for what it is, what was done, and what goes wrong there."""
    runtime = RUNTIMES.get(done.runtime)
    lines = [
        f"# {subject.path.name} for {done.runtime}",
        "",
        f"Base model: `{subject.config.get('base_model_name_or_path')}`. Export: {done.remedy}.",
        *([f"Looked at: {runtime.name} {runtime.version} ({runtime.source})."] if runtime else []),
        "",
        f"```console\n$ {done.command}\n```",
        "",
        *(f"- {text}" for text in (*done.reasons, *done.remarks)),
    ]
    return "\n".join(lines).rstrip() + "\n"
