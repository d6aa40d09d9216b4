#!/usr/bin/env bash
# pyarrow 26.0.1: a Parquet file may have two columns of one name. read_table() refuses it (ArrowInvalid, several
# matches), but ParquetFile.iter_batches(), with which large files are read, takes it, and to_pylist() and
# to_pydict() of its batches keep the last column's values and say nothing.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
"$work/env/bin/python" - "$work/two.parquet" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

pq.write_table(pa.Table.from_arrays([pa.array(["first"]), pa.array(["second"])], names=["text", "text"]), sys.argv[1])
try:
    table = str(pq.read_table(sys.argv[1]).num_columns)
except Exception as error:
    table = type(error).__name__
batch = next(pq.ParquetFile(sys.argv[1]).iter_batches())
print("pyarrow", pa.__version__, "| read_table:", table, "| batch:", batch.num_columns, "columns",
      batch.to_pylist(), batch.to_pydict())
assert table == "ArrowInvalid" and batch.num_columns == 2
assert batch.to_pylist() == [{"text": "second"}] and batch.to_pydict() == {"text": ["second"]}
PY
