"""The ``headwater`` command: one file per verb; this one finds the verb and prints errors.

Verbs are listed with their help here so that ``headwater --help`` imports none of them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from headwater import __version__
from headwater.errors import HeadwaterError

VERBS = {
    "simulate": "run a federation on this machine, from its file to its run folder",
    "config": "check a federation file",
    "predict": "answer for texts with a trained adapter",
    "report": "write a run folder's report.html again",
    "fetch": "download the models and corpora of the examples",
}


class _VerbParser(argparse.ArgumentParser):
    """Takes options between positional arguments too: ``predict ADAPTER --json TEXT``."""

    _inside = False

    def parse_known_args(  # type: ignore[override]  # typeshed's overloads, of which argparse uses this one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._inside:
            return super().parse_known_args(args, namespace)
        self._inside = True  # parse_known_intermixed_args comes back here twice
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="headwater",
        description="Fine-tune one foundation model from many data owners without moving their data.",
    )
    parser.add_argument("--version", action="version", version=f"headwater {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_VerbParser)
    chosen = next((a for a in arguments if not a.startswith("-")), None)
    for verb, about in VERBS.items():
        sub = verbs.add_parser(verb, help=about, description=about[0].upper() + about[1:] + ".")
        if verb == chosen:
            module = importlib.import_module(f"headwater.cli.{verb}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    options = parser.parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()  # here, where a closed pipe is understood, and not at exit
        return code
    except HeadwaterError as error:
        print(f"headwater: error {error.code}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("headwater: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
