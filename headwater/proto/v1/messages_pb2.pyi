from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Payload(_message.Message):
    __slots__ = ("codec", "body")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    codec: str
    body: bytes
    def __init__(self, codec: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class NamedPayload(_message.Message):
    __slots__ = ("name", "payload")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    name: str
    payload: Payload
    def __init__(self, name: _Optional[str] = ..., payload: _Optional[_Union[Payload, _Mapping]] = ...) -> None: ...

class Metric(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("run", "federation", "model_sha256", "version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    federation: str
    model_sha256: str
    version: str
    def __init__(self, run: _Optional[str] = ..., federation: _Optional[str] = ..., model_sha256: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ClientProfile(_message.Message):
    __slots__ = ("client", "train_examples", "validation_examples", "model_sha256", "spec", "run", "version", "device", "reads", "train_targets")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    TRAIN_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TARGETS_FIELD_NUMBER: _ClassVar[int]
    client: str
    train_examples: int
    validation_examples: int
    model_sha256: str
    spec: str
    run: str
    version: str
    device: str
    reads: _containers.RepeatedScalarFieldContainer[str]
    train_targets: int
    def __init__(self, client: _Optional[str] = ..., train_examples: _Optional[int] = ..., validation_examples: _Optional[int] = ..., model_sha256: _Optional[str] = ..., spec: _Optional[str] = ..., run: _Optional[str] = ..., version: _Optional[str] = ..., device: _Optional[str] = ..., reads: _Optional[_Iterable[str]] = ..., train_targets: _Optional[int] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("run", "round", "client", "spec", "state_codec", "state_sha256", "accepted_round", "plan", "masked_weight")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_CODEC_FIELD_NUMBER: _ClassVar[int]
    STATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_ROUND_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    MASKED_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    client: str
    spec: str
    state_codec: str
    state_sha256: bytes
    accepted_round: int
    plan: str
    masked_weight: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., spec: _Optional[str] = ..., state_codec: _Optional[str] = ..., state_sha256: _Optional[bytes] = ..., accepted_round: _Optional[int] = ..., plan: _Optional[str] = ..., masked_weight: _Optional[int] = ...) -> None: ...

class EvaluateRequest(_message.Message):
    __slots__ = ("run", "round", "client", "spec", "state_codec", "state_sha256")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_CODEC_FIELD_NUMBER: _ClassVar[int]
    STATE_SHA256_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    client: str
    spec: str
    state_codec: str
    state_sha256: bytes
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., spec: _Optional[str] = ..., state_codec: _Optional[str] = ..., state_sha256: _Optional[bytes] = ...) -> None: ...

class Update(_message.Message):
    __slots__ = ("run", "round", "client", "spec", "base_sha256", "delta", "statistics", "examples", "steps", "metrics")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    BASE_SHA256_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    client: str
    spec: str
    base_sha256: bytes
    delta: Payload
    statistics: _containers.RepeatedCompositeFieldContainer[NamedPayload]
    examples: int
    steps: int
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., spec: _Optional[str] = ..., base_sha256: _Optional[bytes] = ..., delta: _Optional[_Union[Payload, _Mapping]] = ..., statistics: _Optional[_Iterable[_Union[NamedPayload, _Mapping]]] = ..., examples: _Optional[int] = ..., steps: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("client", "round", "examples", "metrics", "run")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    client: str
    round: int
    examples: int
    metrics: _containers.RepeatedCompositeFieldContainer[Metric]
    run: str
    def __init__(self, client: _Optional[str] = ..., round: _Optional[int] = ..., examples: _Optional[int] = ..., metrics: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ..., run: _Optional[str] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("client", "round", "reason", "run", "code", "numbers")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    client: str
    round: int
    reason: str
    run: str
    code: int
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, client: _Optional[str] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ..., run: _Optional[str] = ..., code: _Optional[int] = ..., numbers: _Optional[_Iterable[int]] = ...) -> None: ...

class MemberRow(_message.Message):
    __slots__ = ("client", "numbers")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    client: str
    numbers: _containers.RepeatedCompositeFieldContainer[Metric]
    def __init__(self, client: _Optional[str] = ..., numbers: _Optional[_Iterable[_Union[Metric, _Mapping]]] = ...) -> None: ...

class GroupReply(_message.Message):
    __slots__ = ("client", "run", "round", "replies", "sum", "gap", "rows")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    client: str
    run: str
    round: int
    replies: _containers.RepeatedScalarFieldContainer[bytes]
    sum: bytes
    gap: bytes
    rows: _containers.RepeatedCompositeFieldContainer[MemberRow]
    def __init__(self, client: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., replies: _Optional[_Iterable[bytes]] = ..., sum: _Optional[bytes] = ..., gap: _Optional[bytes] = ..., rows: _Optional[_Iterable[_Union[MemberRow, _Mapping]]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("profile", "update", "evaluation", "failure", "group", "mask")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    profile: ClientProfile
    update: Update
    evaluation: Evaluation
    failure: Failure
    group: GroupReply
    mask: MaskReply
    def __init__(self, profile: _Optional[_Union[ClientProfile, _Mapping]] = ..., update: _Optional[_Union[Update, _Mapping]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., group: _Optional[_Union[GroupReply, _Mapping]] = ..., mask: _Optional[_Union[MaskReply, _Mapping]] = ...) -> None: ...

class GroupRequest(_message.Message):
    __slots__ = ("client", "run", "round", "envelopes", "merge_plan")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ENVELOPES_FIELD_NUMBER: _ClassVar[int]
    MERGE_PLAN_FIELD_NUMBER: _ClassVar[int]
    client: str
    run: str
    round: int
    envelopes: _containers.RepeatedScalarFieldContainer[bytes]
    merge_plan: str
    def __init__(self, client: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., envelopes: _Optional[_Iterable[bytes]] = ..., merge_plan: _Optional[str] = ...) -> None: ...

class MaskRequest(_message.Message):
    __slots__ = ("run", "round", "client", "attempt", "step")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    run: str
    round: int
    client: str
    attempt: bytes
    step: int
    def __init__(self, run: _Optional[str] = ..., round: _Optional[int] = ..., client: _Optional[str] = ..., attempt: _Optional[bytes] = ..., step: _Optional[int] = ...) -> None: ...

class MaskReply(_message.Message):
    __slots__ = ("client", "run", "round", "attempt", "step", "content")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    client: str
    run: str
    round: int
    attempt: bytes
    step: int
    content: bytes
    def __init__(self, client: _Optional[str] = ..., run: _Optional[str] = ..., round: _Optional[int] = ..., attempt: _Optional[bytes] = ..., step: _Optional[int] = ..., content: _Optional[bytes] = ...) -> None: ...

class MaskedSum(_message.Message):
    __slots__ = ("names", "keys", "exactly", "plans", "parts", "dropouts", "colluding", "least")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    EXACTLY_FIELD_NUMBER: _ClassVar[int]
    PLANS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DROPOUTS_FIELD_NUMBER: _ClassVar[int]
    COLLUDING_FIELD_NUMBER: _ClassVar[int]
    LEAST_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    keys: _containers.RepeatedScalarFieldContainer[bytes]
    exactly: _containers.RepeatedScalarFieldContainer[int]
    plans: _containers.RepeatedScalarFieldContainer[bytes]
    parts: _containers.RepeatedCompositeFieldContainer[RingPart]
    dropouts: float
    colluding: float
    least: int
    def __init__(self, names: _Optional[_Iterable[str]] = ..., keys: _Optional[_Iterable[bytes]] = ..., exactly: _Optional[_Iterable[int]] = ..., plans: _Optional[_Iterable[bytes]] = ..., parts: _Optional[_Iterable[_Union[RingPart, _Mapping]]] = ..., dropouts: _Optional[float] = ..., colluding: _Optional[float] = ..., least: _Optional[int] = ...) -> None: ...

class RingPart(_message.Message):
    __slots__ = ("name", "size", "low", "high")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    low: int
    high: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., low: _Optional[int] = ..., high: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("profile", "train", "evaluate", "group", "mask")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    profile: ProfileRequest
    train: TrainRequest
    evaluate: EvaluateRequest
    group: GroupRequest
    mask: MaskRequest
    def __init__(self, profile: _Optional[_Union[ProfileRequest, _Mapping]] = ..., train: _Optional[_Union[TrainRequest, _Mapping]] = ..., evaluate: _Optional[_Union[EvaluateRequest, _Mapping]] = ..., group: _Optional[_Union[GroupRequest, _Mapping]] = ..., mask: _Optional[_Union[MaskRequest, _Mapping]] = ...) -> None: ...

class SignedReply(_message.Message):
    __slots__ = ("reply", "signature")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    signature: bytes
    def __init__(self, reply: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...
