"""An owner's script: ``python -m tests.hf.agent_script FOLDER AGENT_TOML``."""

from __future__ import annotations

import sys
from pathlib import Path

import headwater.hf
from tests.hf.scripts import model, trainer


def main(folder: Path, agent: str) -> int:
    peft = model(folder)
    return headwater.hf.federate(lambda client, rows: trainer(folder, rows, peft), agent)


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), sys.argv[2]))
