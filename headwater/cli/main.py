"""The ``headwater`` command: one file per verb; this one finds the verb and prints errors.

Verbs are listed with their help here so that ``headwater --help`` imports none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from headwater import __version__
from headwater.cli.interrupts import interruptible
from headwater.cli.verbs import Verb, add_verbs
from headwater.errors import HeadwaterError
from headwater.process_memory import importing

VERBS = {
    "simulate": Verb(
        "run a federation on this machine, from its file to its run folder", "headwater.cli.simulate"
    ),
    "sweep": Verb("run a grid of federations over one base model, and compare them", "headwater.cli.sweep"),
    "audit": Verb(
        "attack a federation's training, and compare what is got with the ε it promises",
        "headwater.cli.audit",
    ),
    "server": Verb("a federation's server: set it up, run, watch and steer it", "headwater.cli.server.verbs"),
    "client": Verb("a data owner's agent: enrol this device, run it", "headwater.cli.client.verbs"),
    "aggregate": Verb(
        "an edge aggregator: sum for some clients between them and the server", "headwater.cli.aggregate"
    ),
    "flower-app": Verb("write a federation as an app that `flwr run` runs", "headwater.cli.flower_app"),
    "config": Verb("check a federation file", "headwater.cli.config"),
    "data": Verb("check data: what would be trained, and what is wrong with it", "headwater.cli.data"),
    "predict": Verb("answer for texts with a trained adapter", "headwater.cli.predict"),
    "merge": Verb("merge adapters into one, without their base model", "headwater.cli.merge"),
    "compress": Verb("write an adapter as one small file", "headwater.cli.experts"),
    "decompress": Verb("write a compressed adapter as a folder that PEFT loads", "headwater.cli.experts"),
    "verify": Verb(
        "say what its receipts prove of an adapter: rounds, owners, lineage", "headwater.cli.verify"
    ),
    "inspect": Verb("show what is in an adapter or a compressed one", "headwater.cli.experts"),
    "check": Verb("say who can serve an adapter, and what would go wrong there", "headwater.cli.serving"),
    "export": Verb("write an adapter for a server, or merged into its base", "headwater.cli.serving"),
    "report": Verb("write a run folder's report.html again", "headwater.cli.report"),
    "runs": Verb("list run folders, and compare what they came to", "headwater.cli.runs"),
    "doctor": Verb("look at this machine: what is missing, and what to do", "headwater.cli.doctor.verb"),
    "completion": Verb("print a script that completes in bash, zsh or fish", "headwater.cli.completion.verb"),
    "plugins": Verb("list what installed packages bring, and what is allowed", "headwater.cli.plugins"),
    "fetch": Verb("download the models and corpora of the examples", "headwater.cli.fetch"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    own_process = argv is None
    parser.set_defaults(own_process=own_process)
    with importing():
        options = parser.parse_args(arguments)  # imports the verb
    try:
        with interruptible():
            code = int(options.run(options))
        sys.stdout.flush()  # here, where a closed pipe is understood, and not at exit
        if own_process:
            gc.freeze()  # the interpreter's last look for garbage would go through all modules for nothing
        return code
    except HeadwaterError as error:
        print(f"headwater: error {error.code}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("headwater: interrupted", file=sys.stderr)
        if own_process:
            _end_now(130)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def make_parser() -> argparse.ArgumentParser:
    """The command's, with all its verbs; it imports none of them."""
    parser = argparse.ArgumentParser(
        prog="headwater",
        description="Fine-tune one foundation model from many data owners without moving their data.",
    )
    parser.add_argument("--version", action="version", version=f"headwater {__version__}")
    add_verbs(parser, VERBS)
    return parser


def _end_now(code: int) -> NoReturn:
    """End without waiting for threads: some of Ray's engine wait for ever for actors that have been ended."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
