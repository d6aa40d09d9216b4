"""The clients of ``cohorts.py`` without Headwater: PyTorch, PEFT and a loop. Shared by all peers.

As a program it is one of them: ``python cohort_plain.py flower|pfl MODEL CLIENTS ROUNDS`` prints the seconds
of its rounds as JSON, last line of its output.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from functools import cache

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel

BATCH, TOKENS, STEPS, CLASSES = 2, 16, 4, 3
Rows = tuple[Tensor, Tensor]


class Classifier(nn.Module):
    """A mean over the tokens, and a linear head."""

    def __init__(self, path: str) -> None:
        super().__init__()
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"])
        self.base = get_peft_model(AutoModel.from_pretrained(path), config)
        self.head = nn.Linear(self.base.config.hidden_size, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.base(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        return self.head(hidden.mean(1))

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


@cache
def model(path: str) -> Classifier:
    """One a process, on one thread."""
    torch.set_num_threads(1)
    return Classifier(path)


def rows(client: int) -> Rows:
    draw = np.random.default_rng(client)
    tokens = torch.from_numpy(draw.integers(1000, 20000, (BATCH * STEPS, TOKENS)))
    return tokens, torch.from_numpy(draw.integers(0, CLASSES, BATCH * STEPS))


def train(found: Classifier, client: int) -> None:
    """Four steps of AdamW."""
    tokens, labels = rows(client)
    optimiser = torch.optim.AdamW(found.trained(), lr=1e-3)
    for at in range(0, len(tokens), BATCH):
        loss = nn.functional.cross_entropy(found(tokens[at : at + BATCH]), labels[at : at + BATCH])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def flower(path: str, clients: int, rounds: int) -> list[float]:
    """FedAvg in Flower's simulation, on its Ray backend: an actor for each CPU."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0"}
    from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    client_app, server_app, ends = ClientApp(), ServerApp(), list[float]()

    @client_app.train()
    def work(message: Message, context: Context) -> Message:
        own = plain().model(path)
        values = message.content["arrays"].to_numpy_ndarrays()
        with torch.no_grad():
            for parameter, value in zip(own.trained(), values, strict=True):
                parameter.copy_(torch.from_numpy(value))
        plain().train(own, int(context.node_config["partition-id"]))
        arrays = ArrayRecord([p.detach().numpy() for p in own.trained()])
        content = {"arrays": arrays, "metrics": MetricRecord({"num-examples": BATCH * STEPS})}
        return Message(RecordDict(content), reply_to=message)

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        first = ArrayRecord([p.detach().numpy() for p in model(path).trained()])
        strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=clients)
        strategy.start(
            grid,
            first,
            num_rounds=rounds,
            evaluate_fn=lambda number, arrays: ends.append(time.perf_counter()),
        )

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def plain() -> object:
    """This file as a module, which an actor keeps from task to task: what it is given is pickled anew."""
    import cohort_plain

    return cohort_plain


def pfl(path: str, clients: int, rounds: int) -> list[float]:
    """FedAvg in pfl's simulation, one process, on one thread."""
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    own, ends = model(path), [time.perf_counter()]

    class WithLoss(nn.Module):
        """As pfl wants one."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = own

        def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
            return nn.functional.cross_entropy(own(tokens), labels)

        def metrics(self, tokens: Tensor, labels: Tensor) -> dict[str, object]:
            return {}

    class Clock(TrainingProcessCallback):
        def after_central_iteration(self, *arguments: object, **named: object) -> tuple[bool, Metrics]:
            ends.append(time.perf_counter())
            return False, Metrics()

    data = FederatedDataset(
        lambda client: Dataset(raw_data=rows(client), user_id=str(client)),
        get_user_sampler("minimize_reuse", list(range(clients))),
    )
    wrapped = PyTorchModel(
        WithLoss(),
        lambda parameters, lr: torch.optim.AdamW([p for p in parameters if p.requires_grad], lr=lr),
        torch.optim.SGD(own.trained(), lr=1.0),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(rounds, rounds + 1, clients, None),
        SimulatedBackend(data, data),
        wrapped,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1e-3, local_batch_size=BATCH),
        NNEvalHyperParams(local_batch_size=None),
        [Clock()],
    )
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


if __name__ == "__main__":
    kind, where, count, most = sys.argv[1:]
    began = time.perf_counter()
    seconds = {"flower": flower, "pfl": pfl}[kind](where, int(count), int(most))
    print(json.dumps({"rounds_s": seconds, "process_s": time.perf_counter() - began}))
