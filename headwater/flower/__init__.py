"""How Headwater rides on Flower. Everything outside Flower's documented interface is touched here only.

:mod:`.records`: our bytes as the content of a Flower message. :mod:`.fleet_server`: the server's end of
Flower's Fleet API. :mod:`.fleet_client`: a device's end. ``tests/flower_layer/test_flower.py`` names
what they rely on.
"""

from headwater.flower.records import (
    RECORD,
    as_array,
    assume_task_identity,
    count_bytes,
    pack,
    padding_in,
    unpack,
)

__all__ = ["RECORD", "as_array", "assume_task_identity", "count_bytes", "pack", "padding_in", "unpack"]
