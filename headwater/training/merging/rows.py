"""rows_of_files(): the rows that a merge goes by, read as the adapters' training read theirs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from headwater.adapters.predict import Predictor
from headwater.data.opened import rows_of
from headwater.errors import DataError
from headwater.tasks.batches import Example
from headwater.tasks.classification import Classification
from headwater.training.score import labelled_examples, reading_of, text_tokens


def rows_of_files(predictor: Predictor, paths: Sequence[Path], *, labelled: bool) -> list[list[Example]]:
    """The examples of each file.

    Args:
        predictor: of an adapter that says how rows are read.
        paths: files or folders of rows.
        labelled: whether labels must be there; where not, those of a classifier's examples mean nothing.

    Raises:
        DataError: a file without rows, or with rows that cannot be used, all at once by file and row.
    """
    found = []
    for path in paths:
        table = rows_of(path, reading_of(predictor).data)
        if labelled or not isinstance(predictor.task, Classification):
            examples = labelled_examples(predictor, table)
        else:
            nothing = np.zeros(1, np.int64)
            tokens = text_tokens(predictor, table)
            examples = [Example(np.array(row, np.int32), nothing) for row in tokens]
        if not examples:
            raise DataError(f"--data {path}", expected="at least one row", got="none")
        found.append(examples)
    return found
