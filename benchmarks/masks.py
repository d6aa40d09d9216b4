"""Secure aggregation beside plain sums and Flower's SecAgg+, to ``results/masks.json`` and a picture.

One round of a mean over float32 vectors, without training: CPU seconds of clients and server and bytes of all
messages. *plain*: each client's dense float32 update, decoded and folded. *masked*: every message of
``headwater.security.secagg``, encoded and decoded. *flower*: ``SecAggPlusWorkflow`` and ``secaggplus_mod`` as
they are, over a grid that calls the mod of each client, with as many neighbours and the same threshold. It
clips to ±8 in 2^22 levels and sends int64 arrays; ours sends at most 47 bits a value, and loses nothing.
*trained*: rounds of a simulated federation that trains MiniLM's LoRA, with masks and without, nobody drops
out. Drop-outs happen before vectors are sent. All in one process, one thread; CPU time, since machines are
shared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from masks_flower import EXAMPLES, SPREAD, Clock, flower, row
from picture import bars

from headwater.compression.dense import DenseCodec
from headwater.config import load_federation
from headwater.merging.mean import MeanAggregator
from headwater.merging.plan import MASKED_BITS, MergePlan, Update
from headwater.security.secagg import messages
from headwater.security.secagg.bounds import Promise, choose
from headwater.security.secagg.group import Advert, SumRound
from headwater.security.secagg.server import MaskingServer
from headwater.seeds.keys import Key
from headwater.server.events import Event, RoundEnded, RoundStarted
from headwater.server.storage.run_folder import RunFolder
from headwater.simulation.masking import SimulatedMasking
from headwater.simulation.simulate import simulate
from headwater.state import AdapterState, StateSpec, TensorSpec

RESULTS = Path(__file__).parent / "results" / "masks.json"
PICTURE = RESULTS.with_suffix(".svg")
TRAINED = Path(__file__).parents[1] / "examples" / "sentiment" / "federation.toml"
CHANGES = (
    'data.partition={kind="iid", clients=100}', "federation.rounds=1", "evaluation.every=0",
    'codec={up={kind="dense"}, down={kind="dense"}}', "privacy.mask_dropouts=0.1", "cohort.min_clients=3",
    "baselines.majority=false", "baselines.probe=false", "baselines.alone=false",
)  # fmt: skip
"""Of that example: a hundred owners, dense updates of 111,362 values."""


def updates(spec: StateSpec, names: list[str]) -> dict[str, AdapterState]:
    """Deltas of the size that LoRA's are."""
    draw = np.random.default_rng(0)
    return {
        name: AdapterState.from_vector(
            spec, torch.from_numpy((SPREAD * draw.standard_normal(spec.numel)).astype(np.float32))
        )
        for name in names
    }


def plain(plan: MergePlan, deltas: dict[str, AdapterState], left: list[str]) -> dict[str, Any]:
    """Without masks."""
    clock, rule, codec, sent = Clock(), MeanAggregator(), DenseCodec("fp32"), 0
    acc = rule.init(plan)
    for name in left:
        with clock("clients"):
            payload = codec.encode(deltas[name], key=Key.root(0))
        sent += len(payload.body)
        with clock("server"):
            acc = rule.add(acc, Update(name, 1, codec.decode(payload, plan.spec), examples=EXAMPLES))
    with clock("server"):
        merged = rule.finalize(acc)
    return {**row(clock, len(plan.weights), sent, 0), "result": merged.delta.sha256()}


def masked(
    plan: MergePlan, deltas: dict[str, AdapterState], left: list[str], promise: Promise
) -> dict[str, Any]:
    """Every message of the protocol."""
    clock, rule, names = Clock(), MeanAggregator(), tuple(sorted(plan.weights))
    up = down = 0
    sum_round = SumRound("bench", 1, os.urandom(16), names, rule.sum_layout(plan), promise)
    masking = SimulatedMasking()
    enrolled = masking.enrolled(names)
    with clock("server"):
        server = MaskingServer(sum_round, enrolled)
    with clock("clients"):
        sides = {name: masking.client(sum_round, name, enrolled) for name in names}
        adverts = {name: side.advertise().to_bytes() for name, side in sides.items()}
    up += sum(map(len, adverts.values()))
    with clock("server"):
        for name, data in adverts.items():
            server.take_advert(name, Advert.from_bytes(data))
        told = messages.dump_group(server.close_adverts())
    down += len(told) * len(names)
    shares = {}
    with clock("clients"):
        for name, side in sides.items():
            shares[name] = messages.dump_rows(side.share(messages.load_group(told)))
    up += sum(map(len, shares.values()))
    with clock("server"):
        for name, data in shares.items():
            server.take_shares(name, messages.load_rows(data, messages.SEALED_BYTES, len(names)))
        deliveries = {n: messages.dump_delivery(d) for n, d in server.close_shares().items()}
    down += sum(map(len, deliveries.values()))
    for name in left:
        with clock("clients"):
            own = rule.init(plan.part([name]))
            own = rule.add(own, Update(name, 1, deltas[name], examples=EXAMPLES))
            delivery = messages.load_delivery(deliveries[name], len(names))
            data = sides[name].mask(delivery, rule.to_sums(own))
        up += len(data)
        with clock("server"):
            server.take_masked(name, data)
    with clock("server"):
        server.close_masked()
        flags = messages.dump_flags(server.survivors)
    for name in left:
        with clock("clients"):
            signature = sides[name].sign_list(messages.load_flags(flags, len(names)))
        up, down = up + len(signature), down + len(flags)
        with clock("server"):
            server.take_signature(name, signature)
    with clock("server"):
        certificate = messages.dump_rows(server.close_signatures())
    for name in left:
        with clock("clients"):
            reveal = sides[name].reveal(messages.load_signatures(certificate, len(names)))
            data = messages.dump_reveal(reveal)
        up, down = up + len(data), down + len(certificate)
        with clock("server"):
            server.take_reveal(name, messages.load_reveal(data, len(names)))
    with clock("server"):
        found = server.finish()
        acc = rule.from_sums(plan, found.names, found.values)
        rule.require_sound(acc)
        merged = rule.finalize(acc)
    return {**row(clock, len(names), up, down), "result": merged.delta.sha256()}


def trial(count: int, size: int, dropouts: float, stated: float, *, beside: bool) -> dict[str, Any]:
    """One shape."""
    promise = Promise(stated, 0.1)
    names = [f"client-{i:04d}" for i in range(count)]
    spec = StateSpec.of([TensorSpec("values", (size,), "head")])
    plan = MergePlan(spec, dict.fromkeys(names, EXAMPLES), 16.0, sum_bits=MASKED_BITS)
    deltas, dropped = updates(spec, names), int(dropouts * count)
    left, bounds = names[dropped:], choose(count, promise)
    found: dict[str, Any] = {
        "clients": count, "values": size, "dropouts": dropouts, "stated": stated,
        "neighbours": bounds.neighbours, "threshold": bounds.threshold, "load": os.getloadavg()[0],
        "plain": plain(plan, deltas, left), "masked": masked(plan, deltas, left, promise),
    }  # fmt: skip
    found["same_bits"] = found["plain"].pop("result") == found["masked"].pop("result")
    found["bytes_over_int32"] = found["masked"]["bytes_up_a_client"] * count / (4 * size * len(left))
    if beside:
        found["flower"] = flower(size, count, dropped, bounds)
        key = "server_cpu_ms_a_client"
        found["server_over_flower"] = found["masked"][key] / found["flower"][key]
    return found


def trained(masks: bool) -> list[float]:
    """CPU seconds of each round of a simulation that trains."""
    loaded = load_federation(TRAINED, [*CHANGES, f"privacy.masks={str(masks).lower()}"])
    seconds, started = list[float](), 0.0

    def watch(event: Event) -> None:
        nonlocal started
        if isinstance(event, RoundStarted):
            started = time.process_time()
        elif isinstance(event, RoundEnded) and event.round:
            seconds.append(time.process_time() - started)

    with tempfile.TemporaryDirectory() as home:
        simulate(
            loaded, RunFolder.create(Path(home) / "run", loaded, {"engine": "inprocess"}), observer=watch
        )
    return seconds


def draw(rows: list[dict[str, Any]]) -> str:
    """CPU of a client and of the server, with one in ten dropped out, where there is something beside it."""
    values = {}
    for found in (found for found in rows if found["dropouts"] == 0.1 and "flower" in found):
        for who, name in (("client", "client_cpu_ms"), ("server", "server_cpu_ms_a_client")):
            for whose, what in (("masked", "Headwater"), ("flower", "SecAgg+")):
                values[f"{found['clients']}, {who}, {what}"] = [found[whose][name]]
    return bars("CPU ms a client: masked sums of 100,000 values", values)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--flower-up-to", type=int, default=100, help="its clients take a second of CPU each")
    parser.add_argument("--parts", nargs="+", choices=("sums", "trained"), default=["sums", "trained"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    held = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    held["python"] = platform.python_version()
    shapes = [(count, dropouts) for count in arguments.clients for dropouts in arguments.dropouts]
    if "trained" in arguments.parts:
        found = {"load": os.getloadavg()[0], "plain_cpu_s": trained(False), "masked_cpu_s": trained(True)}
        held["trained"] = found
        print(json.dumps(found))
    for count, dropouts in shapes if "sums" in arguments.parts else ():
        stated, beside = 0.3 if dropouts > 0.1 else 0.1, count <= arguments.flower_up_to
        found = trial(count, arguments.values, dropouts, stated, beside=beside)
        print(json.dumps(found), flush=True)
        same = ("clients", "values", "dropouts", "stated")
        held["rows"] = [old for old in held["rows"] if any(old[key] != found[key] for key in same)] + [found]
        RESULTS.write_text(json.dumps(held, indent=1) + "\n")
    RESULTS.write_text(json.dumps(held, indent=1) + "\n")
    PICTURE.write_text(draw(held["rows"]))


if __name__ == "__main__":
    main()
