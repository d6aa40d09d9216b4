"""Flower's SecAgg+ for ``benchmarks/masks.py``, over a grid that calls each client's mod: :func:`flower`."""

# ruff: noqa: ANN401 - what Flower hands over has no common type
from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from headwater.flower import assume_task_identity
from headwater.security.secagg.bounds import GroupBounds

EXAMPLES = 1000
SPREAD = 1e-3
"""Of LoRA's deltas."""


class Clock:
    """CPU seconds by who worked."""

    def __init__(self) -> None:
        self.seconds = {"clients": 0.0, "server": 0.0}

    @contextmanager
    def __call__(self, who: str) -> Iterator[None]:
        started = time.process_time()
        yield
        self.seconds[who] += time.process_time() - started


def row(clock: Clock, clients: int, up: int, down: int) -> dict[str, Any]:
    """Figures a client."""
    return {
        "client_cpu_ms": 1000 * clock.seconds["clients"] / clients,
        "server_cpu_ms_a_client": 1000 * clock.seconds["server"] / clients,
        "bytes_up_a_client": up / clients,
        "bytes_down_a_client": down / clients,
    }


def flower(size: int, count: int, dropped: int, bounds: GroupBounds) -> dict[str, Any]:
    """Flower's workflow and mod."""
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
    from flwr.common import FitIns, FitRes, ndarrays_to_parameters
    from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Stage
    from flwr.common.secure_aggregation.secaggplus_constants import Key as Names
    from flwr.common.typing import Code, Status
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server.compat.legacy_context import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
    from flwr.server.workflow.constant import Key as WorkflowKey

    assume_task_identity(run_id=1, node_id=1)
    clock, traffic, draw = Clock(), [0, 0], np.random.default_rng(0)
    vectors = {n: (SPREAD * draw.standard_normal(size)).astype(np.float32) for n in range(2, count + 2)}
    contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in vectors}
    gone = set(list(vectors)[:dropped])

    def weight(record: Any) -> int:
        total = sum(len(array.data) for arrays in record.array_records.values() for array in arrays.values())
        for config in record.config_records.values():
            for value in config.values():
                values = value if isinstance(value, list) else [value]
                total += sum(len(v) if isinstance(v, bytes | str) else 8 for v in values)
        return total

    def train(message: Any, context: Any) -> Any:
        parameters = ndarrays_to_parameters([vectors[message.metadata.dst_node_id]])
        result = FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {})
        return Message(compat.fitres_to_recorddict(result, False), reply_to=message)

    class Calls:
        inside = 0.0
        aside = 0.0

        def send_and_receive(self, sent: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            replies, started = [], time.process_time()
            for message in sent:
                node, about = message.metadata.dst_node_id, message.metadata
                content = copy.deepcopy(message.content)  # a link would: the mod takes entries out
                traffic[1] += weight(content)
                stage = content.config_records[RECORD_KEY_CONFIGS][Names.STAGE]
                if node in gone and stage == Stage.COLLECT_MASKED_VECTORS:
                    continue
                copied = Message(content, node, about.message_type, group_id=about.group_id)
                began = time.process_time()
                reply = secaggplus_mod(copied, contexts[node], train)
                self.inside += time.process_time() - began
                traffic[0] += weight(reply.content)
                replies.append(reply)
            self.aside += time.process_time() - started
            return replies

    class Proxy:
        def __init__(self, node: int) -> None:
            self.node_id = node

    class AllOfThem:
        def configure_fit(self, number: int, parameters: Any, manager: Any) -> list[Any]:
            empty = ndarrays_to_parameters([])
            return [(Proxy(node), FitIns(empty, {})) for node in vectors]

        def aggregate_fit(self, number: int, results: list[Any], failures: list[Any]) -> tuple[Any, Any]:
            self.result = results[0][1].parameters
            return None, {}

    class Manager:
        def num_available(self) -> int:
            return count

    played: Any = (AllOfThem(), Manager())
    legacy = LegacyContext(Context(1, 1, {}, RecordDict(), {}), None, *played)
    legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    legacy.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(
        ndarrays_to_parameters([]), True
    )
    shares = min(bounds.neighbours + 1, count)
    workflow = SecAggPlusWorkflow(shares, bounds.threshold, max_weight=float(EXAMPLES))
    calls: Any = Calls()
    started = time.process_time()
    workflow(calls, legacy)
    clock.seconds["clients"] = calls.inside
    clock.seconds["server"] = time.process_time() - started - calls.aside
    found = row(clock, count, traffic[0], traffic[1])
    found["finished"] = hasattr(legacy.strategy, "result")
    return found
