"""The README of an exported adapter, its model card: :func:`readme`, :func:`how_trained`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headwater.adapters.base import PER_LAYER
from headwater.adapters.quantised import quantised
from headwater.adapters.reading.settings import read_data
from headwater.config.federation import Federation
from headwater.config.model import MODELS
from headwater.tasks.table import task_of

_CLASSES = {
    "encoder": "AutoModel",
    "sequence-classification": "AutoModelForSequenceClassification",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
}


_UNSHOWN = frozenset({"adapter_sha256", "bytes", "clients", "failures", "how", "lost", "metric", "rounds"})
"""Of the card: what the README says otherwise, and who failed, which names owners."""


def how_trained(settings: Federation, base: Path) -> dict[str, str]:
    """What a model card says of a federation: rule, uploads, privacy, the base's licence.

    Args:
        settings: of the federation.
        base: the base's folder, whose own model card is asked for the licence; a hub name's is none.
    """
    clip = settings.privacy.clip_l2
    bound = "" if clip is None else f"; each owner's update has an L2 norm of at most {clip:g}"
    noise = "no noise, so no differential privacy"
    if settings.privacy.noised:
        budget = "" if settings.privacy.epsilon is None else f" within ε {settings.privacy.epsilon:g}"
        noise = (
            f"noise on every round's sum, for all data of one owner{budget} at δ {settings.privacy.delta:g}"
        )
    if settings.privacy.noise == "reproducible":
        noise = "noise that can be drawn again from the seed, so no differential privacy"
    return {
        "base's licence": _licence(base),
        "merge rule": settings.strategy.kind,
        "uploads": settings.codec.up.kind,
        "privacy": f"rows stayed with their owners; {noise}{bound}",
    }


def _licence(base: Path) -> str:
    """``license`` in the front matter of a folder's README.md."""
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license: *[\"']?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return found[1] if found else "not said in its folder"


def _training(card: Mapping[str, Any]) -> dict[str, str]:
    """Rows of the table: what the training came to, in words."""
    found = {
        name: str(card[key])
        for key, name in (("clients", "data owners"), ("rounds", "rounds"))
        if key in card
    }
    if sent := card.get("bytes"):
        found["bytes"] = f"{sent['up']:,} up, {sent['down']:,} down; {sent['up_dense']:,} up in dense fp32"
    if (metric := card.get("metric")) and metric["final"] is not None:
        best = (
            f", best {metric['best']:.4g} in round {metric['best_round']}"
            if metric["best"] is not None
            else ""
        )
        found[f"{metric['name']} on {metric['on']}"] = f"{metric['final']:.4g} in the last round{best}"
    return {**found, **card.get("how", {})}


def readme(notes: Mapping[str, Any]) -> str:
    """Markdown: what the adapter is and the lines that load it without Headwater.

    Args:
        notes: the content of ``headwater.json``.
    """
    base = notes["base"]
    facts = {
        "base model": f"`{base['path']}`" + (f" at `{base['revision']}`" if base["revision"] else ""),
        "base sha256": f"`{base['sha256']}`",
        "adapter": f"`{json.dumps(notes['adapter'])}`",
        "adapter sha256": f"`{notes['adapter_sha256']}`",
        "labels": ", ".join(f"`{label}`" for label in notes["labels"] or ()) or "none",
        **_training(notes["card"]),
        **{key: _shown(value) for key, value in notes["card"].items() if key not in _UNSHOWN},
    }
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    front = json.dumps(base["path"])
    return (
        f"---\nbase_model: {front}\nlibrary_name: peft\ntags: [headwater, federated]\n---\n\n"
        f"# Adapter for {base['path']}\n\nTrained by a federation with Headwater; no training text is in "
        f"here.\n\n| | |\n|---|---|\n{table}\n\n## Load\n\n```python\n{loading_code(notes)}\n```\n"
    )


def loading_code(notes: Mapping[str, Any]) -> str:
    """Python that loads base and adapter from the adapter's folder and computes ``logits``.

    One text at a time, read as in training: nothing is padded, so nothing depends on padding.
    """
    model = MODELS[notes["kind"]]
    types = ", token_type_ids=types" if notes.get("token_types") else ""
    wide = "" if notes["base"].get("dtype", "float32") == "float32" else ".float()"
    pool = "" if notes["pooling"] == "none" else ".mean(1)"
    lines = [
        "import torch",
        f"from transformers import {_imports(notes)}",
        "from peft import PeftModel",
        *(["from safetensors.torch import load_file"] if model.pooled else []),
        "",
        *_loading(notes),
        'model = PeftModel.from_pretrained(base, ".").eval()',
        "",
        *_tokens(notes),
        "tokens = torch.tensor([ids])",
        "mask = torch.ones_like(tokens)",
        "with torch.no_grad():",
        f"    out = model(input_ids=tokens, attention_mask=mask{types})",
    ]
    if model.pooled:
        lines += [
            'head = load_file("head.safetensors")',
            f"hidden = out.last_hidden_state[:, -len(ids) :]{wide}  # without a soft prompt's places",
            f'logits = hidden{pool} @ head["weight"].T + head["bias"]',
        ]
    elif model.own_head:
        lines.append("logits = out.logits")
    elif not model.writes:
        lines.append(f"logits = out.logits[:, -len(ids) :]{wide}  # without a soft prompt's places")
    elif not model.language_model:
        lines[-2:] = [
            "with torch.no_grad():",
            "    answer = model.generate(",
            "        input_ids=tokens, attention_mask=mask, max_new_tokens=64, do_sample=False,",
            f"        eos_token_id={notes['ends'] or None}, pad_token_id={notes['pad_token_id']},",
            "    )",
            "print(tokenizer.decode(answer[0], skip_special_tokens=True))",
        ]
    else:
        lines += [
            f"logits = out.logits[:, -len(ids) :]{wide}  # without a soft prompt's places",
            "answer = model.generate(",
            "    input_ids=tokens, attention_mask=mask, max_new_tokens=64, do_sample=False,",
            f"    eos_token_id={notes['ends'] or None}, pad_token_id={notes['pad_token_id']},",
            ")",
            "print(tokenizer.decode(answer[0, len(ids) :], skip_special_tokens=True))",
        ]
    return "\n".join([*lines, *_answer(notes)])


def _answer(notes: Mapping[str, Any]) -> list[str]:
    """Lines that print what a head's logits mean; an adapter without a record of rows is a classifier."""
    if rows := notes.get("rows"):
        return task_of(read_data(rows["data"])).code()
    if not notes["labels"]:
        return []
    return [f"print({notes['labels']!r}[logits[0].argmax()])"]


def _imports(notes: Mapping[str, Any]) -> str:
    config = ["AutoConfig"] if notes["base"]["layers"] or _one_output(notes) else []
    generation = ["GenerationConfig"] if MODELS[notes["kind"]].language_model else []
    bits = ["BitsAndBytesConfig"] if notes["base"]["quantization"] != "none" else []
    return ", ".join([*config, _CLASSES[notes["kind"]], "AutoTokenizer", *generation, *bits])


def _loading(notes: Mapping[str, Any]) -> list[str]:
    """Lines that make ``tokenizer`` and ``base``."""
    base = notes["base"]
    source = json.dumps(base["path"])
    if base["revision"]:
        source += f", revision={base['revision']!r}"
    classifier = MODELS[notes["kind"]].own_head
    labels = f", num_labels={len(notes['labels'])}" if classifier else ""
    lines = [f"tokenizer = AutoTokenizer.from_pretrained({source})"]
    if _one_output(notes):
        lines += [
            f"config = AutoConfig.from_pretrained({source})",
            "config.problem_type, config.num_labels = None, 1  # whatever its files say of their own head",
        ]
        labels = ", config=config"
    elif base["layers"]:
        lines.append(f"config = AutoConfig.from_pretrained({source}{labels})")
    if base["layers"]:
        lines += [
            f"config.num_hidden_layers = {base['layers']}",
            f"for name in {PER_LAYER!r}:",
            "    if isinstance(vars(config).get(name), list):",
            f"        setattr(config, name, getattr(config, name)[: {base['layers']}])",
        ]
        labels = ", config=config"
    dtype = base.get("dtype", "float32")
    arguments = f"{source}, dtype=torch.{dtype}{labels}"
    if base["quantization"] != "none":
        given = quantised(base["quantization"], dtype)
        options = ", ".join(f"{name}={value!r}" for name, value in given.items())
        arguments += f", quantization_config=BitsAndBytesConfig({options})"
    if classifier:
        arguments += ", ignore_mismatched_sizes=True"
    lines.append(f"base = {_CLASSES[notes['kind']]}.from_pretrained({arguments})")
    if MODELS[notes["kind"]].language_model:
        lines.append("base.generation_config = GenerationConfig()  # no penalties or draws of the base's own")
    if notes.get("read_at_last_token"):
        lines.append("base.config.pad_token_id = None  # the head is read at the last token, whatever it is")
    return lines


def _one_output(notes: Mapping[str, Any]) -> bool:
    """Whether a classifier's head has one output, which transformers refuses beside some problem types."""
    return MODELS[notes["kind"]].own_head and len(notes["labels"]) == 1


def _pairs(notes: Mapping[str, Any]) -> bool:
    """Whether a row is a pair of texts."""
    rows = notes.get("rows")
    return bool(rows and (rows.get("pairs") or rows["data"].get("text_pair")))


def _tokens(notes: Mapping[str, Any]) -> list[str]:
    """Lines that make ``ids`` of a text, as training made them."""
    rows = notes.get("rows") or {}
    if not MODELS[notes["kind"]].language_model:
        cut = f", truncation=True, max_length={rows['data']['max_tokens']}" if rows else ""
        texts = '"a text", "and its pair"' if _pairs(notes) else '"a text"'
        if notes.get("token_types") or notes["pooling"] == "none":
            types = ['types = torch.tensor([row["token_type_ids"]])'] if notes.get("token_types") else []
            return [
                *([] if _pairs(notes) else ["# of a pair: both texts, one after the other"]),
                f"row = tokenizer({texts}{cut}, split_special_tokens=True)",
                'ids = row["input_ids"]',
                *types,
            ]
        if prefix := (rows.get("data") or {}).get("prefix"):
            texts = f'{prefix!r} + "a text"'
        plain = "" if "masked token" in MODELS[notes["kind"]].gives else ", split_special_tokens=True"
        return [f'ids = tokenizer({texts}{cut}{plain})["input_ids"]']
    if not notes["chat"]:
        begins = f"{rows['begins']} + " if rows.get("begins") else ""
        return [
            f'ids = {begins}tokenizer("a text", add_special_tokens=False, split_special_tokens=True)'
            '["input_ids"]'
        ]
    chat = rows["chat"]
    system = [f'    {{"role": "system", "content": {notes["system"]!r}}},'] if notes["system"] else []
    options = "".join(f", {name}={value!r}" for name, value in chat["template_arguments"].items())
    lines = ["messages = [", *system, '    {"role": "user", "content": "a text"},', "]"]
    if chat["template_prefix"]:
        lines += [
            'rows = json.load(open("headwater.json", encoding="utf-8"))["rows"]',
            "# the date of training, whatever day it is",
            'template = rows["chat"]["template_prefix"] + tokenizer.get_chat_template()',
        ]
        lines.insert(0, "import json")
        options += ", chat_template=template"
    return [
        *lines,
        "prompt = tokenizer.apply_chat_template(",
        f"    messages, tokenize=False, add_generation_prompt=True{options}",
        ")",
        'ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]',
    ]


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
