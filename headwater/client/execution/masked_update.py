"""An update of a run under masks as the integers that are summed: :func:`to_be_masked`.

The device does what the server does with an update that it can see: it decodes what it has encoded, and adds
it to an accumulator of the rule, by itself. So the masked sum has the bits of the plain one.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.client.execution.runtime import ClientRuntime
from headwater.client.execution.store import ClientStore
from headwater.client.masking.held_vector import HELD, HeldVector
from headwater.compression.logquant import LogQuantCodec
from headwater.compression.seed_update import decode_scalars
from headwater.compression.table import codec_for
from headwater.errors import DecodeError
from headwater.merging.plan import Update
from headwater.proto.wire import decode_reply, encode_reply
from headwater.protocol.messages import EncodedUpdate, Payload, TrainRequest
from headwater.seeds.coefficients import SeedCoefficients
from headwater.state import AdapterState
from headwater.strategies.federated import FederatedStrategy
from headwater.strategies.masked_task import common_digest, masked_part, plan_digest
from headwater.strategies.strategy import RoundPlan


def to_be_masked(request: TrainRequest, data: bytes, store: ClientStore, runtime: ClientRuntime) -> bytes:
    """The reply of a training, for the device's agent: under masks with a vector in place of the update.

    A simulation's reply stays as it is: its masks are in the server's process.

    Raises:
        DecodeError: the server asks for a masked update in a run without masks, or for one that is not.
        ConfigError: the update cannot be summed.
    """
    settings = runtime.context.loaded.settings
    if runtime.simulated or not (settings.privacy.masks or request.masked_weight):
        return data
    if not (settings.privacy.masks and request.masked_weight):
        raise DecodeError(
            f"client {request.client}", expected=f"a task with privacy.masks {settings.privacy.masks}",
            got="another", hint="Update the server's software.",
        )  # fmt: skip
    reply = decode_reply(data, max_bytes=len(data))
    if not isinstance(reply, EncodedUpdate):
        return data
    plan, spec = request.plan, runtime.context.spec
    counted = runtime.counted(request.client)
    merge = masked_part(settings, spec, request.client, plan, counted, request.masked_weight, runtime.root)
    base = runtime.state(request, store)
    rule = FederatedStrategy(settings).aggregator(RoundPlan(request.round, {}, merge), base)
    accumulated = rule.add(rule.init(merge), _decoded(request, reply, runtime))
    common = common_digest(request.state_sha256, merge)
    vector = HeldVector(common, plan_digest(plan), rule.to_sums(accumulated))
    return encode_reply(replace(reply, delta=Payload(HELD, vector.to_bytes()), statistics={}))


def _decoded(request: TrainRequest, reply: EncodedUpdate, runtime: ClientRuntime) -> Update:
    """The update as a server decodes it."""
    plan, spec, fisher = request.plan, runtime.context.spec, LogQuantCodec()
    delta: AdapterState | SeedCoefficients
    if plan.seeds is not None:
        delta = decode_scalars(reply.delta, plan.seeds)
    else:
        delta = codec_for(plan.codec).decode(reply.delta, spec)
    statistics = {name: fisher.decode(values, spec) for name, values in reply.statistics.items()}
    return Update(request.client, reply.round, delta, reply.examples, reply.steps, statistics, reply.metrics)
