"""
Damage folders, kill commands, fill the disk, and see whether the promises hold.

    python benchmarks/faults.py               # all that is missing, about half an hour
    python benchmarks/faults.py --fraction 0.1  # a seeded tenth

Writes `benchmarks/results/faults.json`: for each group how many cases there were and what they came to, and every case
that broke a law. Single cases are kept in `build/faults/`, and a run that is killed goes on; with other code of hf_esc
it begins anew.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import faults_damage  # noqa: E402
import faults_writes  # noqa: E402
from faults_writes import BY_NAME, FORGET, MODEL, NOTES, OTHER, Scenario  # noqa: E402
from results import read, write  # noqa: E402

from tests.hub import stand_in_hub  # noqa: E402

SEED = 0
RESULTS = HERE / "results" / "faults.json"
_ON = ["--dataset", "{data}", "--device", "cpu"]
_MADE = ["--no-evaluate", "--output", "{out}"]
# The folders that are damaged: a command for each, after which `evaluate` and `push` add what they write.
FOLDERS = {
    "esc": [["erase", MODEL, *_ON, "--forget", FORGET, "--rank", "2", *_MADE]],
    "esc of all-cnn": [["erase", "embedded/all-cnn", *_ON, "--forget", FORGET, "--rank", "2", *_MADE]],
    "esc of vit": [["erase", "embedded/vit", *_ON, "--forget", FORGET, "--rank", "2", *_MADE]],
    "esc-t": [["erase", MODEL, *_ON, "--forget", FORGET, "--method", "esc-t", *_MADE]],
    "remap": [["erase", MODEL, *_ON, "--forget", FORGET, "--method", "remap", *_MADE]],
    "delete": [list(faults_writes._DELETE)],
    "esc twice": [
        ["erase", MODEL, *_ON, "--forget", OTHER, "--rank", "2", "--no-evaluate", "--output", "{first}"],
        ["erase", "{first}", *_ON, "--forget", FORGET, "--rank", "2", *_MADE],
    ],
    "evaluated and pushed": [
        ["erase", MODEL, *_ON, "--forget", FORGET, "--rank", "2", *_MADE],
        ["evaluate", "{out}", *_ON, "--seeds", "1", "--output", "{out}/evaluation.json"],
        ["push", "{out}", "me/whole"],
    ],
}
# The commands in which every step of writing fails once; in the others, and from a step on, a tenth of them do.
EVERY_STEP = [
    "erase, new",
    "erase, overwrite",
    "train esc-t, overwrite",
    "train delete, overwrite",
    "push, new",
    "evaluate",
]
# Those that are checked by going on with a training.
CHECKPOINTS = {"esc-t": BY_NAME["train esc-t, resume"], "delete": BY_NAME["train delete, resume"]}


class Server:
    """`faults_child.py`, in a process that has imported everything; see there."""

    def __init__(self, hub: Any, home: Path):
        home.mkdir(parents=True, exist_ok=True)
        # What jobs import, which the process then imports itself: the jobs to come start sooner.
        self.home, self.learns, self.news, self.modules = home, True, [], []
        path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
        environment = hub.environment(home / "hub", PYTHONPATH=path, HF_HUB_DISABLE_PROGRESS_BARS="1")
        self.errors = (home / "stderr").open("w")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
        self.process: Any = subprocess.Popen([sys.executable, str(HERE / "faults_child.py")], env=environment, **pipes)
        self.versions = json.loads(self._line())

    def _line(self) -> str:
        if not (line := self.process.stdout.readline()):
            raise SystemExit(f"The process of the faults has ended: {Path(self.errors.name).read_text()[-3000:]}")
        return line

    def request(self, jobs: list[dict]) -> list[dict]:
        """Run jobs side by side."""
        found = self.home / "modules.json"
        request = {"jobs": [{**job, "modules": str(found)} for job in jobs] if self.learns else jobs}
        print(json.dumps(request | {"import": self.news}), file=self.process.stdin, flush=True)
        reply = json.loads(self._line())
        self.news = json.loads(found.read_text()) if self.learns and found.exists() else []
        self.modules += self.news
        return reply

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.errors.close()


class Faults:
    """All cases of a seed: each has a group, a name that stays, and a function that tries it."""

    def __init__(self, work: Path, server: Server, hub: Any, seed: int = SEED, fraction: float = 1.0, only: str = ""):
        self.work, self.server, self.seed, self.fraction, self.only = work, server, seed, fraction, only
        self.bench = faults_writes.Bench(work, server.request, hub)
        self.hub = hub
        self.whole: dict[str, dict] = {}

    def chosen(self, name: str) -> bool:
        """Whether a case is one of this fraction."""
        return random.Random(f"{self.seed}/{name}").random() < self.fraction and re.search(self.only, name) is not None

    # What is needed before.

    def prepare(self) -> None:
        """Make images, the folders that are damaged, and the templates of what commands find."""
        marker, stamp = self.work / "made.json", {key: self.server.versions[key] for key in ("source", "torch")}
        if read(marker).get("stamp") == stamp:
            self.server.learns, self.server.news = False, read(marker)["modules"]
            return
        if self.work.exists():
            shutil.rmtree(self.work)
        self.work.mkdir(parents=True)
        self._must({**self.bench.job([], self.work), "do": "make", "folder": str(self.work), "train": 200, "test": 60})
        templates, folders = self.work / "templates", self.work / "folders"
        for name, commands in FOLDERS.items():
            self._run(commands, folders / name)
        repo = self.hub.repo("me/whole")
        shutil.rmtree(folders / "evaluated and pushed")
        for path, data in repo.files.items():
            if path != ".gitattributes":
                file = folders / "evaluated and pushed" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
        self._run([["erase", MODEL, *_ON, "--forget", OTHER, "--rank", "3", *_MADE]], templates / "old")
        shutil.copytree(folders / "esc", templates / "erased")
        (templates / "old" / NOTES).write_text("The user's own.\n")
        for name, scenario in CHECKPOINTS.items():
            target = templates / f"checkpoint {name}"
            self._run([[word for word in scenario.words if word not in faults_writes._RESUME]], target)
            steps = sorted(target.glob("checkpoint-*"), key=lambda item: int(item.name.split("-")[1]))
            for item in target.iterdir():  # what a run leaves that was killed after its first checkpoint
                if item != steps[0]:
                    shutil.rmtree(item) if item.is_dir() else item.unlink()
        self.server.learns = False
        write(marker, {"stamp": stamp, "modules": self.server.modules})

    def _run(self, commands: list[list[str]], out: Path) -> None:
        for words in commands:
            values = {"out": out, "first": self.work / "first", "data": self.work / "data"}
            self._must(self.bench.job([word.format(**values) for word in words], self.work))

    def _must(self, job: dict) -> None:
        [ended] = self.server.request([job])
        if ended["code"] != 0:
            raise SystemExit(f"{job} ends with {ended['code']}: {ended['err'][-3000:]}")

    # The cases.

    def groups(self) -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
        """Each group with its cases: a name, and what to call."""
        yield "kills", self._kills()
        yield "errors", self._errors()
        yield "full disk", self._full()
        yield "two at once", self._together()
        yield "checkpoints", self._checkpoints()

    def _kills(self) -> Iterator[tuple[str, Any]]:
        for scenario in faults_writes.SCENARIOS:
            for number in range(14):
                name = f"{scenario.name}/{number}"
                if not self.chosen(name):
                    continue
                draw = random.Random(f"{self.seed}/{name}")
                interrupts = number % 4 == 3
                if number % 2:  # at a moment
                    fresh = number == 13
                    moment = draw.random()
                    yield (
                        name,
                        lambda s=scenario, m=moment, i=interrupts, f=fresh: self.bench.disturbed(
                            s,
                            # An interpreter of its own takes seconds for its imports.
                            kill_after=m * self.bench.reference(s)["seconds"] + (9.0 if f else 0.0),
                            signal=2 if i else 9,
                            **({"fresh": True} if f else {}),
                        ),
                    )
                else:  # at a step of writing
                    share, action = draw.random(), "interrupt" if number % 8 == 6 else "kill"
                    yield (
                        name,
                        lambda s=scenario, p=share, a=action: self.bench.disturbed(
                            s, hook={"at": int(p * self.bench.reference(s)["steps"]), "action": a}
                        ),
                    )

    def _errors(self) -> Iterator[tuple[str, Any]]:
        for scenario in faults_writes.SCENARIOS:
            if self.only and not re.search(self.only, scenario.name):
                continue  # its steps are not counted for nothing
            if self.fraction < 0.5 and scenario.name != "erase, overwrite":
                continue
            for at in range(self.bench.reference(scenario)["steps"]):
                for action in ("error", "full"):
                    name = f"{scenario.name}/{action} at {at}"
                    every = scenario.name in EVERY_STEP and action == "error"
                    if self.chosen(name) and (every or random.Random(f"{self.seed}{name}").random() < 0.1):
                        yield (
                            name,
                            lambda s=scenario, i=at, a=action: self.bench.disturbed(s, hook={"at": i, "action": a}),
                        )

    def _full(self) -> Iterator[tuple[str, Any]]:
        for scenario in faults_writes.SCENARIOS:
            for size in (0, 200, 2_000, 20_000, 200_000, 1_260_000, 1_263_000):
                if self.chosen(name := f"{scenario.name}/files of {size} bytes"):
                    yield name, lambda s=scenario, n=size: self.bench.disturbed(s, file_size=n)
            if self.chosen(name := f"{scenario.name}/nothing in the cache, files of 2,000 bytes"):
                cache = str(self.work / "cold" / scenario.name)
                yield name, lambda s=scenario, c=cache: self.bench.disturbed(s, file_size=2_000, cache=c)
            if self.chosen(name := f"{scenario.name}/stdout is full"):
                yield name, lambda s=scenario: self.bench.disturbed(s, stdout="/dev/full")

    def _together(self) -> Iterator[tuple[str, Any]]:
        pairs = {name: BY_NAME[name] for name in ("erase, new", "erase, overwrite", "train delete, new")}
        pairs |= {name: BY_NAME[name] for name in ("train delete, overwrite", "train esc-t, new")}
        for title, scenario in pairs.items():
            other = [OTHER if word == FORGET else word for word in scenario.words]
            for number in range(6):
                if self.chosen(name := f"{title}/{number}"):
                    share = random.Random(f"{self.seed}/{name}").random() / 2 if number else 0.0
                    yield (
                        name,
                        lambda s=scenario, o=other, p=share: self.bench.together(
                            list(s.words), o, s.before, p * self.bench.reference(s)["seconds"]
                        ),
                    )

    def _checkpoints(self) -> Iterator[tuple[str, Any]]:
        """Damaged checkpoints, from which a training is to go on as if nothing had been, or to refuse."""
        for kind, scenario in CHECKPOINTS.items():
            for number, case in enumerate(faults_damage.damages(self.work / "templates", self.seed)):
                name = f"{kind}/{number}"
                if case["folder"] != scenario.before or case["how"] == "swapped" or not self.chosen(name):
                    continue
                yield name, lambda s=scenario, c=case: self._resumed(s, c)

    def _resumed(self, scenario: Scenario, case: dict) -> dict:
        expected = self.bench.reference(scenario)
        folder, values = self.bench.place(scenario)
        faults_damage.spoil(case, values["out"] / case["file"])
        [ended] = self.server.request([self.bench.job(scenario.filled(**values), folder)])
        broken = faults_writes.ended_badly(ended, {}, scenario)
        same = self.bench.state(scenario, values) == expected["after"]
        if ended["code"] in scenario.codes and not same:
            broken.append("goes on to another result")
        outcome = "goes on as if nothing had been" if same else "refused" if ended["code"] == 2 else "other"
        shutil.rmtree(folder)
        found = {"came to": outcome, "broken": broken, "case": case}
        return found | ({"says": ended["err"][-400:]} if broken else {})

    def damaged(self, cases: list[tuple[str, dict]]) -> Iterator[tuple[str, dict]]:
        """Look at damaged folders, many in one process; one that ends the process is judged for that."""
        folders, images = self.work / "folders", str(self.work / "images.safetensors")
        base = {"folders": str(folders), "images": images, "forget": 1}
        if not self.whole:
            for folder in sorted(folders.iterdir()):
                [seen] = self.server.request(
                    [self.bench.job([], self.work) | base | {"do": "look", "folder": str(folder)}]
                )
                self.whole[folder.name] = json.loads(seen["out"])
                if self.whole[folder.name]["verify"]["code"]:
                    raise SystemExit(f"{folder.name} is not whole: {self.whole[folder.name]}")
        left = list(cases)
        while left:
            job = self.bench.job([], self.work) | base | {"do": "damage", "cases": [case for _, case in left[:40]]}
            [ended] = self.server.request([job | {"limit": 300}])
            lines = [json.loads(line) for line in ended["out"].splitlines() if line.startswith("{")]
            for (name, case), found in zip(left, lines, strict=False):
                outcome, broken = faults_damage.judged(found, self.whole[case["folder"]])
                for way in ("load", "auto"):
                    found[way].pop("logits", None)
                seen = {"found": found} if broken else {}
                yield name, {"came to": outcome, "broken": broken, "case": case, **seen}
            if len(lines) < len(left[:40]):
                name, case = left[len(lines)]
                says = f"ends the process: {ended['signal'] or ended['code']}"
                yield (
                    name,
                    {"came to": "ends the process", "broken": [says], "case": case, "says": ended["err"][-400:]},
                )
                lines.append({})
            left = left[len(lines) :]


def summary(known: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """For each group what ran, counts for each part of it, and all cases that broke a law."""
    found: dict[str, Any] = {}
    for group, entry in known.items():
        parts: dict[str, dict] = {}
        results = entry["cases"]
        for name, result in results.items():
            part = parts.setdefault(name.split("/")[0], {"tried": 0, "broken": 0, "came to": Counter()})
            part["tried"] += 1
            part["broken"] += bool(result["broken"])
            part["came to"][result.get("came to") or result.get("left") or str(result["ended"])] += 1
        reasons = Counter(reason for result in results.values() for reason in result["broken"])
        found[group] = {
            "setting": entry["setting"],
            "parts": parts,
            "reasons": dict(reasons.most_common()),
            "broken": {name: _short(result) for name, result in results.items() if result["broken"]},
        }
    return found


def _short(result: dict) -> dict:
    return {key: value for key, value in result.items() if key not in ("says", "found")}


def run(faults: Faults, known: dict[str, dict[str, Any]], keep: Any, groups: list[str], setting: dict) -> None:
    """Try all cases that are not there yet, or were with other code of hf_esc; `keep` is called after each."""

    def there(group: str) -> dict[str, dict]:
        entry = known.get(group, {"setting": {}})
        if any(entry["setting"].get(key) != setting[key] for key in ("source", "seed")):
            entry = {"cases": {}}
        known[group] = {"setting": setting, "cases": entry["cases"]}
        return known[group]["cases"]

    if "damage" in groups:
        done, wanted = there("damage"), []
        for number, case in enumerate(faults_damage.damages(faults.work / "folders", faults.seed)):
            name = f"{case['folder']}/{case['file']}/{case['how']} {number}"
            if name not in done and faults.chosen(name):
                wanted.append((name, case))
        for number, (name, result) in enumerate(faults.damaged(wanted), 1):
            done[name] = result
            keep("damage", number, len(wanted), name, result)
    for group, made in faults.groups():
        if group in groups:
            done = there(group)
            for number, (name, attempt) in enumerate(made, 1):
                if name not in done:
                    done[name] = attempt()
                    keep(group, number, None, name, done[name])


GROUPS = ["damage", "kills", "errors", "full disk", "two at once", "checkpoints"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0, help="Of the cases, drawn by the seed.")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--only", default="", help="A regular expression that is found in a case's name.")
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--output", type=Path, default=RESULTS, help="The file of the summary.")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "faults")
    arguments = parser.parse_args()
    with stand_in_hub() as hub:
        hub.handle_error = lambda *_: None  # a client that was killed
        server = Server(hub, arguments.work.parent / f"{arguments.work.name}-home")
        faults = Faults(arguments.work, server, hub, arguments.seed, arguments.fraction, arguments.only)
        file = arguments.work.with_suffix(".json")
        known = read(file)
        setting = server.versions | {"seed": arguments.seed, "fraction": arguments.fraction}
        faults.prepare()
        last = [time.monotonic()]

        def keep(group: str, number: int, total: int | None, name: str, result: dict) -> None:
            held = "; ".join(result["broken"]) or "held"
            print(f"{group} {number}{f'/{total}' if total else ''} {name}: {held}", file=sys.stderr, flush=True)
            if time.monotonic() - last[0] > 5:
                write(file, known)
                last[0] = time.monotonic()

        try:
            run(faults, known, keep, arguments.groups, setting)
        finally:
            write(file, known)
            server.close()
        write(arguments.output, summary({group: known[group] for group in GROUPS if group in known}))


if __name__ == "__main__":
    main()
