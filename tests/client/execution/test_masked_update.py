"""What a device makes integers of is what its server, which sees none of it, divides by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headwater.client.execution.masked_update import to_be_masked
from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import MemoryStore
from headwater.client.masking.held_vector import HeldVector
from headwater.compression.dense import DenseCodec
from headwater.config import load_federation
from headwater.merging.plan import Update
from headwater.proto.wire import decode_reply, encode_reply
from headwater.protocol.messages import EncodedUpdate, TrainRequest
from headwater.seeds.keys import Key
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from tests.support.runs import tiny_federation
from tests.support.tiny_models import tiny_masked

EACH_ROW = {"noise_multiplier": 1.0, "delta": 1e-3}


@pytest.mark.parametrize(
    ("tables", "counted"),
    [
        ({}, "examples"),
        ({"strategy": {"kind": "mean", "weighting": "targets"}}, "targets"),
        ({"training": {"max_grad_norm": 1.0, "privacy": EACH_ROW}, "evaluation": {"clients": False}}, "rows"),
    ],
    ids=["examples", "targets", "rows"],
)
def test_a_device_weighs_its_update_as_the_plan_of_its_server(
    tmp_path: Path, tables: dict[str, Any], counted: str
) -> None:
    """Else the server would divide by other weights than are in the sum, and nothing would tell."""
    data = {"kind": "masked-lm", "hidden": 0.5, "labels": None, "max_tokens": 5}  # a row has some windows
    file = tiny_federation(
        tmp_path / "fed",
        data=data,
        codec={"up": {"kind": "dense"}},
        model={"kind": "masked-lm", "path": "masked"},
        privacy={"masks": True},
        cohort={"min_clients": 3},
        **tables,
    )
    tiny_masked(tmp_path / "fed" / "masked")
    runtime = replace(ClientRuntime.open(load_federation(file)), simulated=False)
    settings, spec = runtime.context.loaded.settings, runtime.context.spec
    strategy = FederatedStrategy(settings)
    profiles = {name: runtime.profile(name) for name in runtime.data.clients}
    start = runtime.context.initial_state()
    plan = strategy.plan(strategy.init(start), profiles, key=Key.root(5))
    weights = plan.merge.weights
    windows = {name: len(runtime.data.client(name).train) for name in weights}
    if counted != "examples":
        assert weights["ann"] != windows["ann"], "the test tells nothing"
    delta = AdapterState.from_vector(spec, torch.linspace(-1, 1, spec.numel))
    task, codec = plan.clients["ann"], DenseCodec("fp32")
    about = runtime.run, 1, "ann", spec.fingerprint(), start.sha256()
    state = codec.encode(start, key=Key.root(1))
    request = TrainRequest(*about, state, 0, task, masked_weight=plan.merge.total_weight)
    sent = EncodedUpdate(*about, codec.encode(delta, key=Key.root(1)), {}, 1, 1, {})
    raw = to_be_masked(request, encode_reply(sent), MemoryStore(), runtime)
    reply = decode_reply(raw, max_bytes=2**24)
    assert isinstance(reply, EncodedUpdate)
    rule = strategy.aggregator(plan, start)
    whole = rule.to_sums(rule.add(rule.init(plan.merge), Update("ann", 1, delta, 1, 1)))
    for held, visible in zip(HeldVector.from_bytes(reply.delta.body).values, whole, strict=True):
        assert np.array_equal(held, visible)
