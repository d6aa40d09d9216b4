"""Who trains how: from ``[assignment]`` and the clients' profiles to each client's :class:`Assigned`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from headwater.config.assignment import DEFAULT, Method
from headwater.config.federation import Federation
from headwater.protocol.messages import ClientProfile
from headwater.strategies.planner import pick


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
    federation: Federation,
    profiles: Mapping[str, ClientProfile],
    method_names: Mapping[str, str] | None = None,
) -> dict[str, Assigned]:
    """Every client's method: a function of file and profiles.

    Args:
        federation: the file.
        profiles: of the clients, by name.
        method_names: the method's name of clients that have one already, drawn among others too: whoever is
            not in ``profiles`` counts in the quotas too.
    """
    if federation.assignment is not None and federation.assignment.by_device:
        return {name: _planned(federation, profile) for name, profile in profiles.items()}
    method_names = completed_names(federation, profiles, method_names)
    methods = {name: method_of(federation, name) for name in {method_names[client] for client in profiles}}
    return {client: Assigned(method_names[client], methods[method_names[client]]) for client in profiles}


def completed_names(
    federation: Federation, clients: Collection[str], method_names: Mapping[str, str] | None
) -> Mapping[str, str]:
    """``method_names``, with those of the clients that have none yet; of all where there are none."""
    if method_names is None:
        return names_of(federation, clients)
    late = [name for name in clients if name not in method_names]
    return {**method_names, **names_of(federation, late)} if late else method_names


def names_of(federation: Federation, clients: Iterable[str]) -> dict[str, str]:
    """The method's name for every client, where it does not depend on the device.

    The table ``[assignment]`` deals them: by shares of all ``clients``, or by patterns of their names.
    """
    clients, by = sorted(clients), federation.assignment
    return dict.fromkeys(clients, DEFAULT) if by is None else by.deal(clients, federation.federation.seed)


def method_of(federation: Federation, name: str) -> Method:
    """The settings of a method; ``default`` is ``[training]``."""
    if name == DEFAULT:
        return Method.model_construct(training=federation.training)  # checked with the file
    return federation.methods[name]


def _planned(federation: Federation, profile: ClientProfile) -> Assigned:
    """By device; a client that says nothing of its own gets ``default``."""
    if profile.device is None:
        return Assigned(DEFAULT, method_of(federation, DEFAULT), "nothing is known of its device")
    choice = pick(federation, profile.device, examples=profile.train_examples)
    method = method_of(federation, choice.method)
    training = method.training.cut(choice.batch_size, choice.max_steps)
    return Assigned(choice.method, method.model_copy(update={"training": training}), choice.reason)
