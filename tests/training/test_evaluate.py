import math
import re
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from transformers import AutoModel

from headwater.errors import DataError, TrainingError
from headwater.tasks.batches import IGNORED, Example, collate
from headwater.tasks.classification import macro_f1
from headwater.training.evaluate import evaluate_each, evaluate_groups, features
from tests.support import federations


def evaluate(*of, **how):
    """Of the whole."""
    return evaluate_groups(*of, **how)[0]


labels = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


@given(pairs=labels)
def test_macro_f1_is_that_of_scikit_learn(pairs):
    truth, predicted = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    assert macro_f1(truth, predicted) == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_a_classifier_by_hand(tmp_path):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("lora", "bert"))
    model = federations.adapted(loaded)
    examples = federations.examples(11, language_model=False)
    kwargs = {"pad": 0}
    count, metrics = evaluate(model, model.initial_state(), examples, batch_size=4, **kwargs)
    logits = torch.cat([model.forward(collate([e], 0)).logits for e in examples]).detach()
    truth = torch.tensor([int(e.targets[0]) for e in examples])
    assert count == 11
    assert metrics["accuracy"] == pytest.approx((logits.argmax(-1) == truth).float().mean().item())
    assert metrics["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, truth).item(), rel=1e-5)
    assert evaluate(model, model.initial_state(), examples, batch_size=4, **kwargs) == (count, metrics)


def test_a_language_model_as_transformers_counts(tmp_path):
    loaded = federations.federation(tmp_path, "causal-lm", "llama", federations.adapter("lora", "llama"))
    model = federations.adapted(loaded)
    examples = federations.examples(5, language_model=True)
    count, metrics = evaluate(model, model.initial_state(), examples, batch_size=2, pad=0)
    total, tokens = 0.0, 0
    for example in examples:
        batch = collate([example], 0)
        own = model.network.peft(input_ids=batch.tokens, attention_mask=batch.mask, labels=batch.targets)
        n = int((batch.targets[:, 1:] != -100).sum())
        total, tokens = total + own.loss.item() * n, tokens + n
    assert count == tokens
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)


def test_refusals(tmp_path):
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter("lora", "bert"))
    model = federations.adapted(loaded)
    kwargs = {"batch_size": 2, "pad": 0}
    with pytest.raises(DataError, match="at least one example"):
        evaluate(model, model.initial_state(), [], **kwargs)
    broken = model.initial_state().map(lambda v: torch.full_like(v, float("nan")))
    with pytest.raises(TrainingError, match="finite loss"):
        evaluate(model, broken, federations.examples(2, language_model=False), **kwargs)


@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=5), size=st.integers(1, 6), own=st.booleans())
@settings(max_examples=16, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_owners_who_share_batches_measure_what_they_measure_alone(language_model, sizes, size, own):
    """In no more passes than one owner of all needs, also with own states; who has no target fails alone."""
    model, passes, forward = language_model, [], language_model.forward
    start = model.initial_state()
    states = [start.map(lambda v, n=n: v + 0.1 * (n + 1)) if own else start for n in range(len(sizes))]
    lots = [federations.examples(n, language_model=True, seed=n) for n in sizes]
    if len(lots) > 2 and lots[1]:
        lots[1] = [Example(e.tokens, np.full_like(e.targets, IGNORED), by_token=True) for e in lots[1]]
    with mock.patch.object(model, "forward", lambda batch: passes.append(len(batch)) or forward(batch)):
        found = evaluate_each(model, states, lots, batch_size=size, pad=0)
    assert len(passes) == math.ceil(sum(sizes) / size)
    for state, lot, one in zip(states, lots, found, strict=True):
        if isinstance(one, DataError):
            with pytest.raises(DataError, match=re.escape(str(one))):
                evaluate(model, state, lot, batch_size=size, pad=0)
            continue
        count, metrics = evaluate(model, state, lot, batch_size=size, pad=0)
        assert one[0] == count
        assert one[1] == pytest.approx(metrics, rel=1e-5)


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    loaded = federations.federation(folder, "causal-lm", "llama", federations.adapter("lora", "llama"))
    return federations.adapted(loaded)


@pytest.mark.parametrize("kind", ["lora", "prompt", "ia3"])
def test_features_are_those_of_the_bare_base(tmp_path, kind):
    """In the order of the examples, whatever the adapter is; against transformers itself."""
    loaded = federations.federation(tmp_path, "encoder", "bert", federations.adapter(kind, "bert"))
    model = federations.adapted(loaded)
    model.load(model.initial_state().map(lambda value: value + 0.5))
    rows = federations.examples(9, language_model=False)
    found = features(model, rows, batch_size=4, pad=0)
    base = AutoModel.from_pretrained(tmp_path / "bert").eval()
    for example, row in zip(rows, found, strict=True):
        with torch.no_grad():
            hidden = base(torch.tensor(example.tokens)[None].long()).last_hidden_state[0]
        assert np.allclose(hidden.mean(0).numpy(), row, atol=1e-5)
