"""The how-to's own snippets, on the sample they speak of."""

import re
from pathlib import Path

from headwater.config import load_federation
from headwater.data.federated import FederatedData
from headwater.seeds.keys import Key
from tests.data.toys import Letters

ROOT = Path(__file__).parents[2]
REST = (
    '[federation]\nname = "t"\nrounds = 1\n[model]\nkind = "encoder"\npath = "m"\n'
    '[adapter]\nkind = "lora"\n[training]\nkind = "backprop"\n'
)


def test_the_how_to_opens_the_sample(tmp_path):
    text = (ROOT / "docs/how-to/bring-your-own-data.md").read_text(encoding="utf-8")
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "f.toml").write_text(REST + toml)
    loaded = load_federation(tmp_path / "f.toml", folder=ROOT / "examples" / "own-data")
    data = FederatedData.open(loaded, Letters(), Key.root(0))
    assert data.clients == ("clinic", "library", "workshop")
    assert [data.rows(name) for name in data.clients] == [(31, 3), (31, 3), (28, 3)]
    assert data.warnings == ()
    test = data.test()
    assert test is not None
    assert len(test) == 30
