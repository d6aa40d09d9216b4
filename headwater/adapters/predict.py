"""Use an exported adapter: :class:`Predictor`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from torch import Tensor

from headwater.adapters.base import Base, PretrainedSettings, load_base, quiet_transformers
from headwater.adapters.export import FORMAT, HEAD, NOTES
from headwater.adapters.network import Network, new_head
from headwater.errors import ModelError

_SETTINGS: TypeAdapter[PretrainedSettings] = TypeAdapter(PretrainedSettings)


@dataclass(frozen=True)
class Predictor:
    """Base, adapter and head from an exported folder, for inference. Make it with :meth:`open`.

    Args:
        base: the base model.
        network: base, adapter and head.
        chat: whether it was trained on instructions.
        system: the system message of that training, if any.
        labels: names of the classes; None for a causal model.
        room: tokens that a text and its answer may have together; None where the base sets no bound.
    """

    base: Base
    network: Network
    chat: bool
    system: str | None
    labels: tuple[str, ...] | None
    room: int | None

    @staticmethod
    def open(folder: Path, *, base: str | None = None) -> Predictor:
        """Load the adapter in ``folder``.

        Args:
            folder: written by ``export``.
            base: the base model, if it is no longer where the folder says (which is relative to the
                working directory).

        Raises:
            ModelError: not such a folder, or other base weights than the adapter was trained on.
        """
        who = f"adapter {folder}"
        try:
            notes = json.loads((folder / NOTES).read_text(encoding="utf-8"))
            if notes["format"] != FORMAT or notes["kind"] == "vector":
                raise ModelError(who, expected=f"a {FORMAT} folder with a base model", got=notes["kind"])
            changes = {"path": base or notes["base"]["path"]}
            settings = _SETTINGS.validate_json(json.dumps({**notes["base"], **changes}))
            labels = None if notes["labels"] is None else tuple(notes["labels"])
            chat, system = bool(notes["chat"]), notes["system"]
            adapter = notes["adapter"]
            virtual = int(adapter["tokens"]) if adapter["kind"] in ("prompt", "prefix") else 0
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise ModelError(
                who,
                expected=f"a folder with {NOTES}",
                got=f"{type(error).__name__}: {error}",
                hint="Give the adapter/ folder of a run.",
            ) from error
        loaded = load_base(settings, Path.cwd(), labels=labels)
        try:
            with quiet_transformers(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecations between peft and transformers
                peft = PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False)
            head = None
            if notes["pooling"] == "mean":
                values = load_file(folder / HEAD)
                head = new_head(values["weight"].shape[1], values["weight"].shape[0], loaded.device)
                head.load_state_dict(values)
        except Exception as error:  # PEFT and torch raise bare exceptions of many types
            raise ModelError(
                who, expected="an adapter that PEFT loads on this base", got=str(error)
            ) from error
        network = Network(peft, settings.kind, head).eval()
        network.requires_grad_(False)
        room = None if loaded.positions is None else loaded.positions - virtual
        return Predictor(loaded, network, chat, system, labels, room)

    def classify(
        self, texts: Sequence[str], *, batch_size: int = 32, max_tokens: int = 512
    ) -> list[dict[str, Any]]:
        """The label of each text, of which no more than ``max_tokens`` are read.

        Returns:
            For each text ``label``, its ``score`` (probability), and ``scores`` of all labels.

        Raises:
            ModelError: the adapter is of a causal model.
        """
        if self.labels is None:
            raise ModelError("classify", expected="a classifier", got="a causal model", hint="Use generate.")
        max_tokens = max_tokens if self.room is None else min(max_tokens, self.room)
        results: list[dict[str, Any]] = []
        for start in range(0, len(texts), batch_size):
            rows = [self.base.tokenizer.encode(t, max_tokens) for t in texts[start : start + batch_size]]
            with torch.no_grad():
                logits = self.network(*_padded(rows, self.base.tokenizer.pad, self.base.device))
            for row in logits.double().softmax(-1).tolist():
                scores = dict(zip(self.labels, row, strict=True))
                best = max(scores, key=lambda label: scores[label])
                results.append({"label": best, "score": scores[best], "scores": scores})
        return results

    def generate(
        self, prompts: Sequence[str], max_new_tokens: int = 128, *, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """A continuation of each prompt: an answer in the chat template if trained on instructions.

        One prompt at a time, so that no padding can change a result.

        Args:
            prompts: texts.
            max_new_tokens: length of an answer at most.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn.
            seed: of the draws; torch's global generator is left as it was.

        Raises:
            ModelError: the adapter is of a classifier, or prompt and answer are more than the base takes.
        """
        if self.labels is not None:
            raise ModelError("generate", expected="a causal model", got="a classifier", hint="Use classify.")
        return [self._continue(prompt, max_new_tokens, temperature, seed) for prompt in prompts]

    def _continue(self, prompt: str, max_new_tokens: int, temperature: float, seed: int) -> str:
        tokenizer = self.base.tokenizer
        if self.chat:
            system = [{"role": "system", "content": self.system}] if self.system else []
            row = tokenizer.chat_prompt([*system, {"role": "user", "content": prompt}])
        else:
            row = tokenizer.encode(prompt, 1 << 30)
        if self.room is not None and len(row) + max_new_tokens > self.room:
            raise ModelError(
                f"prompt {prompt[:40]!r}",
                expected=f"at most {self.room} tokens with the answer",
                got=f"{len(row)} and {max_new_tokens} new ones",
                hint="Shorten the prompt, or ask for a shorter answer.",
            )
        tokens, mask = _padded([row], tokenizer.pad, self.base.device)
        sampling = (
            {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        )
        with torch.no_grad(), torch.random.fork_rng(devices=[]), quiet_transformers():
            torch.manual_seed(seed)
            out = self.network.peft.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad,
                eos_token_id=self._ends(),
                use_cache=True,
                **sampling,
            )
        return tokenizer.decode(out[0, len(row) :].tolist()).strip()

    def _ends(self) -> list[int] | None:
        configured = self.base.model.generation_config.eos_token_id
        ends = set(configured if isinstance(configured, list) else [configured]) | {self.base.tokenizer.eos}
        return sorted(int(end) for end in ends if end is not None) or None


def _padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return tokens, mask
