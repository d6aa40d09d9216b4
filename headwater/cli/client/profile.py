"""``headwater client profile``: what each method of a federation takes here, and which is picked."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headwater.bits import enter
from headwater.client.policy import Policy
from headwater.config.agent import AgentSettings, PolicySettings, load_agent
from headwater.config.load import LoadedFederation, load_federation
from headwater.errors import ConfigError, HeadwaterError, ModelError, TrainingError

if TYPE_CHECKING:
    from headwater.protocol.messages import MethodCost
    from headwater.training.context import TrainingContext

EXAMPLES = 1000
"""Of a client, where nobody says: they decide how many steps a round has."""


@dataclass(frozen=True)
class Row:
    """One method.

    Args:
        method: its name.
        kind: of training.
        predicted_bytes: peak of the process.
        measured_bytes: the same, of a fresh process that made two steps; 0 if it was not measured.
        step_s: seconds of a step; 0 likewise.
        passes: over a batch, of a step.
        bytes_up: of a round's update, without its envelope of some 500 bytes.
        batch_size: the largest that fits, at most the method's; 0 if none does.
        note: why there is no measurement, or why it is not offered.
        wanted_batch_size: the method's.
    """

    method: str
    kind: str
    predicted_bytes: int
    measured_bytes: int
    step_s: float
    passes: str
    bytes_up: int
    batch_size: int
    note: str = ""
    wanted_batch_size: int = 0


def profile(options: argparse.Namespace) -> int:
    """Print the table, or one JSON object."""
    agent, loaded = _files(options)
    enter(loaded.settings.federation.bits, own_process=options.own_process)  # before torch is imported

    from headwater.client.device.costs import has_library, method_costs, timed
    from headwater.client.device.memory import (
        available_memory,
        nominal_base,
        resident_base,
        return_freed_memory,
    )
    from headwater.config.assignment import AssignedByPlanner
    from headwater.process_memory import status_bytes
    from headwater.protocol.messages import DeviceProfile
    from headwater.strategies.planner import pick
    from headwater.training.context import TrainingContext

    if not loaded.settings.model.pretrained:
        raise ConfigError("headwater client profile", expected="a federation with a base model", got="vector")
    return_freed_memory()
    context = TrainingContext.open(loaded)
    simulated = None if agent is None else agent.file.simulated_memory_mb
    said = simulated if options.memory_mb is None else options.memory_mb
    if said is not None:
        memory = said << 20
    else:
        memory = available_memory()
        cap = None if agent is None else agent.file.policy.memory_mb
        memory = memory if cap is None else min(memory, cap << 20)
    if simulated is None:
        base, floor = resident_base(context), status_bytes("VmHWM")
    else:
        base, floor = nominal_base(context), 0
    costs = method_costs(context, loaded.settings.trainings, memory, base=base, floor=floor)
    rows = []
    for name, cost in costs.items():
        _say(f"measuring '{name}' in a process of its own …" if not options.no_measure else "")
        rows.append(_row(context, name, cost, not options.no_measure))
    _say("")
    policy = Policy(PolicySettings() if agent is None else agent.file.policy)
    for at, row in enumerate(rows):
        if not policy.allows(loaded.settings, row.method, options.examples, row.batch_size):
            rows[at] = replace(row, note="the owner's policy does not allow it")
        elif simulated is not None or has_library(loaded.settings.trainings[row.method]):
            continue
        elif not row.note:
            rows[at] = replace(row, note="its library is not installed here")
        del costs[row.method]
    by = loaded.settings.assignment
    limited = isinstance(by, AssignedByPlanner) and by.round_s is not None
    if limited and not options.no_measure:
        costs = timed(costs, _step_seconds(context, rows))
    device = DeviceProfile(memory, loaded.settings.federation.threads, costs)
    picked, reason = "", ""
    try:
        choice = pick(loaded.settings, device, examples=options.examples)
        picked, reason = choice.method, choice.reason
    except HeadwaterError as error:
        reason = str(error)
    if limited and options.no_measure:
        reason += " (whatever the time: nothing was measured)"
    if options.json:
        content = {"memory_bytes": memory, "methods": [asdict(row) for row in rows]}
        print(json.dumps({**content, "picked": picked, "reason": reason}, ensure_ascii=False))
    else:
        _table(rows, memory, picked, reason)
    return 0


def _files(options: argparse.Namespace) -> tuple[AgentSettings | None, LoadedFederation]:
    """The agent's file, if one was named, and the federation with the base model where it is here."""
    if options.config is None:
        raise ConfigError(
            "headwater client profile", expected="CONFIG, the agent's or a federation's file", got="nothing"
        )
    from headwater.config.model import VectorModel

    if options.federation is None:
        return None, load_federation(options.config, trackers=False)
    agent, loaded = load_agent(options.config), load_federation(options.federation, trackers=False)
    if agent.file.policy.threads is not None:
        federation = loaded.settings.federation
        fewer = federation.model_copy(update={"threads": min(federation.threads, agent.file.policy.threads)})
        loaded = LoadedFederation(loaded.settings.model_copy(update={"federation": fewer}), loaded.folder)
    model = loaded.settings.model
    if isinstance(model, VectorModel) or loaded.path(model.path).is_dir():
        return agent, loaded
    if model.sha256 is None:
        raise ModelError(
            f"{options.federation}: model.path",
            expected="a folder here, or model.sha256 to look for in the agent's models.folders",
            got=model.path,
        )
    from headwater.client.agent.models import LocalModels

    models = LocalModels(agent.model_folders, agent.file.models.allow, agent.state / "models.json")
    here = model.model_copy(update={"path": str(models.find(model.sha256))})
    return agent, LoadedFederation(loaded.settings.model_copy(update={"model": here}), loaded.folder)


def _step_seconds(context: TrainingContext, rows: list[Row]) -> Callable[[str, int], float]:
    """How long a step takes at a batch size: as in the table, or measured anew for a smaller batch."""
    from headwater.client.device.measure import Measured, measure

    table = {row.method: row for row in rows}

    def seconds(name: str, batch_size: int) -> float:
        row = table[name]
        found = Measured(row.measured_bytes, row.step_s, row.note)
        if batch_size != row.wanted_batch_size:
            found = measure(context.loaded, name, batch_size)
        if found.error:
            raise TrainingError(f"method {name}", expected="two steps", got=found.error)
        return found.step_s

    return seconds


def _row(context: TrainingContext, name: str, cost: MethodCost, measured: bool) -> Row:
    from headwater.client.device.measure import Measured, measure

    training = context.loaded.settings.trainings[name]
    found, wanted = Measured(), int(getattr(training, "batch_size", 1))
    if measured:
        found = measure(context.loaded, name, wanted)
    note = f"not measured: {found.error}" if found.error else ""
    return Row(
        name,
        training.kind,
        cost.peak_bytes,
        found.peak_bytes,
        found.step_s,
        training.passes_text(),
        bytes_up(context, name),
        cost.batch_size,
        note,
        wanted,
    )


def bytes_up(context: TrainingContext, name: str) -> int:
    """Of one update: a normal delta through the codec, or random coefficients of as many seeds."""
    import numpy as np
    import torch

    from headwater.client.device.trial import plan_of
    from headwater.compression.seed_update import encode_scalars
    from headwater.compression.table import codec_for
    from headwater.merging.coverage import covered
    from headwater.seeds.coefficients import SeedCoefficients
    from headwater.seeds.keys import Key
    from headwater.state import AdapterState
    from headwater.strategies.budget import codec_within
    from headwater.strategies.seeding import seed_plan

    settings, key = context.loaded.settings, Key.root(0)
    plan = plan_of(settings, context.spec, name)
    seeds = seed_plan(plan.training, 1)
    if seeds is not None:
        draw = key.numpy()
        named = np.arange(seeds.first, seeds.first + seeds.count)
        named = named if seeds.implied else np.sort(draw.choice(named, seeds.entries))
        values = np.rint(draw.normal(0, 4000, len(named))).astype(np.int64).clip(-32767, 32767)
        return len(encode_scalars(SeedCoefficients(seeds, named.astype(np.int64), values)).body)
    delta = torch.randn(context.spec.numel, generator=torch.Generator().manual_seed(key.seed())) * 1e-3
    mask = covered(context.spec, plan.tensors, plan.rank)
    if mask is not None:
        delta[~mask] = 0.0
    codec, method = plan.codec, settings.methods.get(name)
    if method is not None and method.max_bytes_up is not None:
        trained = context.spec if plan.tensors is None else context.spec.only(plan.tensors)
        fisher = settings.strategy.needs_fisher
        codec = codec_within(
            codec, trained, method.max_bytes_up, f"methods.{name}", seeds=None, fisher=fisher
        )
    payload = codec_for(codec).encode(AdapterState.from_vector(context.spec, delta), key=key)
    return len(payload.body)


def _table(rows: list[Row], memory: int, picked: str, reason: str) -> None:
    from rich.text import Text

    from headwater.cli.fitting import FittingTable
    from headwater.cli.tables import show
    from headwater.text import NOTHING, human_bytes, human_seconds, plain

    table = FittingTable()
    for title, weight in (("method", 0), ("kind", 7)):
        table.column(title, weight)
    for title, weight in (
        ("predicted", 9), ("measured", 8), ("batch", 6), ("a step", 5), ("passes", 3), ("up", 4),
    ):  # fmt: skip
        table.column(title, weight, right=True)
    for row in rows:
        measured = human_bytes(row.measured_bytes) if row.measured_bytes else NOTHING
        cells = (
            Text(plain(row.method, 60), style="bold green" if row.method == picked else ""),
            row.kind, human_bytes(row.predicted_bytes), measured, f"{row.batch_size:,}",
            human_seconds(row.step_s) if row.step_s else NOTHING, row.passes, human_bytes(row.bytes_up),
        )  # fmt: skip
        table.row(cells)
    show(table, sys.stdout)
    for row in rows:
        if row.note:
            print(f"{row.method}: {plain(row.note)}")
    print(
        f"\nOf {human_bytes(memory)}, the planner picks: {plain(reason, 1000)}" if picked else f"\n{reason}"
    )


def _say(text: str) -> None:
    """A line of progress, in place; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def positive_number(text: str) -> int:
    """For argparse, which turns a ValueError into a message with this name."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only ``profile`` has."""
    parser.add_argument(
        "--federation", type=Path, metavar="FILE", help="profile: the federation's file, beside the agent's"
    )
    parser.add_argument(
        "--memory-mb", type=positive_number, metavar="N", help="profile: as if a training had so many MiB"
    )
    parser.add_argument("--no-measure", action="store_true", help="profile: only predict")
    parser.add_argument(
        "--examples",
        type=positive_number,
        default=EXAMPLES,
        metavar="N",
        help="profile: training examples of the client",
    )
    parser.add_argument("--json", action="store_true", help="profile: one JSON object")
