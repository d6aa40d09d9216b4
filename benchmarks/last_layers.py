"""Small trainings of MiniLM: its first layers are run once for each text, and LoRA moves the last two.

A task is texts, labels and a head that stands still, so that what is merged is all that a task has learnt: a
linear probe of the base, or the base's embeddings of sentences that describe the classes. Everything is done
by one thread, from fixed seeds.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from headwater.merging.offline.peft_folder import PeftFolder

CACHE = Path(__file__).parents[1] / ".cache" / "headwater"
TARGETS = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
FROZEN, LAYERS = 4, 6
LONGEST, BATCH, RATE = 48, 32, 1e-3


@dataclass(frozen=True)
class Texts:
    """What the frozen layers make of some texts [n, t, d], masks [n, t] and labels [n]."""

    hidden: Tensor
    mask: Tensor
    labels: Tensor


def minilm() -> nn.Module:
    return AutoModel.from_pretrained(CACHE / "minilm").eval()


@torch.no_grad()
def frozen(base: nn.Module, texts: Sequence[str], labels: Sequence[int]) -> Texts:
    """The frozen layers' output, in half precision."""
    tokenizer = AutoTokenizer.from_pretrained(CACHE / "minilm")
    tokens = tokenizer(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    hidden = torch.zeros(len(tokens), LONGEST, base.config.hidden_size, dtype=torch.half)
    mask = torch.zeros(len(tokens), LONGEST, dtype=torch.long)
    by_length = torch.tensor([len(text) for text in tokens]).argsort()  # alike in length: no padding
    for pick in by_length.split(BATCH):
        batch = tokenizer.pad({"input_ids": [tokens[i] for i in pick]}, return_tensors="pt")
        length = batch["input_ids"].shape[1]
        states = base.embeddings(batch["input_ids"])
        states = _layers(base, states, batch["attention_mask"].float(), range(FROZEN))
        hidden[pick, :length] = states.half()
        mask[pick, :length] = batch["attention_mask"]
    return Texts(hidden, mask, torch.tensor(labels))


def _layers(base: nn.Module, hidden: Tensor, mask: Tensor, which: range) -> Tensor:
    for number in which:
        out = base.encoder.layer[number](hidden, (1 - mask[:, None, None, :]) * -1e9)
        hidden = out[0] if isinstance(out, tuple) else out
    return hidden


def pooled(base: nn.Module, some: Texts, pick: Tensor | slice) -> Tensor:
    """The mean of a text's tokens after the last layers: [n, d]."""
    mask = some.mask[pick].float()
    length = int(mask.sum(1).max())
    mask = mask[:, :length]
    hidden = _layers(base, some.hidden[pick][:, :length].float(), mask, range(FROZEN, LAYERS))
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def fitted_head(base: nn.Module, some: Sequence[Texts], most: int) -> nn.Linear:
    """A linear probe on the base, from the first ``most`` of each of some texts; it needs no gradient."""
    with torch.no_grad():
        features = torch.cat([pooled(base, texts, slice(0, most)) for texts in some])
    labels = torch.cat([texts.labels[:most] for texts in some])
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimiser = torch.optim.Adam(head.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(300):
        optimiser.zero_grad()
        nn.functional.cross_entropy(head(features), labels).backward()
        optimiser.step()
    return head.requires_grad_(False)


class Described(nn.Module):
    """Cosines with the base's embeddings of one sentence for each class, as CLIP's heads without training.

    Args:
        base: embeds.
        sentences: what each class is.
    """

    def __init__(self, base: nn.Module, sentences: Sequence[str]) -> None:
        super().__init__()
        with torch.no_grad():
            texts = frozen(base, sentences, range(len(sentences)))
            classes = nn.functional.normalize(pooled(base, texts, slice(None)), dim=1)
        self.register_buffer("classes", classes)

    def forward(self, features: Tensor) -> Tensor:
        """Logits [n, classes]."""
        return 20 * nn.functional.normalize(features, dim=1) @ self.classes.T


def train(
    work: Path,
    experts: Mapping[str, Sequence[Texts]],
    heads: Mapping[str, Sequence[nn.Module]],
    epochs: int,
) -> None:
    """Write each expert's folder, and ``start``, from where all began; folders that are there stay.

    Args:
        work: the folder of the folders.
        experts: by name, the tasks that one learns.
        heads: of these tasks.
        epochs: passes over the texts.
    """
    layers = list(range(FROZEN, LAYERS))
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=TARGETS, layers_to_transform=layers, layers_pattern="layer"
    )
    torch.manual_seed(0)
    model = get_peft_model(minilm(), config)
    model.save_pretrained(work / "start")
    start = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    for name, tasks in experts.items():
        if (work / name).is_dir():
            continue
        set_peft_model_state_dict(model, start)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], RATE)
        draw = torch.Generator().manual_seed(2)
        for _ in range(epochs):
            batches = [
                (task, pick)
                for task, some in enumerate(tasks)
                for pick in torch.randperm(len(some.labels), generator=draw).split(BATCH)
            ]
            for turn in torch.randperm(len(batches), generator=draw):
                task, pick = batches[turn]
                optimiser.zero_grad()
                answer = heads[name][task](pooled(model.base_model.model, tasks[task], pick))
                nn.functional.cross_entropy(answer, tasks[task].labels[pick]).backward()
                optimiser.step()
        model.save_pretrained(work / name)
        print("trained", name, flush=True)


@dataclass(frozen=True)
class Judge:
    """Accuracy of the base with an adapter added, on texts by name, each with its head."""

    base: nn.Module
    data: Mapping[str, Texts]
    heads: Mapping[str, nn.Module]

    def accuracy(self, adapter: PeftFolder | None, names: Iterable[str]) -> float:
        """The mean over sets of texts."""
        return statistics.mean(self.accuracies(adapter, names).values())

    @torch.no_grad()
    def accuracies(self, adapter: PeftFolder | None, names: Iterable[str]) -> dict[str, float]:
        """Of each set of texts."""
        base, found = copy.deepcopy(self.base), {}
        for module in adapter.modules if adapter is not None else ():
            weight = base.get_submodule(module.removeprefix("base_model.model.")).weight
            b, a = adapter.factors(module)
            weight += torch.from_numpy(b @ a).to(weight.dtype)
        for name in names:
            some = self.data[name]
            by_length = some.mask.sum(1).argsort()
            features = torch.cat([pooled(base, some, pick) for pick in by_length.split(64)])
            right = self.heads[name](features).argmax(1) == some.labels[by_length]
            found[name] = float(right.float().mean())
        return found
