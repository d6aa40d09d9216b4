"""EvaluationRound: the global adapter on the server's test file and on the clients' validation splits."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol

from headwater.config.evaluation import EVALUATION_S
from headwater.config.federation import Federation
from headwater.errors import DecodeError, HeadwaterError, TrainingError
from headwater.proto.wire import decode_reply
from headwater.protocol.messages import ClientFailure, ClientProfile, EvaluateRequest, Evaluation, reported
from headwater.seeds.keys import Key
from headwater.server.clients.client_pool import ClientPool
from headwater.server.clients.downlink import Downlink, Outgoing
from headwater.server.clients.exchange import ASKED_AT_ONCE, Exchange, ReceivedReply
from headwater.server.clients.run_control import RunControl
from headwater.server.events import ClientFailed, Evaluating, Notice
from headwater.server.metrics import checked, decisive, metric_name, over_clients, per_client
from headwater.server.round_record import RoundDraft
from headwater.server.rounds.evaluation_wait import EvaluationWait
from headwater.server.storage.checkpoint import Checkpoint
from headwater.tasks.batches import Example
from headwater.text import name_some
from headwater.training.context import TrainingContext

MOST_REASON = 500
"""Characters of why a client gave no evaluation that a round's record keeps."""


class AskMore(Protocol):
    """Asks clients to evaluate."""

    def __call__(self, again: Sequence[str] = ()) -> None:
        """These once more, and as many others as may be at work."""


class EvaluationRound:
    """Evaluates after a round.

    Args:
        federation: the federation file.
        run: the run's id.
        context: the base model.
        test: the server's held-out examples, if any.
        downlink: how the adapter travels.
        control: time and observer.
        live: the federation as the organiser has it now, in a run that outlives its process: clients may go
            away, and a round that is left open goes on at the next start. None in a simulation.
    """

    def __init__(
        self,
        federation: Federation,
        run: str,
        context: TrainingContext,
        test: Sequence[Example] | None,
        downlink: Downlink,
        control: RunControl,
        live: Callable[[], Federation] | None = None,
    ) -> None:
        self._federation, self._run, self._context, self._test = federation, run, context, test
        self._downlink, self._control, self._lasting = downlink, control, live is not None
        self._absent: set[str] = set()
        self._live = live or (lambda: federation)

    def due(self, round: int) -> bool:
        """Whether this round is evaluated: every k-th, and the federation's last.

        A round after which someone stops the run is no exception: its resume must see the same
        evaluations, hence the same best round and patience, as a run that nobody stopped. Where a client
        is away, so that the stop would have to wait for it, the round is left open and is closed and
        evaluated by the resume.
        """
        every = self._federation.evaluation.every
        return bool(every) and (round % every == 0 or round == self._federation.federation.rounds)

    def after(
        self,
        checkpoint: Checkpoint,
        pool: ClientPool,
        profiles: Mapping[str, ClientProfile],
        draft: RoundDraft,
        *,
        took_part: Collection[str] = (),
    ) -> tuple[Checkpoint, float]:
        """Evaluate the checkpoint's adapter if it is due, and add what was found to the round's record.

        Args:
            checkpoint: after the round.
            pool: the clients.
            profiles: of all that are known; those who are here and have a validation split are asked.
            draft: of the round's record.
            took_part: whose updates are in the round.

        Returns:
            The checkpoint with the best round brought up to date, and the deciding value (or NaN).

        Raises:
            EvaluationAborted: a stop was asked for and a client is away: the round has not ended.
        """
        number, state = checkpoint.server.round, checkpoint.server.state
        if not self.due(number):
            return checkpoint, math.nan
        self._control.observer(Evaluating(number))
        settings = self._federation.evaluation
        wanted = [n for n, p in profiles.items() if p.validation_examples]
        last = number == self._federation.federation.rounds
        most = settings.most_clients(number, len(wanted), last=last)
        here = self._available(wanted, took_part, pool, draft, most) if most else []
        key = Key.root(self._federation.federation.seed).child("evaluation", number)
        asked = drawn(here, most, key)
        codec = self._federation.codec.down
        down = self._downlink.open(checkpoint.server, codec, checkpoint.accepted, profiles)
        ask_more = self._asking(number, down, asked, pool.exchange, draft)
        ask_more()  # workers begin while we test
        test: dict[str, float] | None = None
        pooled: dict[str, float] = {}
        if self._test:
            test = {}
            try:
                (count, test), by = self._context.evaluate_groups(state, self._test)
                draft.tested({**test, **self._context.attack_success(state)}, count, by)
            except TrainingError as error:  # a diverged adapter: an earlier one may still be the best
                self._control.observer(Notice(f"round {number}: {error}"))
        if asked:
            evaluations = self._collect(
                checkpoint, asked, pool, profiles, draft, ask_more, down.base.sha256()
            )
            pooled = over_clients(evaluations, self._federation.data)
            draft.evaluated(pooled, per_client(evaluations, profiles, settings.min_client_examples))
        value = decisive(metric_name(self._federation), test, pooled)
        tracker = checkpoint.tracker.after(number, value)
        best = state if tracker.best_round == number else checkpoint.best
        return replace(checkpoint, tracker=tracker, best=best), value

    def _available(
        self,
        wanted: Sequence[str],
        took_part: Collection[str],
        pool: ClientPool,
        draft: RoundDraft,
        most: int | None = None,
    ) -> list[str]:
        """The clients that can evaluate now. The others are named in the round's record and to the observer.

        None is where there are ``most``, which is all by default.

        Who took part and is not away is asked though it is not ready: after a crash of this process it
        comes back soon.
        """
        ready, why = pool.ready(), pool.missing()
        here = [c for c in wanted if c in ready or (c in took_part and not pool.is_away(c))]
        enough = most is not None and len(here) >= most
        absent = {} if enough else {c: why.get(c, "offline") for c in wanted if c not in here}
        if absent:
            draft.not_asked(absent)
        if absent.keys() - self._absent:  # told once, and not after each round
            shown = name_some([f"{c} ({reason})" for c, reason in absent.items()])
            text = f"{len(here)} of {len(wanted)} clients are asked to evaluate, without {shown}"
            self._control.observer(Notice(f"round {draft.round}: {text}"))
        self._absent = set(absent)
        return here

    def _asking(
        self, number: int, down: Outgoing, asked: Sequence[str], exchange: Exchange, draft: RoundDraft
    ) -> AskMore:
        """What asks these again and, of those who were not asked, enough for :data:`ASKED_AT_ONCE` at work.

        Or all of them: clients that may go away are asked at once, and where a wait ends, or time is
        simulated: none takes another's turn.
        """
        spec = self._context.spec
        digest, left = down.base.sha256(), iter(asked)
        bounded = not (self._lasting or self._control.simulated) and math.isinf(self._deadline_s())
        at_once = ASKED_AT_ONCE if bounded else len(asked)

        def ask_more(again: Sequence[str] = ()) -> None:
            some = [*again, *islice(left, max(0, at_once - exchange.outstanding - len(again)))]
            requests = {
                c: EvaluateRequest(self._run, number, c, spec.fingerprint(), digest, down.payload(c))
                for c in some
            }
            sent = exchange.send(requests.items(), number)
            for client, request in requests.items():
                down.count(client, request.state, draft.states)
            dense = sum(n - len(requests[c].state.body) + spec.nbytes for c, n in sent.items())
            draft.transferred(down=sum(sent.values()), down_dense=dense)

        return ask_more

    def _collect(
        self,
        checkpoint: Checkpoint,
        asked: Sequence[str],
        pool: ClientPool,
        profiles: Mapping[str, ClientProfile],
        draft: RoundDraft,
        ask_more: AskMore,
        base_sha256: str,
    ) -> list[Evaluation]:
        """What the clients answer; one that fails, or is late, is left out and named."""
        found: list[Evaluation] = []
        number = checkpoint.server.round
        exchange = pool.exchange
        wait = EvaluationWait(number, asked, pool, self._control, self._deadline_s, lasting=self._lasting)
        while exchange.waiting(EvaluateRequest, number) and not wait.over():
            quiet, again = True, list[str]()
            for incoming in pool.poll(EvaluateRequest):
                quiet, client = False, incoming.address
                if incoming.round != number:
                    continue
                draft.transferred(up=incoming.bytes_up, up_dense=incoming.bytes_up)
                try:
                    evaluation = _evaluation(incoming, number, self._run)
                    found.append(checked(evaluation, profiles[client], self._federation))
                    self._downlink.note_held({client: base_sha256})
                except HeadwaterError as error:
                    if self._downlink.needs_full(client, error, checkpoint.accepted.get(client, 0)):
                        again.append(client)  # at once: it is sent the whole adapter
                        continue
                    wait.given_up[client] = str(error)[:MOST_REASON]
                    self._control.observer(ClientFailed(number, client, str(error)))
                wait.answered(client)
            if quiet:
                self._control.pause(wait.ends_s)
            else:
                ask_more(again)
        exchange.forget(EvaluateRequest, number)
        wait.end()
        draft.not_evaluated(wait.given_up)
        return found

    def _deadline_s(self) -> float:
        """How many seconds clients are waited for, by the settings that hold now."""
        federation = self._live()
        own, rounds = federation.evaluation.deadline_s, federation.cohort.deadline_s
        set_s = own if own is not None else rounds
        return set_s if set_s is not None else EVALUATION_S if self._lasting else math.inf


def drawn(clients: Sequence[str], most: int, key: Key) -> list[str]:
    """So many of the clients, each as likely, in their order; all where there are no more."""
    if len(clients) <= most:
        return list(clients)
    chosen = key.numpy().choice(len(clients), size=most, replace=False)
    return [clients[i] for i in sorted(chosen.tolist())]


def _evaluation(incoming: ReceivedReply, number: int, run: str) -> Evaluation:
    """The reply to an evaluation, believed only for the client and round it was asked of."""
    if incoming.error:
        raise DecodeError(f"client {incoming.address}", expected="an evaluation", got=incoming.error)
    reply = decode_reply(incoming.data, max_bytes=0)
    if isinstance(reply, ClientFailure):
        raise reported(reply, f"client {incoming.address}", expected="an evaluation", remote=incoming.remote)
    if not isinstance(reply, Evaluation) or (
        (reply.client, reply.round, reply.run) != (incoming.address, number, run)
    ):
        raise DecodeError(
            f"client {incoming.address}", expected=f"its evaluation of round {number}", got=str(reply)[:200]
        )
    return reply
