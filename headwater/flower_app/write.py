"""write_app: a federation file becomes the folder of a Flower app. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import tomli_w

from headwater.config import LoadedFederation
from headwater.errors import ConfigError, StorageError
from headwater.files import make_folder, write_atomically
from headwater.flower_app.settings import FEDERATION, require_runnable

PACKAGE = "federation_app"
"""The app's package: its modules and the federation file."""
_MODULE = '''"""{about}"""

from pathlib import Path

from headwater.flower_app import {name}

app = {name}(Path(__file__).with_name("{file}"))
'''


def write_app(loaded: LoadedFederation, folder: Path, *, clients: int) -> None:
    """Write the app into ``folder``: ``pyproject.toml``, two modules and the resolved federation file.

    No row and no model goes with it: they are read where the federation file's paths lead on each machine.

    Args:
        loaded: the federation.
        folder: new or empty.
        clients: nodes that the run waits for.

    Raises:
        ConfigError: the federation simulates devices, or there is something in ``folder``.
        StorageError: it cannot be written.
    """
    require_runnable(loaded)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(
                f"folder {folder}",
                expected="a new or empty folder",
                got="one with files in it",
                hint="Name another: -o DIR",
            )
        make_folder(folder / PACKAGE)
    except OSError as error:
        raise StorageError(
            f"{folder}", expected="a folder that can be written", got=error.strerror or str(error)
        ) from error
    for module in ("server_app", "client_app"):
        about = f"Flower's {'ServerApp' if module == 'server_app' else 'ClientApp'} of this federation."
        text = _MODULE.format(about=about, name=module, file=FEDERATION)
        write_atomically(folder / PACKAGE / f"{module}.py", text.encode())
    write_atomically(folder / PACKAGE / "__init__.py", b"")
    write_atomically(folder / PACKAGE / FEDERATION, loaded.to_toml().encode())
    write_atomically(folder / "pyproject.toml", tomli_w.dumps(_project(loaded, clients)).encode())


def _project(loaded: LoadedFederation, clients: int) -> dict[str, Any]:
    name = re.sub(r"[^a-z0-9]+", "-", loaded.settings.federation.name.lower()).strip("-") or "federation"
    return {
        "project": {
            "name": name,
            "version": "1.0.0",
            "description": "A Headwater federation, to be run by Flower.",
            # not headwater: a SuperLink would install whatever an index has under that name
            "dependencies": ["flwr>=1.41,<1.43"],
        },
        "build-system": {"requires": ["hatchling"], "build-backend": "hatchling.build"},
        "tool": {
            "hatch": {"build": {"targets": {"wheel": {"packages": [PACKAGE]}}}},
            "flwr": {
                "app": {
                    "publisher": "headwater",
                    "components": {
                        "serverapp": f"{PACKAGE}.server_app:app",
                        "clientapp": f"{PACKAGE}.client_app:app",
                    },
                    "config": {"folder": str(loaded.folder), "clients": clients, "out": "", "set": ""},
                }
            },
        },
    }
