import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import (
    AlbertConfig,
    AlbertModel,
    OPTConfig,
    OPTForCausalLM,
)

from headwater.compression.logquant import LogQuantCodec
from headwater.config.load import load_data
from headwater.errors import TrainingError
from headwater.merging import FisherAggregator
from headwater.merging.plan import MergePlan, Update
from headwater.protocol.messages import FisherPlan
from headwater.seeds.keys import Key
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.tasks.batches import collate
from headwater.tasks.classification import invert
from headwater.tasks.table import task_of
from headwater.training import fisher as room
from headwater.training.fisher import client_fisher, fisher_by_loop, fisher_diagonal
from headwater.training.per_example import SquaredGradients, can_hook
from tests.support import federations
from tests.support.tiny_models import _save, word_tokenizer

CASES = [
    ("encoder", "bert", "lora"),
    ("sequence-classification", "bert", "lora"),
    ("sequence-classification", "roberta", "lora"),
    ("sequence-classification", "llama", "rslora"),
    ("causal-lm", "llama", "lora"),
    ("causal-lm", "gpt2", "lora"),
]


def model_of(tmp_path, kind, base, adapter, **changes):
    loaded = federations.federation(tmp_path, kind, base, federations.adapter(adapter, base), **changes)
    return noisy(federations.adapted(loaded))


def noisy(model):
    state = model.initial_state()
    noise = torch.randn(state.spec.numel, generator=torch.Generator().manual_seed(3))
    model.load(type(state).from_vector(state.spec, state.vector() + 0.1 * noise))  # B = 0 hides A
    return model


@pytest.mark.parametrize(("kind", "base", "adapter"), CASES)
@pytest.mark.parametrize("space", ["factors", "ffa"])
def test_hooks_equal_the_loop(tmp_path, kind, base, adapter, space, monkeypatch):
    model = model_of(tmp_path, kind, base, adapter, strategy={"kind": "mean", "space": space})
    assert can_hook(model)
    examples = federations.examples(7, language_model=model.language_model)
    monkeypatch.setattr(room, "fisher_by_loop", None)
    fast = fisher_diagonal(model, examples, batch_size=3, pad=0, key=Key.root(1))
    slow = fisher_by_loop(model, examples, pad=0, key=Key.root(1))
    assert slow.max_abs() > 0
    for name, value in slow.items():
        assert bool((value > 0).any())
        torch.testing.assert_close(fast[name], value, rtol=1e-4, atol=1e-5 * slow.max_abs())


def tiny_opt(folder):
    """Its feed-forward layers see [b·t, d]."""
    shape = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    config = OPTConfig(**SIZES, **shape, bos_token_id=1, eos_token_id=2, init_std=0.2)
    return _save(folder, 0, lambda: OPTForCausalLM(config), word_tokenizer())


def tiny_albert(folder):
    """One layer, passed through twice."""
    shape = {"embedding_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = AlbertConfig(**SIZES, **shape, num_hidden_groups=1, initializer_range=0.2)
    return _save(folder, 0, lambda: AlbertModel(config), word_tokenizer())


SIZES = {
    "vocab_size": len(word_tokenizer()),
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
UNUSUAL = {
    "opt": ("causal-lm", tiny_opt, ("fc1", "fc2", "q_proj")),
    "albert": ("encoder", tiny_albert, ("query", "ffn")),
}


@pytest.mark.parametrize("base", UNUSUAL)
def test_layers_that_do_not_see_examples_apart_take_the_loop(tmp_path, base, monkeypatch):
    kind, make, targets = UNUSUAL[base]
    make(tmp_path / base)
    loaded = federations.federation(
        tmp_path, kind, base, {"kind": "lora", "rank": 2, "alpha": 4.0, "target_modules": targets}
    )
    model = noisy(federations.adapted(loaded))
    assert can_hook(model)
    examples = federations.examples(7, language_model=model.language_model)
    loop = []
    monkeypatch.setattr(room, "fisher_by_loop", lambda *a, **k: loop.append(1) or fisher_by_loop(*a, **k))
    fast = fisher_diagonal(model, examples, batch_size=3, pad=0, key=Key.root(1))
    slow = fisher_by_loop(model, examples, pad=0, key=Key.root(1))
    assert loop == [1]
    assert slow.max_abs() > 0
    assert fast.tobytes() == slow.tobytes()


@pytest.mark.parametrize(
    ("shape", "apart"),
    [((3, 5, 4), True), ((15, 4), False), ((3, 4), False), ((5, 3, 4), False), ((4,), False)],
)
def test_what_a_layer_may_see(shape, apart):
    """Three rows of a routed expert are three tokens of any examples; of a head, three examples."""
    layers = torch.nn.ModuleList([torch.nn.Linear(4, 2)])
    model = SimpleNamespace(network=torch.nn.ModuleDict({"layers": layers, "head": torch.nn.Linear(4, 2)}))
    model.parameters = lambda: [(None, p) for p in model.network.parameters()]
    with SquaredGradients(model) as squares:
        squares.expect(3)
        model.network["head"](torch.ones(3, 4))
        assert squares.apart
        model.network["layers"][0](torch.ones(shape))
        assert squares.apart == apart


@pytest.mark.parametrize("adapter", ["dora", "prompt", "prefix", "ia3", "vera", "p-tuning"])
def test_other_adapters_take_the_loop(tmp_path, adapter):
    model = model_of(tmp_path, "encoder", "bert", adapter)
    assert not can_hook(model)
    examples = federations.examples(3, language_model=False)
    fisher = fisher_diagonal(model, examples, batch_size=3, pad=0, key=Key.root(1))
    assert all(bool((v > 0).any()) for v in fisher.values())


def test_the_head_bias_has_the_softmax_variance(tmp_path):
    """For a bias of logits, E_y (1[y=c] − p_c)² = p_c(1 − p_c): known without any gradient."""
    model = model_of(tmp_path, "encoder", "bert", "lora")
    (example,) = federations.examples(1, language_model=False)
    fisher = fisher_diagonal(model, [example] * 1200, batch_size=400, pad=0, key=Key.root(2))
    batch = collate([example], 0)
    p = model.forward(batch).logits.detach().softmax(-1)[0]
    torch.testing.assert_close(fisher["head.bias"], p * (1 - p), rtol=0, atol=4 * 0.5 / math.sqrt(1200))


def test_drawn_tokens_follow_the_model_and_keep_the_gaps():
    logits = torch.log(torch.tensor([0.5, 0.2, 0.3])).repeat(1, 3001, 1)
    targets = torch.zeros(1, 3001, dtype=torch.int64)
    targets[0, 5] = -100
    uniforms = torch.from_numpy(Key.root(0).numpy().random((1, 3001)))
    text = {"kind": "causal-lm", "path": "x", "partition": {"kind": "files"}}
    drawn = task_of(load_data(text)).draw(logits, targets, uniforms)[0]
    assert drawn[0] == drawn[5] == -100  # nothing predicts the first token; the fifth had no loss
    shares = torch.bincount(drawn[drawn >= 0], minlength=3) / 2999
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.2, 0.3]), rtol=0, atol=0.04)
    assert invert(logits[0, :2], torch.tensor([0.0, 1.0 - 1e-17])).tolist() == [0, 2]


def test_scaled_to_mean_one_and_capped(tmp_path):
    model = model_of(tmp_path, "encoder", "bert", "lora")
    kwargs = {"who": "client a", "batch_size": 4, "pad": 0, "key": Key.root(0)}
    examples = federations.examples(9, language_model=False)
    free = client_fisher(model, examples, FisherPlan(100, 2.0**20), **kwargs)
    assert free.vector().double().mean().item() == pytest.approx(1, rel=1e-5)
    capped = client_fisher(model, examples, FisherPlan(100, 1.5), **kwargs)
    assert torch.equal(capped.vector(), free.vector().clamp(max=1.5))
    few = client_fisher(model, examples, FisherPlan(2, 2.0**20), **kwargs)
    assert few.tobytes() != free.tobytes()
    assert few.tobytes() == client_fisher(model, examples, FisherPlan(2, 2.0**20), **kwargs).tobytes()


@pytest.mark.parametrize("cap", [1.0000001, 1.5000001, 2.1, 300.1])
def test_the_server_takes_what_an_honest_client_sends(tmp_path, cap):
    model = model_of(tmp_path, "encoder", "bert", "lora")
    examples = federations.examples(4, language_model=False)
    kwargs = {"who": "client a", "batch_size": 4, "pad": 0, "key": Key.root(0)}
    fisher = client_fisher(model, examples, FisherPlan(100, cap), **kwargs)
    assert fold(fisher, cap).tobytes() == through_the_codec(fisher).tobytes()


@given(
    cap=st.floats(1, 2.0**20, exclude_min=True),
    scale=st.sampled_from([1e-45, 1e-38, 1e-20, 1.0, 1e20]),
    heavy=st.floats(0, 12),
    seed=st.integers(0, 9),
)
@example(cap=300.1, scale=1.0, heavy=9.0, seed=0)
def test_the_server_takes_any_capped_fisher(cap, scale, heavy, seed):
    """Any cap, squares of any size and spread; as far down as squares that fp32 hardly holds."""
    spec = StateSpec.of([TensorSpec("a", (40, 10), "lora_a"), TensorSpec("b", (30,), "vector")])
    values = torch.randn(spec.numel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    raw = AdapterState.from_vector(spec, ((heavy * values).exp() * scale).clamp_(max=1e38).float())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "fisher_diagonal", lambda *args, **kwargs: raw)
        one = [federations.examples(1, language_model=False)[0]]
        fisher = client_fisher(
            None, one, FisherPlan(1, cap), who="client a", batch_size=1, pad=0, key=Key.root(0)
        )
    assert fisher.isfinite()
    assert fisher.max_abs() <= cap
    fold(fisher, cap)


def through_the_codec(fisher):
    codec = LogQuantCodec()
    return codec.decode(codec.encode(fisher, key=Key.root(0)), fisher.spec)


def fold(fisher, cap):
    """What the server folds, after the codec; raises if it refuses."""
    received, rule = through_the_codec(fisher), FisherAggregator(cap=cap)
    update = Update("a", 1, AdapterState.zeros(fisher.spec), 1, statistics={"fisher": received})
    rule.add(rule.init(MergePlan(fisher.spec, {"a": 1}, 16.0)), update)
    return received


def test_all_zero_gradients_give_zeros(tmp_path):
    model = model_of(tmp_path, "encoder", "bert", "lora")
    state = model.read()
    # a certain model: every drawn label is the first, and its gradient is exactly zero
    model.load(state.map(torch.zeros_like) + bias(state, [1e4, 0.0, 0.0]))
    fisher = client_fisher(
        model,
        federations.examples(3, language_model=False),
        FisherPlan(8, 4.0),
        who="client a",
        batch_size=2,
        pad=0,
        key=Key.root(0),
    )
    assert fisher.max_abs() == 0


def test_non_finite_gradients_name_the_client(tmp_path):
    model = model_of(tmp_path, "encoder", "bert", "lora")
    model.load(model.read().map(lambda v: torch.full_like(v, float("nan"))))
    with pytest.raises(TrainingError, match="client a"):
        client_fisher(
            model,
            federations.examples(3, language_model=False),
            FisherPlan(8, 4.0),
            who="client a",
            batch_size=2,
            pad=0,
            key=Key.root(0),
        )


def bias(state, values):
    return type(state)(
        state.spec,
        {n: torch.tensor(values) if n == "head.bias" else torch.zeros_like(v) for n, v in state.items()},
    )
