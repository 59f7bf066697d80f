"""Tables of `faults.py`: what was tried, what it came to, and what broke a law."""

import json
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "faults.json"
GROUPS = {
    "damage": "Damaged folders",
    "kills": "Killed and interrupted commands",
    "errors": "Commands in which a step of writing fails",
    "full disk": "Commands without space",
    "two at once": "Two runs at once to one output",
    "checkpoints": "Trainings that go on from a damaged checkpoint",
}
# What a command leaves, in words.
WORDS = {
    "nothing": "nothing there",
    "old": "the old model",
    "old aside": "the old model, put back by the next run",
    "new": "the new model",
}


def _load() -> dict:
    return json.loads(RESULTS.read_text())


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def faults() -> str:
    """One line for each group."""
    rows = []
    for name, group in _load().items():
        title, parts = GROUPS[name], group["parts"].values()
        tried, broken = (sum(part[key] for part in parts) for key in ("tried", "broken"))
        rows.append([title, str(tried), str(tried - broken), f"**{broken}**" if broken else "0"])
    return _table(["", "tried", "all laws held", "a law was broken"], rows)


def _group(name: str) -> Callable[[], str]:
    def table() -> str:
        parts = _load()[name]["parts"]
        outcomes = list(dict.fromkeys(key for part in parts.values() for key in part["came to"]))
        outcomes.sort(key=lambda key: -sum(part["came to"].get(key, 0) for part in parts.values()))
        rows = []
        for title, part in parts.items():
            cells = [str(part["came to"].get(key, 0)) for key in outcomes]
            rows.append([title, str(part["tried"]), *cells, f"**{part['broken']}**" if part["broken"] else "0"])
        return _table(["", "tried", *(WORDS.get(key, key) for key in outcomes), "a law was broken"], rows)

    return table


def faults_broken() -> str:
    """Every way in which a law was broken, how often, and where first."""
    rows = []
    for name, group in _load().items():
        title = GROUPS[name]
        for reason, count in group["reasons"].items():
            where = next(case for case, result in group["broken"].items() if reason in result["broken"])
            rows.append([title, reason.replace("|", "/"), str(count), f"`{where}`"])
    return (
        _table(["", "what did not hold", "cases", "for instance"], rows) if rows else "Every law held in every case."
    )


def faults_setting() -> str:
    """What ran."""
    lines = {}
    for name, group in _load().items():
        found = group["setting"]
        drawn = "" if found["fraction"] == 1 else f", a fraction of {found['fraction']} of the cases"
        drawn += " (stopped before its end)" if found.get("stopped") else ""
        versions = f"Python {found['python']}, torch {found['torch']}, transformers {found['transformers']}"
        told = f"revision `{found['revision']}` with {versions}, seed {found['seed']}{drawn}"
        lines.setdefault(told, []).append(GROUPS[name])
    if len(lines) == 1:
        return f"Run at {next(iter(lines))}."
    return "\n".join(f"- {', '.join(names)}: run at {told}." for told, names in lines.items())


BLOCKS = {"faults": faults, "faults-broken": faults_broken, "faults-setting": faults_setting}
BLOCKS |= {f"faults-{name.replace(' ', '-')}": _group(name) for name in GROUPS}
