"""HeadwaterStrategy and headwater_mod over a grid in memory, against FedAvg and the rules themselves."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from headwater.config.strategy import TiesStrategy
from headwater.errors import ConfigError, DecodeError, EmptyRound, HeadwaterError, SpecMismatch
from headwater.flower_strategy import HeadwaterStrategy, headwater_mod
from headwater.flower_strategy.settings import ASKED
from headwater.flower_strategy.strategy import BYTES_UP, LEFT_OUT
from headwater.merging.plan import MergePlan, Update
from headwater.state import AdapterState, StateSpec, TensorSpec
from headwater.strategies.rules import rule_for
from tests.support.app_grid import AppGrid

SHAPES = {"layer.weight": (40, 30), "layer.bias": (30,), "scale": ()}
EXAMPLES = {2: 5, 3: 17, 4: 40}
QUIET = {"fraction_evaluate": 0.0}


def initial(dtype="float32") -> ArrayRecord:
    random = np.random.default_rng(0)
    return ArrayRecord({n: Array(random.normal(size=s).astype(dtype)) for n, s in SHAPES.items()})


def step(node: int, number: int, dtype="float32") -> dict[str, np.ndarray]:
    random = np.random.default_rng([node, number])
    return {n: np.asarray(0.1 * random.normal(size=s), dtype=dtype) for n, s in SHAPES.items()}


def app(*mods, change=lambda node, content: None, learn=step) -> ClientApp:
    """Each client's training adds numbers of its own; ``change`` spoils its reply."""
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(msg, context):
        arrays = msg.content["arrays"]
        calls = context.state.setdefault("calls", MetricRecord({"n": 0}))
        calls["n"] += 1
        delta = learn(context.node_id, calls["n"], next(iter(arrays.values())).dtype)
        found = ArrayRecord({n: Array(np.asarray(a.numpy() + delta[n])) for n, a in arrays.items()})
        metrics = MetricRecord({"num-examples": EXAMPLES[context.node_id], "loss": 1.0 / context.node_id})
        content = RecordDict({"arrays": found, "metrics": metrics})
        change(context.node_id, content)
        return Message(content, reply_to=msg)

    return made


def grid_of(client: ClientApp) -> AppGrid:
    return AppGrid(lambda: client, [{}] * 3)


def started(strategy, client, rounds=1, arrays=None):
    grid = grid_of(client)
    return strategy.start(grid, arrays or initial(), num_rounds=rounds), grid


def values(record: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in record.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_mean_of_dense_arrays_is_fedavgs(dtype):
    theirs, _ = started(FedAvg(**QUIET), app(), 3, initial(dtype))
    ours, _ = started(HeadwaterStrategy(**QUIET), app(), 3, initial(dtype))
    mine, wanted = values(ours.arrays), values(theirs.arrays)
    # FedAvg rounds to float16 at every step of its sum
    close = {"float16": 1e-2, "float32": 1e-6, "float64": 1e-6}[dtype]
    for name in SHAPES:
        assert (mine[name].dtype, mine[name].shape) == (np.dtype(dtype), SHAPES[name])
        np.testing.assert_allclose(mine[name], wanted[name], atol=close)
    for number, metrics in theirs.train_metrics_clientapp.items():
        mine = dict(ours.train_metrics_clientapp[number])
        assert mine.pop(LEFT_OUT) == 0
        assert mine.pop(BYTES_UP) > 3 * 1231 * np.dtype(dtype).itemsize
        assert mine == pytest.approx(dict(metrics))


def test_ties_is_the_rule_itself():
    spec = StateSpec.of(TensorSpec(n, s, "vector") for n, s in SHAPES.items())
    start = {n: a.numpy() for n, a in initial().items()}

    def delta(node):
        # as float32 rounds it on both ways: what came in is taken from what went out
        got = {n: torch.from_numpy(np.asarray((start[n] + v) - start[n])) for n, v in step(node, 1).items()}
        return AdapterState(spec, got)

    rule = rule_for(TiesStrategy(kind="ties", density=0.3))
    acc = rule.init(MergePlan(spec, {str(n): e for n, e in EXAMPLES.items()}, 16.0))
    for node, examples in EXAMPLES.items():
        acc = rule.add(acc, Update(str(node), 1, delta(node), examples))
    merged = rule.finalize(acc).delta
    found, _ = started(HeadwaterStrategy({"kind": "ties", "density": 0.3}, **QUIET), app())
    for name, value in values(found.arrays).items():
        np.testing.assert_array_equal(value, start[name] + merged[name].numpy())


@pytest.mark.parametrize("rule", ["mean", "ties", "median", "dare_ties", "trimmed_mean", "model_stock"])
def test_any_order_of_replies_gives_the_same_bits(rule):
    found = set()
    for order in itertools.permutations(range(3)):
        strategy = HeadwaterStrategy(rule, "compeft", **QUIET)
        grid = grid_of(app(headwater_mod))
        asked = strategy.configure_train(1, initial(), ConfigRecord(), grid)
        replies = sorted(grid.send_and_receive(asked), key=lambda reply: reply.metadata.src_node_id)
        arrays, _ = strategy.aggregate_train(1, [replies[i] for i in order])
        found.add(b"".join(array.data for array in arrays.values()))
    assert len(found) == 1


@pytest.mark.parametrize("codec", ["compeft", {"kind": "topk", "density": 0.1}, "sign", "qsgd", "randk"])
def test_a_codec_sends_less(codec):
    dense, _ = started(HeadwaterStrategy(**QUIET), app())
    small, grid = started(HeadwaterStrategy("mean", codec, **QUIET), app(headwater_mod))
    bytes_of = [r.train_metrics_clientapp[1][BYTES_UP] for r in (small, dense)]
    assert bytes_of[0] < bytes_of[1] / 3
    (record,) = grid.sent[0][1].array_records.values()
    assert bytes_of[0] == sum(len(r.array_records["arrays"]["headwater"].data) for _, r in grid.sent)
    assert set(record) == {"headwater"}


def test_what_a_codec_drops_is_sent_later():
    """Law: what arrived and what is held back is what was learned; of equal steps next to nothing is left."""

    def learn(node, number, dtype):
        return step(7, 7, dtype)

    clients = app(headwater_mod, learn=learn)
    table = {"kind": "compeft", "density": 0.1}
    start, errors = values(initial())["layer.weight"], []
    for feedback in (True, False):
        strategy = HeadwaterStrategy("mean", {**table, "error_feedback": feedback}, **QUIET)
        found, _ = started(strategy, clients, 20)
        arrived = values(found.arrays)["layer.weight"] - start
        errors.append(np.abs(arrived / 20 - step(7, 7)["layer.weight"]).mean())
    assert errors[0] < errors[1] / 3


def test_a_second_start_begins_anew():
    """On nodes that still hold back what the first one left."""
    strategy = HeadwaterStrategy({"kind": "mean", "server_momentum": 0.9}, "compeft", **QUIET)
    grid = grid_of(app(headwater_mod, learn=lambda node, number, dtype: step(node, 1, dtype)))
    first, second = (values(strategy.start(grid, initial(), num_rounds=2).arrays) for _ in range(2))
    for name in SHAPES:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_node_counts_once():
    strategy, grid = HeadwaterStrategy(**QUIET), grid_of(app())
    replies = list(grid.send_and_receive(strategy.configure_train(1, initial(), ConfigRecord(), grid)))
    with pytest.raises(DecodeError, match="one reply, got two"):
        strategy.aggregate_train(1, [*replies, replies[0]])


def nan(node, content):
    if node == 3:
        content["arrays"]["scale"] = Array(np.asarray(np.nan, dtype=np.float32))


def shape(node, content):
    if node == 3:
        content["arrays"]["layer.bias"] = Array(np.zeros(29, np.float32))


def missing(node, content):
    if node == 3:
        del content["arrays"]["scale"]


def uncounted(node, content):
    if node == 3:
        del content["metrics"]["num-examples"]


def fractional(node, content):
    if node == 3:
        content["metrics"]["num-examples"] = 2.5


def other_metrics(node, content):
    if node == 3:
        content["metrics"]["more"] = 1.0


def two_records(node, content):
    if node == 3:
        content["others"] = ArrayRecord()


def raises(node, content):
    if node == 3:
        raise RuntimeError("no more memory")


def far(node, content):
    if node == 3:
        content["arrays"]["scale"] = Array(np.asarray(1e9, dtype=np.float32))


BAD = {
    nan: "finite",
    shape: r"layer\.bias \[30\], got layer\.bias \[29\]",
    missing: "expected scale",
    uncounted: "num-examples",
    fractional: "num-examples",
    other_metrics: "more",
    two_records: "one ArrayRecord",
    raises: "no more memory",
}


@pytest.mark.parametrize("change", BAD, ids=lambda c: c.__name__)
@pytest.mark.parametrize("codec", ["dense", "compeft"])
def test_a_bad_reply_is_loud(change, codec, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(
        "headwater.flower_strategy.strategy._LOG.error", lambda text, error: told.append(text % error)
    )
    mods = [] if codec == "dense" else [headwater_mod]
    with pytest.raises(HeadwaterError, match=BAD[change]) as caught:
        started(HeadwaterStrategy("mean", codec, **QUIET), app(*mods, change=change))
    assert "node" in str(caught.value)
    good, _ = started(HeadwaterStrategy("mean", codec, skip_bad=True, **QUIET), app(*mods, change=change))
    assert good.train_metrics_clientapp[1][LEFT_OUT] == 1
    assert np.isfinite(good.arrays["scale"].numpy())
    assert any("left out: node" in line for line in told)


def test_the_first_node_does_not_say_what_the_others_must_measure():
    """Metrics are those of most nodes: one with others is left out, whichever its number is."""

    def other(node, content):
        if node == min(EXAMPLES):
            content["metrics"]["more"] = 1.0

    found, _ = started(HeadwaterStrategy(skip_bad=True, **QUIET), app(change=other))
    assert found.train_metrics_clientapp[1][LEFT_OUT] == 1
    assert "more" not in found.train_metrics_clientapp[1]
    with pytest.raises(DecodeError, match=rf"node {min(EXAMPLES)}.*more"):
        started(HeadwaterStrategy(**QUIET), app(change=other))


def test_a_value_beyond_the_bound_is_refused():
    with pytest.raises(HeadwaterError, match=r"value|bound"):
        started(HeadwaterStrategy(**QUIET), app(change=far))


def test_no_reply_at_all_is_the_end():
    def all_raise(node, content):
        raise RuntimeError("gone")

    with pytest.raises(EmptyRound, match="none of 3"):
        started(HeadwaterStrategy(skip_bad=True, **QUIET), app(change=all_raise))


def test_nothing_to_train_on_is_no_failure():
    def nothing(node, content):
        content["metrics"]["num-examples"] = 0 if node == 3 else 5

    found, _ = started(HeadwaterStrategy(**QUIET), app(change=nothing))
    assert found.train_metrics_clientapp[1]["loss"] == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_node_without_the_mod_is_told_so():
    with pytest.raises(DecodeError, match=r"got plain arrays.*mods=\[headwater_mod\]"):
        started(HeadwaterStrategy("mean", "compeft", **QUIET), app())


def test_bytes_that_are_no_payload_are_refused():
    def spoil(msg, ctxt, call_next):
        reply = headwater_mod(msg, ctxt, call_next)
        if ctxt.node_id == 3:
            array = reply.content["arrays"]["headwater"]
            reply.content["arrays"] = ArrayRecord(
                {"headwater": Array("uint8", (9,), array.stype, b"\0junk\xff123")}
            )
        return reply

    with pytest.raises(HeadwaterError):
        started(HeadwaterStrategy("mean", "compeft", **QUIET), app(spoil))


def test_integers_are_refused_before_anybody_works():
    arrays = initial()
    arrays["steps"] = Array(np.array([3]))
    with pytest.raises(SpecMismatch, match=r"initial_arrays, array 'steps'.*int64"):
        started(HeadwaterStrategy(**QUIET), app(), arrays=arrays)


@pytest.mark.parametrize(
    ("rule", "codec", "said"),
    [
        ("fisher", "dense", "Fisher"),
        ("nonsense", "dense", "nonsense"),
        ({"kind": "ties", "density": 2}, "dense", "density"),
        ({"kind": "mean", "control_variates": True}, "dense", "control_variates"),
        ({"kind": "mean", "space": "product"}, "dense", "space"),
        ({"kind": "mean", "norm_bound": 1.0}, "dense", "norm_bound"),
        ("mean", {"kind": "compeft", "error_feedback": "ef21"}, "ef14"),
        ("mean", "zip", "zip"),
    ],
)
def test_settings_that_cannot_be_are_refused(rule, codec, said):
    with pytest.raises(ConfigError, match=said):
        HeadwaterStrategy(rule, codec)


def test_messages_of_others_pass_through_the_mod():
    replies = []
    for mods in ([headwater_mod], []):
        grid = grid_of(app(*mods))
        asked = FedAvg(**QUIET).configure_train(1, initial(), ConfigRecord(), grid)
        found = sorted(grid.send_and_receive(asked), key=lambda reply: reply.metadata.src_node_id)
        replies.append([{n: a.data for n, a in reply.content["arrays"].items()} for reply in found])
    assert replies[0] == replies[1]


@pytest.mark.parametrize(
    "text", ["{}", "nonsense", json.dumps({"codec": {"kind": "x"}, "series": "", "number": 1})]
)
def test_the_mod_refuses_what_no_strategy_asks(text):
    def spoil(msg, ctxt, call_next):
        msg.content["config"][ASKED] = text
        return headwater_mod(msg, ctxt, call_next)

    with pytest.raises(DecodeError, match="same minor version"):
        started(HeadwaterStrategy("mean", "compeft", **QUIET), app(spoil))
