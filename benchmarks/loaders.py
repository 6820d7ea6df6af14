"""Loaders of trained networks that come inside Python packages, for `deployment.py`.

Weights, images and texts are not a part of this project: the folder MPQ_MODELS (default
../shared/models) has a file for each network.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("MPQ_MODELS", Path(__file__).parents[2] / "shared" / "models"))


def loader(name: str) -> Any:
    """The folder's file of that name, loaded as a module."""
    if str(FOLDER) not in sys.path:
        sys.path.append(str(FOLDER))  # They import each other.
    # Files here have the same names: theirs are loaded from their own paths.
    spec = importlib.util.spec_from_file_location(f"mpq_models_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
