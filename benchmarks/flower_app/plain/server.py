"""FedAvg of Flower's own, without evaluation; writes when each round ended."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    first = ArrayRecord([np.random.default_rng().standard_normal(config["values"], dtype=np.float32)])
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
    ends = [time.monotonic()]
    # Flower asks this after each round, and before the first
    strategy.start(
        grid,
        first,
        num_rounds=config["rounds"],
        evaluate_fn=lambda number, arrays: ends.append(time.monotonic()),
    )
    Path(config["out"]).write_text(json.dumps(ends[1:]))
