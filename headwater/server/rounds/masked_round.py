"""MaskedRound: a round whose updates are added up under masks (:mod:`headwater.security.secagg`).

Each device turns its update into the vector of an accumulator of its own, which the rule makes of it as the
server would, and masks it; the server adds vectors, and gets the accumulator of all who are left. So the
result has the same bits as without masks. What is measured update by update (the gap) is not there. Devices
are here in the server's process, as in a simulation: every message is one of the protocol, and is counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headwater.merging.aggregator import Aggregator, Merged
from headwater.merging.plan import Update
from headwater.protocol.messages import ClientProfile
from headwater.security.secagg import messages
from headwater.security.secagg.bounds import Promise, choose
from headwater.security.secagg.client import MaskingClient
from headwater.security.secagg.group import Advert, SumRound, later_attempt
from headwater.security.secagg.server import MaskingServer
from headwater.seeds.keys import Key
from headwater.server.clients.downlink import Outgoing
from headwater.server.clients.exchange import ReceivedReply
from headwater.server.clients.masking import Masking
from headwater.server.rounds.open_round import OpenRound
from headwater.strategies.strategy import RoundPlan


@dataclass(frozen=True)
class Masks:
    """What masks a round.

    Args:
        devices: their side.
        promise: what the federation states of drop-outs, collusion and the fewest clients.
    """

    devices: Masking
    promise: Promise


@dataclass
class _Device:
    """One device in this round: its side, what was delivered to it, bytes that it has sent and received."""

    side: MaskingClient
    delivery: messages.Delivery
    sent: int
    received: int


class MaskedRound(OpenRound):
    """One masked round: keys and shares when it is opened, vectors as they come, unmasking when it is merged.

    Args:
        plan: who is asked what.
        down: the state that the clients start from, and how it travels to them.
        run: id of the run.
        profiles: what the clients said of themselves.
        rule: the merge rule.
        root: the federation's root key.
        masks: the devices' side, and what is promised of it.

    Raises:
        ConfigError: too few clients for masks, or a rule or plan that needs single updates.
    """

    def __init__(
        self,
        plan: RoundPlan,
        down: Outgoing,
        run: str,
        profiles: Mapping[str, ClientProfile],
        rule: Aggregator[Any],
        root: Key,
        masks: Masks,
    ) -> None:
        super().__init__(plan, down, run, profiles, rule, root)
        self._gap = self._gap_acc = None
        names = tuple(sorted(plan.clients))
        choose(len(names), masks.promise)
        layout = rule.sum_layout(plan.merge)
        sum_round = SumRound(run, plan.round, later_attempt(), names, layout, masks.promise)
        enrolled = masks.devices.enrolled(names)
        self._server = MaskingServer(sum_round, enrolled)
        sides = {name: masks.devices.client(sum_round, name, enrolled) for name in names}
        for name, side in sides.items():
            self._server.take_advert(name, side.advertise())
        group = self._server.close_adverts()
        told = len(messages.dump_group(group))
        uploads = dict[str, int]()
        for name, side in sides.items():
            shares = side.share(group)
            uploads[name] = Advert.BYTES + len(messages.dump_rows(shares))
            self._server.take_shares(name, shares)
        self._devices = {
            name: _Device(sides[name], delivery, uploads[name], told + len(messages.dump_delivery(delivery)))
            for name, delivery in self._server.close_shares().items()
        }

    def fold(self, incoming: ReceivedReply, *, keep: bool = False) -> None:
        """The device's work on its update, and the server's on the masked vector."""
        super().fold(incoming)
        row = self._rows[incoming.address]
        for name in row.keys() & {"noise", "bytes_fisher"}:
            del row[name]  # of one update alone: with devices elsewhere no server would see it
        row["bytes_up"] = self._devices[incoming.address].sent

    def _add(self, update: Update) -> None:
        """Mask the accumulator of this update alone, and add it."""
        client = update.client
        rule, device = self._rule, self._devices[client]
        own = rule.add(rule.init(self.plan.merge.part([client])), update)
        data = device.side.mask(device.delivery, rule.to_sums(own))
        device.sent += len(data)
        self._server.take_masked(client, data)
        self._masked_sha256 = hashlib.sha256(data).hexdigest()

    def _arrived(self, incoming: ReceivedReply) -> str:
        """The hash of what the server has seen of the update."""
        return self._masked_sha256

    def merge(self, again: Callable[[str], ReceivedReply] | None = None) -> Merged:
        """Unmask the sum, and merge it.

        Raises:
            EmptyRound: more clients dropped out than the federation states: the round ends here, and nobody
                has learned anything.
            DecodeError: no updates add up to this sum: a client sent something else.
        """
        self._server.close_masked()
        survivors = [name for name in self._devices if name in self.rows]
        flags = messages.dump_flags(self._server.survivors)
        for name in survivors:
            signature = self._devices[name].side.sign_list(self._server.survivors)
            self._count(name, sent=len(signature), received=len(flags))
            self._server.take_signature(name, signature)
        certificate = self._server.close_signatures()
        size = len(messages.dump_rows(certificate))
        for name in survivors:
            reveal = self._devices[name].side.reveal(certificate)
            self._count(name, sent=len(messages.dump_reveal(reveal)), received=size)
            self._server.take_reveal(name, reveal)
        found = self._server.finish()
        self._acc = self._rule.from_sums(self.plan.merge, found.names, found.values)
        self._rule.require_sound(self._acc)
        for name, device in self._devices.items():
            self.sent[name] = self.sent.get(name, 0) + device.received
        return super().merge(again)

    def _count(self, name: str, *, sent: int, received: int) -> None:
        self._devices[name].sent += sent
        self._devices[name].received += received
        self._rows[name]["bytes_up"] = self._devices[name].sent
