"""Every codec of the table is read, bit for bit, by a reader that was written from the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

from headwater.compression.table import CODEC_IDS, codec_by_id
from headwater.errors import DecodeError
from headwater.protocol.messages import Payload
from tests.compression import stranger_codecs, stranger_gaps
from tests.fuzz.decoders import FAMILIES, SPECS


@pytest.mark.parametrize("id", sorted(CODEC_IDS))
def test_a_stranger_reads_what_we_read(id):
    read = 0
    for data in FAMILIES[f"codec-{id}"].seeds:
        spec, body = SPECS[data[0]], data[1:]
        try:
            ours = codec_by_id(id).decode(Payload(id, body), spec)
        except DecodeError:
            continue
        theirs = stranger_codecs.decode(id, body, [t.shape for t in spec])
        for t, values in zip(spec, theirs, strict=True):
            mine = ours[t.name].numpy().reshape(-1)
            assert np.array_equal(mine.view(np.uint32), values.view(np.uint32)), (id, t.name)
        read += 1
    assert read >= 8


def test_the_default_codec_is_read_in_150_lines():
    """By one file that has nothing but the standard library (decisions, "A stranger's decoder")."""
    code = Path(stranger_gaps.__file__).read_text()
    assert len(code.splitlines()) <= 150
    assert re.findall(r"^(?:from|import) .*", code, re.M) == ["import struct"]


def test_the_stranger_has_nothing_of_ours():
    for module in (stranger_codecs, stranger_gaps):
        tree = ast.parse(Path(module.__file__).read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert names <= {"math", "struct", "numpy", "tests.compression.stranger_gaps"}
