"""The lower bounds that pyproject.toml promises are the versions that `make test-oldest` runs."""

import re
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]


def test_the_oldest_versions_are_the_lower_bounds():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    installed = project[project.index("\ndependencies = [") : project.index("\ndocs = [")]
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', installed))
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "requirements" / "oldest.txt").read_text("utf-8"), re.M))
    assert "torch" in bounds
    assert "pytest" in bounds
    assert {name: Version(bound) for name, bound in bounds.items()} == {
        name: Version(pin) for name, pin in pins.items()
    }
