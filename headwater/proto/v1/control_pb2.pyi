from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Status(_message.Message):
    __slots__ = ("version", "started", "rss_bytes", "certificate_days", "runs", "clients", "refused", "errors")
    class RefusedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DAYS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    version: str
    started: float
    rss_bytes: int
    certificate_days: int
    runs: _containers.RepeatedCompositeFieldContainer[RunRow]
    clients: _containers.RepeatedCompositeFieldContainer[ClientRow]
    refused: _containers.ScalarMap[str, int]
    errors: _containers.RepeatedCompositeFieldContainer[WatchEvent]
    def __init__(self, version: _Optional[str] = ..., started: _Optional[float] = ..., rss_bytes: _Optional[int] = ..., certificate_days: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[RunRow, _Mapping]]] = ..., clients: _Optional[_Iterable[_Union[ClientRow, _Mapping]]] = ..., refused: _Optional[_Mapping[str, int]] = ..., errors: _Optional[_Iterable[_Union[WatchEvent, _Mapping]]] = ...) -> None: ...

class RunRow(_message.Message):
    __slots__ = ("run", "name", "state", "reason", "round", "rounds", "accepted", "asked", "metric", "value", "best_round", "best_value", "bytes_up", "bytes_down", "submitted", "seconds_per_round", "open", "note", "warnings", "privacy")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BEST_ROUND_FIELD_NUMBER: _ClassVar[int]
    BEST_VALUE_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_ROUND_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    run: str
    name: str
    state: str
    reason: str
    round: int
    rounds: int
    accepted: int
    asked: int
    metric: str
    value: float
    best_round: int
    best_value: float
    bytes_up: int
    bytes_down: int
    submitted: float
    seconds_per_round: float
    open: int
    note: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    privacy: str
    def __init__(self, run: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., accepted: _Optional[int] = ..., asked: _Optional[int] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., best_round: _Optional[int] = ..., best_value: _Optional[float] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., submitted: _Optional[float] = ..., seconds_per_round: _Optional[float] = ..., open: _Optional[int] = ..., note: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ..., privacy: _Optional[str] = ...) -> None: ...

class ClientRow(_message.Message):
    __slots__ = ("client", "state", "fingerprint", "seen_s_ago", "doing", "examples", "accepted_rounds", "failed_rounds", "bytes_up", "bytes_down", "version", "last_error")
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SEEN_S_AGO_FIELD_NUMBER: _ClassVar[int]
    DOING_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    FAILED_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_UP_FIELD_NUMBER: _ClassVar[int]
    BYTES_DOWN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    client: str
    state: str
    fingerprint: str
    seen_s_ago: float
    doing: str
    examples: int
    accepted_rounds: int
    failed_rounds: int
    bytes_up: int
    bytes_down: int
    version: str
    last_error: str
    def __init__(self, client: _Optional[str] = ..., state: _Optional[str] = ..., fingerprint: _Optional[str] = ..., seen_s_ago: _Optional[float] = ..., doing: _Optional[str] = ..., examples: _Optional[int] = ..., accepted_rounds: _Optional[int] = ..., failed_rounds: _Optional[int] = ..., bytes_up: _Optional[int] = ..., bytes_down: _Optional[int] = ..., version: _Optional[str] = ..., last_error: _Optional[str] = ...) -> None: ...

class AdapterRow(_message.Message):
    __slots__ = ("run", "version", "round", "parent", "sha256", "config_sha256", "cohort", "metric", "value", "best", "kept", "created", "note")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONFIG_SHA256_FIELD_NUMBER: _ClassVar[int]
    COHORT_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    run: str
    version: int
    round: int
    parent: int
    sha256: str
    config_sha256: str
    cohort: _containers.RepeatedScalarFieldContainer[str]
    metric: str
    value: float
    best: bool
    kept: bool
    created: float
    note: str
    def __init__(self, run: _Optional[str] = ..., version: _Optional[int] = ..., round: _Optional[int] = ..., parent: _Optional[int] = ..., sha256: _Optional[str] = ..., config_sha256: _Optional[str] = ..., cohort: _Optional[_Iterable[str]] = ..., metric: _Optional[str] = ..., value: _Optional[float] = ..., best: bool = ..., kept: bool = ..., created: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("text", "integer", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    integer: int
    number: float
    def __init__(self, text: _Optional[str] = ..., integer: _Optional[int] = ..., number: _Optional[float] = ...) -> None: ...

class WatchEvent(_message.Message):
    __slots__ = ("seq", "time", "kind", "run", "text", "data")
    class DataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Value
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ...) -> None: ...
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    seq: int
    time: float
    kind: str
    run: str
    text: str
    data: _containers.MessageMap[str, Value]
    def __init__(self, seq: _Optional[int] = ..., time: _Optional[float] = ..., kind: _Optional[str] = ..., run: _Optional[str] = ..., text: _Optional[str] = ..., data: _Optional[_Mapping[str, Value]] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("after", "daemon")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    DAEMON_FIELD_NUMBER: _ClassVar[int]
    after: int
    daemon: str
    def __init__(self, after: _Optional[int] = ..., daemon: _Optional[str] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("toml", "folder")
    TOML_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    toml: str
    folder: str
    def __init__(self, toml: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ("run", "folder")
    RUN_FIELD_NUMBER: _ClassVar[int]
    FOLDER_FIELD_NUMBER: _ClassVar[int]
    run: str
    folder: str
    def __init__(self, run: _Optional[str] = ..., folder: _Optional[str] = ...) -> None: ...

class ChangeRequest(_message.Message):
    __slots__ = ("run", "changes")
    class ChangesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RUN_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    run: str
    changes: _containers.ScalarMap[str, str]
    def __init__(self, run: _Optional[str] = ..., changes: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AcceptRequest(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: str
    def __init__(self, request: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("client",)
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    client: str
    def __init__(self, client: _Optional[str] = ...) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: str
    def __init__(self, run: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("run", "version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    version: int
    def __init__(self, run: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("run", "version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    version: int
    def __init__(self, run: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ForgetRequest(_message.Message):
    __slots__ = ("run", "client")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    run: str
    client: str
    def __init__(self, run: _Optional[str] = ..., client: _Optional[str] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("run", "version")
    RUN_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run: str
    version: int
    def __init__(self, run: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...
