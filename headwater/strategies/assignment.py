"""Who trains how: from ``[assignment]`` and the clients' profiles to each client's :class:`Assigned`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from headwater.config.assignment import DEFAULT, Method
from headwater.config.dealing import deal
from headwater.config.federation import Federation
from headwater.config.training import MinibatchTraining, NoopTraining, Training
from headwater.protocol.messages import ClientProfile
from headwater.strategies.planner import Choice, pick


@dataclass(frozen=True)
class Assigned:
    """One client's method.

    Args:
        name: in the federation file.
        method: its settings, with batch and steps as this client is to have them.
        reason: why, for people; empty where the file says so itself.
    """

    name: str
    method: Method
    reason: str = ""


def assign(
    federation: Federation, profiles: Mapping[str, ClientProfile], dealt: Mapping[str, str] | None = None
) -> dict[str, Assigned]:
    """Every client's method: a function of file and profiles.

    Args:
        federation: the file.
        profiles: of the clients, by name.
        dealt: the method's name for clients to whom shares were dealt before, among others: whoever is
            not in ``profiles`` counts in the quotas too.
    """
    if federation.assignment is not None and federation.assignment.kind == "planner":
        return {name: _planned(federation, profile) for name, profile in profiles.items()}
    dealt = names_of(federation, profiles) if dealt is None else dealt
    late = [name for name in profiles if name not in dealt]
    dealt = {**dealt, **names_of(federation, late)} if late else dealt
    return {name: Assigned(dealt[name], method_of(federation, dealt[name])) for name in profiles}


def names_of(federation: Federation, clients: Iterable[str]) -> dict[str, str]:
    """The method's name for every client, where it does not depend on the device.

    Shares are quotas of all ``clients`` (:func:`headwater.config.dealing.deal`), so who comes or goes may
    change another's method; patterns are looked at in the file's order.
    """
    clients, by = sorted(clients), federation.assignment
    if by is None or by.kind == "planner":
        return dict.fromkeys(clients, DEFAULT)
    if by.kind == "shares":
        return deal(clients, by.shares, federation.federation.seed)
    return {
        client: next((m for pattern, m in by.clients.items() if _fits(client, pattern)), DEFAULT)
        for client in clients
    }


def _fits(client: str, pattern: str) -> bool:
    return fnmatchcase(client, pattern.replace("[", "[[]"))  # only * and ? mean more than themselves


def method_of(federation: Federation, name: str) -> Method:
    """The settings of a method; ``default`` is ``[training]``."""
    return Method(training=federation.training) if name == DEFAULT else federation.methods[name]


def _planned(federation: Federation, profile: ClientProfile) -> Assigned:
    """By device; a client that says nothing of its own gets ``default``."""
    if profile.device is None:
        return Assigned(DEFAULT, method_of(federation, DEFAULT), "nothing is known of its device")
    choice = pick(federation, profile.device, examples=profile.train_examples)
    method = method_of(federation, choice.method)
    training = _cut(method.training, choice)
    return Assigned(choice.method, method.model_copy(update={"training": training}), choice.reason)


def _cut(training: Training, choice: Choice) -> Training:
    """The training with the planner's batch and steps, never more than the file's.

    decomfl keeps its steps: all clients of a round step along the same seeds. So does blackbox.
    """
    if isinstance(training, NoopTraining):
        return training
    changes = {"batch_size": max(1, min(training.batch_size, choice.batch_size))}
    if (
        isinstance(training, MinibatchTraining)
        and training.kind != "decomfl"
        and choice.max_steps is not None
    ):
        changes["max_steps"] = max(1, min(training.max_steps or choice.max_steps, choice.max_steps))
    return training.model_copy(update=changes)
