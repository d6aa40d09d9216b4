"""What does not fit together in a federation file: :func:`require_consistent`.

Each table is right by itself when this is asked; here are the rules between tables.
"""

from __future__ import annotations

from collections.abc import Iterable

from headwater.config.assignment import DEFAULT
from headwater.config.attackers import BackdoorAttacker
from headwater.config.codec import CompeftCodec
from headwater.config.data import UNKNOWN_LABELS, ClassificationData
from headwater.config.example_private import require_example_private
from headwater.config.masked import require_masks
from headwater.config.metrics import ANSWER_METRICS
from headwater.config.model import MODELS
from headwater.config.private import require_private
from headwater.config.spaces import require_space
from headwater.config.tables import FederationTables
from headwater.config.training import Training

MAX_METHODS, MAX_METHOD_NAME = 64, 64


def require_consistent(federation: FederationTables) -> None:
    """Refuse settings that contradict each other.

    Raises:
        ValueError: says which, and what to change.
    """
    vector, data = not federation.model.pretrained, federation.data
    bare = federation.training.learns_from == "nothing" and not data.has_rows and federation.adapter is None
    if vector and not bare:
        raise ValueError("model.kind 'vector' needs data.kind 'none', training.kind 'noop' and no [adapter]")
    if not vector and federation.adapter is None:
        raise ValueError('[adapter] is missing: add one, for example kind = "lora"')
    if not vector and not data.has_rows:
        raise ValueError("data.kind 'none' goes with model.kind 'vector' only")
    if not vector and data.needs not in federation.model.gives:
        fitting = [kind for kind, model in MODELS.items() if data.needs in model.gives]
        raise ValueError(
            f"model.kind '{federation.model.kind}' does not fit data.kind '{data.kind}', which goes with "
            f"{listed(fitting)}"
        )
    _precision(federation)
    _portable(federation)
    _measurable(federation)
    _cohort(federation)
    _methods(federation)
    _links(federation)
    _by_targets(federation)
    _control_variates(federation)
    _shifts(federation)
    _contribution(federation)
    _attackers(federation)
    require_masks(federation)
    require_private(federation)
    require_example_private(federation)
    if federation.privacy.clip_l2 is not None and federation.codec.up.may_lengthen():
        raise ValueError(
            f"codec.up '{federation.codec.up.kind}' with these settings may lift an update above "
            "privacy.clip_l2: leave one of them out"
        )
    for way, codec in (("up", federation.codec.up), ("down", federation.codec.down)):
        if codec.is_of_a_round():
            raise ValueError(f"codec.{way}: places are what the server writes into plans: leave them out")
    if federation.codec.down.fading()[1] is not None:
        raise ValueError("codec.down.keep_rounds: a server is never away, so leave it out")
    require_space(federation)
    _memory(federation)
    strategy = federation.strategy
    if federation.cohort.min_clients < strategy.fewest:
        raise ValueError(
            f"strategy '{strategy.kind}' with these settings merges at least {strategy.fewest} updates: "
            f"set cohort.min_clients = {strategy.fewest}, not {federation.cohort.min_clients}"
        )


def _memory(federation: FederationTables) -> None:
    """One place says what simulated devices have."""
    devices, assignment = federation.simulation.devices, federation.assignment
    if devices is not None and devices.memory_mb is not None and getattr(assignment, "devices", None):
        raise ValueError("simulation.devices.memory_mb and [assignment.devices] say the same: leave one out")


def _links(federation: FederationTables) -> None:
    """Budgets by links need rounds, and a codec that keeps a budget."""
    cohort, codec = federation.cohort, federation.codec.up
    if cohort.upload_s is None:
        return
    if not isinstance(codec, CompeftCodec) or codec.format == 1 or codec.alpha is not None:
        raise ValueError(
            f"cohort.upload_s needs codec.up 'compeft' in format 2 without alpha, not '{codec.kind}' with "
            "these settings"
        )
    if all(training.sends == "coefficients" for training in federation.trainings.values()):
        raise ValueError("cohort.upload_s: every method here sends coefficients, whose size no codec decides")
    if not federation.schedule.has_rounds:
        raise ValueError("cohort.upload_s needs rounds: an update may be of an earlier version's budget")
    if cohort.deadline_s is not None and cohort.upload_s > cohort.deadline_s:
        raise ValueError(
            f"cohort.upload_s {cohort.upload_s:g} is above cohort.deadline_s {cohort.deadline_s:g}, which is "
            "for downloads and computation too"
        )


def _precision(federation: FederationTables) -> None:
    """What is trained is float32 beside a base of another type: our head, and PEFT's layers."""
    model = federation.model
    dtype = getattr(model, "dtype", "float32")
    if dtype != "float32" and model.own_head:
        raise ValueError(
            f"model.dtype '{dtype}' with model.kind '{model.kind}': its own head, which is trained, "
            "would be of that type too: use kind = 'encoder', whose head is float32"
        )


def _methods(federation: FederationTables) -> None:
    """Every method can be used, and be merged with the others."""
    if bad := [name for name in federation.methods if name == DEFAULT or not name.isidentifier()]:
        raise ValueError(f"methods.{bad[0]}: a name of letters, digits and _ other than '{DEFAULT}'")
    if len(federation.methods) >= MAX_METHODS or any(
        len(name) > MAX_METHOD_NAME for name in federation.methods
    ):
        raise ValueError(
            f"[methods]: fewer than {MAX_METHODS}, with names of at most {MAX_METHOD_NAME} characters"
        )
    named = set(federation.assignment.methods()) if federation.assignment is not None else set()
    if unknown := sorted(named - federation.trainings.keys()):
        raise ValueError(
            f"assignment: there is no method '{unknown[0]}'; there are {', '.join(federation.trainings)}"
        )
    if federation.methods and federation.assignment is None:
        raise ValueError("[methods] without [assignment]: nobody would use them")
    strategy, data = federation.strategy, federation.data
    scalar = [t for t in federation.trainings.values() if t.sends == "coefficients"]
    if strategy.adaptive and len(scalar) == len(federation.trainings):
        raise ValueError(
            f"server_optimizer '{strategy.server_optimizer}' has a rate for each value, but every method "
            "here sends coefficients of seeds, which make up the adapter as long as it moves by them alone: "
            "use 'momentum'"
        )
    partial = any(m.rank or m.last_layers for m in federation.methods.values())
    for training in federation.trainings.values():
        kind = training.kind
        if training.alone and federation.methods:
            raise ValueError(f"training kind '{kind}' goes with no other method")
        if not strategy.linear and training.sends == "coefficients":
            raise ValueError(
                f"methods that send scalars, such as '{kind}', need strategy 'mean', not '{strategy.kind}'"
            )
        if not strategy.merges_parts() and (training.splits_layers or partial):
            raise ValueError(
                f"method '{kind}' and methods with rank or last_layers need strategy 'mean', 'median' or "
                "'trimmed_mean', or one that merges by distances in space 'product', not "
                f"'{strategy.kind}' in space '{strategy.space}'"
            )
        if strategy.needs_fisher and federation.adapter is not None and federation.adapter.head_bits:
            raise ValueError("adapter.head_bits is for methods without gradients, not strategy 'fisher'")
        if strategy.needs_fisher and data.has_rows and not data.has_likelihood:
            raise ValueError(f"strategy 'fisher' draws labels, which data.kind '{data.kind}' cannot")
        if strategy.needs_fisher and getattr(data, "class_weights", None) is not None:
            raise ValueError(
                "strategy 'fisher' draws labels as the model believes them: no data.class_weights"
            )
        if strategy.needs_fisher and training.learns_from not in ("gradients", "nothing"):
            raise ValueError(f"strategy 'fisher' needs gradients, which '{kind}' does not have")
        if strategy.needs_fisher and training.by_script:
            raise ValueError(f"strategy 'fisher' asks for what a training of kind '{kind}' does not give")
        if training.needs_rounds and not federation.schedule.has_rounds:
            raise ValueError(f"method '{kind}' needs rounds: a buffered version has updates of several")
        if training.needs_prompt and not (federation.adapter is not None and federation.adapter.is_prompt):
            raise ValueError(f"method '{kind}' searches a soft prompt: use [adapter] kind = \"prompt\"")
        plus = getattr(training, "lora_b_rate", None) is not None
        if plus and not (federation.adapter is not None and federation.adapter.has_factors):
            raise ValueError(
                "lora_b_rate is the rate of LoRA's B: use an [adapter] that has one, or leave it out"
            )
        if training.splits_layers and not _layered(federation):
            raise ValueError(
                f"method '{kind}' splits layers: use an [adapter] whose tensors belong to layers, such as "
                'kind = "lora"'
            )
        if not 2.0**-40 <= training.largest_step() <= 2.0**14:
            raise ValueError(
                f"method '{kind}': learning_rate times gradient_bound (scale times 8 of blackbox) is the "
                "largest step along a seed, and must be between 2^-40 and 2^14, not "
                f"{training.largest_step():g}"
            )
    if scalar and federation.privacy.clip_l2 is not None:
        raise ValueError("privacy.clip_l2 goes with deltas; bound scalars by gradient_bound instead")
    if scalar and strategy.norm_bound is not None:
        raise ValueError("strategy.norm_bound goes with deltas; bound scalars by gradient_bound instead")
    if scalar and strategy.screen is not None:
        raise ValueError("strategy.screen looks at deltas, and coefficients of seeds are none")
    for name, method in federation.methods.items():
        if method.training.sends == "coefficients" and (method.rank or method.last_layers):
            raise ValueError(f"methods.{name}: seeds move the whole adapter: no rank, no last_layers")
        if method.last_layers and not _layered(federation):
            raise ValueError(
                f"methods.{name}.last_layers needs an [adapter] whose tensors belong to layers, such as "
                'kind = "lora"'
            )
        whole = 0 if federation.adapter is None else federation.adapter.factor_rank
        if method.rank and method.rank > whole:
            raise ValueError(f"methods.{name}.rank {method.rank} needs LoRA of at least that rank")
    for training in scalar[1:]:
        mine, first = _span(training), _span(scalar[0])
        if other := [name for name in mine if mine[name] != first.get(name)]:
            raise ValueError(
                f"methods that send scalars must have the same {other[0]}: one set of seeds serves a round"
            )


def _by_targets(federation: FederationTables) -> None:
    """Clients can say how many targets they train on, once for all rounds."""
    if federation.strategy.weighting != "targets":
        return
    devices, trainings = federation.simulation.devices, federation.trainings.values()
    reasons = {
        "clients whose rows stay as they are: no simulation.devices.start_rows": (
            devices is not None and devices.start_rows is not None
        ),
        "no control variates, which are weighed by examples": federation.strategy.control_variates,
        "no [training.privacy]: how many tokens a row has would be told": any(
            training.example_privacy() for training in trainings
        ),
        "rows that Headwater reads: no data.kind 'none', no training.kind 'script'": (
            not federation.data.has_rows or any(training.by_script for training in trainings)
        ),
    }
    for needed, broken in reasons.items():
        if broken:
            raise ValueError(f'strategy.weighting = "targets" needs {needed}')


def _control_variates(federation: FederationTables) -> None:
    """SCAFFOLD's mean gradient can be told from an update."""
    if not federation.strategy.control_variates:
        return
    if federation.strategy.screen is not None and federation.strategy.screen.changes:
        raise ValueError(
            "strategy.control_variates counts every update whole: no screen.leave_out or .shorten"
        )
    if federation.training.descent_rate("") is None:
        raise ValueError(
            "strategy.control_variates needs training.kind 'backprop' with optimizer = \"sgd\", no "
            "proximal_mu and a final_learning_rate_fraction above 0: how far AdamW goes does not tell a "
            "client's mean gradient, so SCAFFOLD's correction would be wrong"
        )
    if federation.methods:
        raise ValueError("strategy.control_variates goes with one method for all clients: no [methods]")
    devices = federation.simulation.devices
    if devices is not None and devices.start_rows is not None:
        raise ValueError("strategy.control_variates needs clients whose rows stay as they are: no start_rows")
    if not federation.schedule.has_rounds:
        raise ValueError("strategy.control_variates needs rounds: a buffered version has updates of several")
    strategy = federation.strategy
    if strategy.merges_products or strategy.alternates or federation.own_part != "nothing":
        raise ValueError(
            "strategy.control_variates needs A and B that are trained and merged value by value, and heads "
            f"that all share: use space 'factors' or 'ffa', not '{strategy.space}'; leave out adapter.head"
        )
    if federation.codec.up.leaves_out():
        raise ValueError(
            "strategy.control_variates needs every value of an update, and codec "
            f"'{federation.codec.up.kind}' leaves most out: use codec.up.kind = \"dense\""
        )


def _shifts(federation: FederationTables) -> None:
    """EF21's clients and its server add up the same: every update counts once, whole, and the same."""
    if federation.codec.down.shifts:
        raise ValueError(
            "codec.down goes with error_feedback true or false: the server knows both sums of EF21"
        )
    if not federation.codec.up.shifts:
        return
    strategy, training = federation.strategy, federation.training
    reasons = {
        'schedule.kind = "synchronous": an update of an earlier version would count less': (
            not federation.schedule.has_rounds
        ),
        'strategy.kind = "mean": other rules\' results are no sum of what was sent': not strategy.linear,
        'strategy.weighting = "equal": a client\'s examples may change': strategy.weighting != "equal",
        "space 'factors' or 'ffa', where what is sent is added value by value": (
            strategy.merges_products or strategy.alternates or federation.own_part != "nothing"
        ),
        "no control variates": strategy.control_variates,
        "no strategy.norm_bound and no privacy.clip_l2: what is cut off would be missing for ever": (
            strategy.norm_bound is not None or federation.privacy.clip_l2 is not None
        ),
        "no strategy.screen.leave_out or .shorten: what is left out would be missing for ever": (
            strategy.screen is not None and strategy.screen.changes
        ),
        "one method for all clients, which sends all values": bool(federation.methods)
        or training.splits_layers
        or training.sends == "coefficients",
    }
    for needed, missing in reasons.items():
        if missing:
            raise ValueError(f"codec.up.error_feedback 'ef21' needs {needed}")


def _attackers(federation: FederationTables) -> None:
    """They send other deltas than they learnt, of rows that they may change."""
    for index, attacker in enumerate(federation.simulation.attackers):
        who = f"simulation.attackers {index + 1}"
        if any(t.sends == "coefficients" or t.by_script for t in federation.trainings.values()):
            raise ValueError(
                f"{who}: clients that lie send deltas of Headwater's own methods, and no scalars"
            )
        if not isinstance(attacker, BackdoorAttacker):
            continue
        if not isinstance(federation.data, ClassificationData):
            raise ValueError(f"{who}: a backdoor needs data.kind 'classification'")
        if federation.data.labels != UNKNOWN_LABELS and attacker.target not in federation.data.labels:
            raise ValueError(f"{who}: target {attacker.target!r} is none of data.labels")


def _cohort(federation: FederationTables) -> None:
    """A round, or a version, can end as the file asks."""
    cohort, schedule = federation.cohort, federation.schedule
    per_round, target, least = cohort.clients_per_round, cohort.target_clients, cohort.min_clients
    if target is not None and not schedule.has_rounds:
        raise ValueError("cohort.target_clients goes with rounds: set schedule.buffer instead")
    if schedule.buffer is not None:
        if least > schedule.buffer:
            raise ValueError(
                f"cohort.min_clients {least} is above schedule.buffer {schedule.buffer}, "
                "with which a version closes"
            )
        return  # clients_per_round is how many work at once, and may be fewer than either
    any_number = federation.privacy.noised and not federation.privacy.shares
    if per_round is not None and per_round < least and not any_number:
        raise ValueError(f"cohort.clients_per_round {per_round} is below cohort.min_clients {least}")
    if target is not None and target < least:
        raise ValueError(f"cohort.target_clients {target} is below cohort.min_clients {least}")
    if target is not None and per_round is not None and target > per_round:
        raise ValueError(f"cohort.target_clients {target} is above cohort.clients_per_round {per_round}")


def _portable(federation: FederationTables) -> None:
    """Nothing that a machine measures of itself decides over bits that are to be the same everywhere."""
    if federation.federation.bits != "portable":
        return
    if federation.simulation.cohort == "auto":
        raise ValueError(
            "federation.bits 'portable' with simulation.cohort 'auto', which each machine measures for "
            "itself, and which changes last digits: give a number"
        )
    if getattr(federation.model, "quantization", "none") != "none":
        raise ValueError(
            "federation.bits 'portable' with model.quantization, which computes otherwise elsewhere"
        )


def _measurable(federation: FederationTables) -> None:
    """What is to be measured can be: found out here, not after the last round."""
    data, wanted, metric = federation.data, federation.baselines, federation.evaluation.metric
    known = federation.evaluation.metrics_of(data)
    if metric is not None and metric not in known:
        written = metric in ANSWER_METRICS and data.has_answers
        raise ValueError(
            f"evaluation.metric '{metric}' is none of data.kind '{data.kind}': use {listed(known)}"
            + ("; set evaluation.answers for it" if written else "")
        )
    if federation.evaluation.answers and not (data.has_answers and data.test is not None):
        raise ValueError(
            "evaluation.answers needs data.test, and a data.kind whose rows have answers in text"
        )
    decides = metric or next(iter(data.metrics))
    if wanted.majority and decides not in data.constant_metrics:
        raise ValueError(
            f"baselines.majority cannot be judged by '{decides}' of data.kind '{data.kind}'"
            + (f": use {listed(data.constant_metrics)}" if data.constant_metrics else "")
        )
    if wanted.probe and not (data.has_probe and decides == "accuracy"):
        raise ValueError("baselines.probe needs data.kind 'classification' judged by 'accuracy'")
    if federation.evaluation.by is not None and data.test is None:
        raise ValueError("evaluation.by needs data.test, whose rows it tells apart")
    held_out = data.test is not None or data.validation_fraction > 0
    if any(value for _, value in wanted) and not held_out:
        raise ValueError("[baselines] need data.test, or data.validation_fraction above 0")
    measured = data.test is not None and federation.evaluation.every > 0
    if federation.evaluation.patience is not None and not (measured or federation.clients_evaluate):
        raise ValueError("evaluation.patience needs evaluations: data.test, or clients that evaluate")


def _contribution(federation: FederationTables) -> None:
    """What each player brings can be told apart, and measured."""
    if federation.contribution is None:
        return
    if federation.data.test is None:
        raise ValueError("[contribution] is measured on the server's own rows: add data.test")
    if federation.strategy.control_variates or federation.codec.up.shifts:
        raise ValueError(
            "[contribution] needs rounds whose result is a function of who is in: "
            "no strategy.control_variates, no error_feedback 'ef21'"
        )


def listed(names: Iterable[str]) -> str:
    """``'a', 'b' or 'c'``."""
    *first, last = (f"'{name}'" for name in names)
    return f"{', '.join(first)} or {last}" if first else last


def _layered(federation: FederationTables) -> bool:
    """Whether the adapter has tensors of single layers."""
    return federation.adapter is not None and federation.adapter.layered


def _span(training: Training) -> dict[str, object]:
    """What makes two methods' scalars mean the same."""
    return {name: getattr(training, name) for name in ("kind", *training.alike)}
