"""What PEFT itself does: :func:`merge_through_peft` what is not plain LoRA, and :func:`compare_logits`."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from transformers import PreTrainedModel

from headwater.adapters.serving.traits import PREFIX, Subject
from headwater.errors import HeadwaterError, ModelError
from headwater.experts.decompress import decompress

_CLASSES = {
    "encoder": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""transformers' class by Headwater's kind of model, or by PEFT's ``task_type``."""
_PROBLEMS = {
    "classification": "single_label_classification",
    "multi-label": "multi_label_classification",
    "regression": "regression",
}
"""transformers' ``problem_type`` by the kind of Headwater's data; it has none for labels of words."""
_TOLERANCE = {"float32": 1e-3}
_ROUNDED = 0.5
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Logits:
    """How a merged model compares with PEFT, over some random tokens.

    Args:
        effect: rms of what the adapter changes in the logits.
        error: rms of the merged model's difference from PEFT's.
        size: rms of the logits.
        top: the part of positions at which both have the same largest logit.
    """

    effect: float
    error: float
    size: float
    top: float


def merge_through_peft(subject: Subject, base: Path, out: Path, dtype: str) -> None:
    """Merge by ``merge_and_unload`` and save; for kinds, heads and layouts that are not plain LoRA.

    Raises:
        ModelError: PEFT or transformers cannot.
    """
    with ExitStack() as stack:
        folder = _folder(subject, stack)
        try:
            whole = _adapted(subject, base, folder, "auto" if dtype == "keep" else dtype)
            _require_apart(whole, subject)
            merged = whole.merge_and_unload(safe_merge=True)
            _name_outputs(subject, merged)
            merged.save_pretrained(out)
        except HeadwaterError:
            raise
        except Exception as error:  # PEFT and transformers raise bare exceptions of many types
            raise ModelError(
                f"{subject.path}",
                expected=f"a {subject.kind} adapter that PEFT merges into {base}",
                got=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}",
            ) from error


def _require_apart(whole: PeftModel, subject: Subject) -> None:
    """Refuse an adapter on one end of a model whose two ends are one weight: PEFT changes that end alone.

    Raises:
        ModelError: its embeddings or its output are adapted, and tied.
    """
    model: PreTrainedModel = whole.get_base_model()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    together = getattr(whole.peft_config["default"], "ensure_weight_tying", False)
    if tied and not together and any(isinstance(e, BaseTunerLayer | ModulesToSaveWrapper) for e in ends):
        raise ModelError(
            f"{subject.path}",
            expected="a base whose output is apart from its embeddings, where one of both is adapted",
            got="tie_word_embeddings: a merged model has one weight for both",
            hint="Serve the adapter unmerged.",
        )


def compare_logits(subject: Subject, base: Path, merged: Path, dtype: str) -> Logits:
    """Load base and adapter in PEFT, and the merged model, in float32, and compare what they say.

    Raises:
        ModelError: the merged model says something else than PEFT, by more than rounding of its weights.
    """
    with ExitStack() as stack:
        whole = _adapted(subject, base, _folder(subject, stack), "float32").eval()
        draw = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, _vocabulary(whole), (2, 16), generator=draw)
        adapted = _output(whole, tokens)
        with whole.disable_adapter():
            bare = _output(whole, tokens)
        del whole
        own = _output(_load(subject, merged, "float32").eval(), tokens)
    found = Logits(
        effect=_rms(adapted - bare),
        error=_rms(own - adapted),
        size=_rms(adapted),
        top=float((own.argmax(-1) == adapted.argmax(-1)).float().mean()),
    )
    most = _TOLERANCE.get(dtype, _ROUNDED) * found.effect + _ROUNDING * found.size
    if not found.error <= most:
        raise ModelError(
            f"merged model of {subject.path}",
            expected=f"PEFT's logits within {most:.3g} (rms; the adapter changes them by {found.effect:.3g})",
            got=f"a difference of {found.error:.3g}",
            hint="Nothing was written. The change is small beside the rounding of the base's type: "
            "--dtype float32 keeps it, and so does serving the adapter unmerged.",
        )
    return found


def _folder(subject: Subject, stack: ExitStack) -> Path:
    """A folder that PEFT loads: the adapter's own, or a temporary one of a compressed file."""
    if subject.path.is_dir():
        return subject.path
    assert subject.adapter is not None
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-adapter-"))) / "adapter"
    decompress(subject.adapter, place)
    return place


def _adapted(subject: Subject, base: Path, folder: Path, dtype: str) -> PeftModel:
    return PeftModel.from_pretrained(_load(subject, base, dtype), str(folder))


def _load(subject: Subject, folder: Path, dtype: str) -> PreTrainedModel:
    notes = {} if subject.adapter is None else subject.adapter.notes
    kind = notes.get("kind") or subject.config.get("task_type") or "FEATURE_EXTRACTION"
    if kind not in _CLASSES:
        raise ModelError(f"{subject.path}", expected=f"a task of {', '.join(_CLASSES)}", got=f"{kind!r:.80}")
    outputs: dict[str, Any] = {}
    if count := _outputs(subject):
        outputs = {"num_labels": count, "ignore_mismatched_sizes": True}
    with _quiet():
        return getattr(transformers, _CLASSES[kind]).from_pretrained(
            folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **outputs
        )


def _quiet() -> ExitStack:
    """Without transformers' bars and reports of weights that a head lacks, which the adapter brings."""
    logging = transformers.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    stack = ExitStack()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    stack.callback(logging.set_verbosity, before)
    if bars:
        stack.callback(logging.enable_progress_bar)
    return stack


def _outputs(subject: Subject) -> int:
    """Rows of a classifier's head in the adapter; 0 where it has none."""
    if subject.adapter is None or subject.adapter.head is not None:
        return 0
    ends = ("score.weight", "classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight")
    for name, shape in subject.adapter.plain.items():
        if name.removeprefix(PREFIX).endswith(ends):
            return int(shape[0])
    return 0


def _name_outputs(subject: Subject, model: PreTrainedModel) -> None:
    """Put the adapter's labels into ``config.json``: else a pipeline answers LABEL_1, or the base's names.

    With its task, by which transformers' pipeline chooses between softmax, sigmoid and the bare number.
    """
    notes = {} if subject.adapter is None else subject.adapter.notes
    labels = notes.get("labels")
    if not isinstance(labels, list) or len(labels) != _outputs(subject):
        return
    model.config.id2label = {i: str(label) for i, label in enumerate(labels)}
    model.config.label2id = {str(label): i for i, label in enumerate(labels)}
    rows = notes.get("rows")
    data = rows.get("data") if isinstance(rows, dict) else None
    kind = data.get("kind") if isinstance(data, dict) else None
    model.config.problem_type = _PROBLEMS.get(str(kind))


def _vocabulary(model: PeftModel) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def _output(model: PeftModel | PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    more = {"decoder_input_ids": tokens} if getattr(model.config, "is_encoder_decoder", False) else {}
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), **more)
    found: torch.Tensor = (out.logits if "logits" in out else out[0]).float()
    return found


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())
