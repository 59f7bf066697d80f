"""Files of results: read and written whole, so that a run that is killed leaves the last whole one."""

import json
import os
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    """What is there, or nothing yet."""
    return json.loads(file.read_text()) if file.exists() else {}


def write(file: Path, values: dict[str, Any]) -> None:
    """All of it or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = file.with_suffix(f".{os.getpid()}.tmp")
    scratch.write_text(json.dumps(values, indent=1) + "\n")
    scratch.replace(file)
