#!/usr/bin/env bash
# pyarrow 26.0.1: a Parquet file may have two columns of one name, and pyarrow reads both; but to_pylist() and
# to_pydict() of a batch, which training code reads rows with, keep the last one's values and say nothing.
# Table.column(name) of the same table raises, since the name is not unique.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1
"$work/env/bin/python" - "$work/two.parquet" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

pq.write_table(pa.Table.from_arrays([pa.array(["first"]), pa.array(["second"])], names=["text", "text"]), sys.argv[1])
table = pq.read_table(sys.argv[1])
batch = next(pq.ParquetFile(sys.argv[1]).iter_batches())
try:
    by_name = table.column("text").to_pylist()
except KeyError as error:
    by_name = f"KeyError: {error}"
print("pyarrow", pa.__version__, table.column_names, batch.to_pylist(), batch.to_pydict(), by_name)
assert table.num_columns == 2
assert batch.to_pylist() == [{"text": "second"}] and batch.to_pydict() == {"text": ["second"]}
assert isinstance(by_name, str) and by_name.startswith("KeyError")
PY
