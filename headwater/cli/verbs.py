"""Verbs that are imported when they are called: :func:`add_verbs`.

``headwater --help`` and ``headwater server --help`` list their verbs from a table and import none of them.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """A line of a table of verbs: what it does, and the module with its ``configure`` and ``run``."""

    about: str
    module: str


class VerbParser(argparse.ArgumentParser):
    """The arguments of one verb, declared by its module when the verb is called.

    Takes options between positional arguments too: ``predict ADAPTER --json TEXT``.
    """

    module: str = ""
    _inside = False

    def declare(self) -> None:
        """Declare the verb's arguments, if that has not been done."""
        if self.module:
            module, self.module = importlib.import_module(self.module), ""
            self.set_defaults(run=module.run)
            module.configure(self)

    def parse_known_args(  # type: ignore[override]  # typeshed's overloads, of which argparse uses this one
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Declare the verb's arguments, if that has not been done, and read them."""
        self.declare()
        # parse_known_intermixed_args comes back here twice, and cannot do verbs of verbs
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


def add_verbs(parser: argparse.ArgumentParser, verbs: Mapping[str, Verb]) -> None:
    """Give ``parser`` the verbs of a table.

    A verb's module is imported when the verb is called: first ``module.configure(parser)``, where
    ``parser.get_default("verb")`` is the verb's name, then ``module.run(options)``, where it is
    ``options.verb``. So one module can hold several verbs.
    """
    table = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=VerbParser)
    for name, verb in verbs.items():
        about = verb.about
        sub: VerbParser = table.add_parser(name, help=about, description=about[0].upper() + about[1:] + ".")
        sub.module = verb.module
        sub.set_defaults(verb=name)
