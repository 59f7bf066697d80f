"""Commands that are killed, interrupted, run out of space or run twice at once, and what they leave."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL, FORGET, OTHER = "embedded/resnet", "Trouser", "Bag"
NOTES = "notes.txt"  # the user's own file, in every folder that is written over


@dataclass(frozen=True)
class Scenario:
    """
    A command, and what it finds.

    Args:
        name (`str`): In the results.
        words (`tuple[str, ...]`): Of the command; `{out}` is its folder, `{data}` the images, `{repo}` a repository.
        before (`str`): Which template the folder is a copy of; empty if there is none.
        codes (`tuple[int, ...]`): Exit codes of a run that is not disturbed.
    """

    name: str
    words: tuple[str, ...]
    before: str = ""
    codes: tuple[int, ...] = (0,)

    @property
    def pushes(self) -> bool:
        return self.words[0] == "push"

    def filled(self, **values: str | Path) -> list[str]:
        """The words with what stands for the placeholders."""
        return [word.format(**values) for word in self.words]


_ON = ("--dataset", "{data}", "--forget", FORGET)
_ERASE = ("erase", MODEL, *_ON, "--output", "{out}", "--device", "cpu")
_ESC = (*_ERASE, "--rank", "2", "--no-evaluate")
_DELETE = (*_ERASE, "--method", "delete", "--no-evaluate", "--epochs", "2", "--learning-rate", "0.02")
_DELETE += ("--per-device-train-batch-size", "4")
_TRAIN = ("train", "--model", MODEL, *_ON, "--output_dir", "{out}", "--use_cpu", "--no_evaluate")
_TRAIN_ESC_T = (*_TRAIN, "--save_strategy", "steps", "--save_steps", "2")
_TRAIN_DELETE = (*_TRAIN, "--method", "delete", "--num_train_epochs", "3", "--learning_rate", "0.02")
_TRAIN_DELETE += ("--per_device_train_batch_size", "4", "--save_strategy", "epoch", "--save_total_limit", "2")
_EVALUATE = ("evaluate", "{out}", "--dataset", "{data}", "--device", "cpu", "--seeds", "1")
_EVALUATE += ("--output", "{out}/evaluation.json")
_RESUME = ("--resume_from_checkpoint", "True")

SCENARIOS = [
    Scenario("erase, new", _ESC),
    Scenario("erase, overwrite", (*_ESC, "--overwrite"), "old"),
    Scenario("erase and evaluate, new", (*_ERASE, "--rank", "2")),
    Scenario("erase by delete, overwrite", (*_DELETE, "--overwrite"), "old"),
    Scenario("train esc-t, new", _TRAIN_ESC_T),
    Scenario("train esc-t, overwrite", (*_TRAIN_ESC_T, "--overwrite", "True"), "old"),
    Scenario("train esc-t, resume", (*_TRAIN_ESC_T, *_RESUME), "checkpoint esc-t"),
    Scenario("train delete, new", _TRAIN_DELETE),
    Scenario("train delete, overwrite", (*_TRAIN_DELETE, "--overwrite", "True"), "old"),
    Scenario("train delete, resume", (*_TRAIN_DELETE, *_RESUME), "checkpoint delete"),
    Scenario("push, new", ("push", "{out}", "{repo}"), "erased"),
    Scenario("push, again", ("push", "{out}", "{repo}"), "erased"),
    Scenario("evaluate", _EVALUATE, "erased"),
]
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def digest(folder: Path) -> str | None:
    """Of the model in a folder, whatever else is there; None if there is no model's configuration and weights."""
    files = [file for file in sorted(folder.glob("[!.]*")) if file.is_file() and file.name != NOTES]
    names = {file.name for file in files}
    if "config.json" not in names or "model.safetensors" not in names:
        return None
    found = hashlib.sha256()
    for file in files:
        found.update(file.name.encode() + b"\0" + hashlib.sha256(_undated(file.read_bytes())).digest())
    return found.hexdigest()[:16]


def everything(folder: Path) -> dict[str, str]:
    """The files of a case, but for temporary ones, with a digest of each."""
    files = (item for item in folder.rglob("*") if item.is_file() and item.relative_to(folder).parts[0] != "tmp")
    return {str(item.relative_to(folder)): hashlib.sha256(item.read_bytes()).hexdigest() for item in files}


def _undated(data: bytes) -> bytes:
    """Without the dates of records, what is computed of these, and the name of a case."""
    data = re.sub(rb'"(date|record_sha256|sha256)": "[^"]*"', b"", data)
    return re.sub(rb"case\\?-\d+", b"", data)  # as Markdown writes it, too


class Bench:
    """
    Where scenarios run: a folder of its own for each case.

    Args:
        work (`Path`): With `data/`, `images.safetensors` and `templates/`.
        request (`Callable`): Runs jobs in `faults_child.py`.
        hub: The stand-in Hub.
    """

    def __init__(self, work: Path, request: Callable[[list[dict]], list[dict]], hub: Any):
        self.work, self.request, self.hub = work, request, hub
        self.references: dict[str, dict[str, Any]] = {}
        self.numbers = 0

    def job(self, words: list[str], folder: Path, **more: Any) -> dict[str, Any]:
        """A job that runs a command in a folder."""
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        return {"do": "command", "words": words, "tmp": str(folder / "tmp"), "cache": str(self.work / "cache"), **more}

    def place(self, scenario: Scenario) -> tuple[Path, dict[str, Any]]:
        """A folder for a case as the command finds it, and what stands for the placeholders."""
        self.numbers += 1
        folder = self.work / "cases" / f"case-{self.numbers}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        values = {"out": folder / "out", "data": self.work / "data", "repo": f"me/case-{self.numbers}"}
        if scenario.before:
            shutil.copytree(self.work / "templates" / scenario.before, values["out"])
        if scenario.name == "push, again":
            other = scenario.filled(**{**values, "out": self.work / "templates" / "old"})
            self.request([self.job(other, folder)])
        return folder, values

    def state(self, scenario: Scenario, values: dict[str, Any]) -> str | None:
        """A digest of what the command writes."""
        if not scenario.pushes:
            return digest(values["out"])
        repo = self.hub.repos.get(("model", values["repo"]))
        if repo is None or set(repo.files) == {".gitattributes"}:
            return None
        found = hashlib.sha256()
        for name, data in sorted(repo.files.items()):
            found.update(name.encode() + hashlib.sha256(_undated(data)).digest())
        return found.hexdigest()[:16]

    def reference(self, scenario: Scenario) -> dict[str, Any]:
        """What an undisturbed run finds and leaves, how long it takes, and how many steps of writing it has."""
        if scenario.name not in self.references:
            folder, values = self.place(scenario)
            before = self.state(scenario, values)
            hook = {"root": str(folder), "at": -1, "action": "count"}
            [ended] = self.request([self.job(scenario.filled(**values), folder, hook=hook)])
            if ended["code"] not in scenario.codes:
                raise SystemExit(f"{scenario.name} does not run: {ended}")
            steps = int(re.findall(r"STEPS (\d+)", ended["err"])[-1])
            after = self.state(scenario, values)
            found = {"before": before, "after": after, "steps": steps, "seconds": ended["seconds"]}
            self.references[scenario.name] = found
            shutil.rmtree(folder)
        return self.references[scenario.name]

    def disturbed(self, scenario: Scenario, **disturbance: Any) -> dict[str, Any]:
        """Run a scenario with a disturbance, as the fields of a job, and again without; judge both."""
        expected = self.reference(scenario)
        folder, values = self.place(scenario)
        if "hook" in disturbance:
            disturbance["hook"] = {"root": str(folder), **disturbance["hook"]}
        words, found = scenario.filled(**values), everything(folder)
        [ended] = self.request([self.job(words, folder, **disturbance)])
        broken = ended_badly(ended, disturbance, scenario)
        state = self.state(scenario, values)
        left = self._left(scenario, values, folder, state, expected)
        broken += self._wrong(scenario, ended, left, folder)
        if everything(folder) == found and not scenario.pushes:
            again: dict[str, Any] = {"says": "nothing has changed", "broken": []}
        else:
            again = self._again(scenario, values, folder, left, expected)
        broken += again["broken"]
        where = re.findall(r"(?:AT|STEPS \d+) (\S+ \S+)$", ended["err"], re.MULTILINE)
        result = {
            "ended": f"signal {ended['signal']}" if ended["signal"] else ended["code"],
            "left": left,
            "again": again["says"],
            "broken": broken,
        }
        if where:
            result["at"] = where[-1]
        if rest := sorted({_kind(item) for item in self._rest(folder)}):
            result["rest"] = rest
        if broken:
            result["says"] = ended["err"][-400:]
        else:
            shutil.rmtree(folder)
        return result

    def _left(self, scenario, values, folder: Path, state: str | None, expected: dict) -> str:
        """What stands in the place after a disturbance."""
        if state == expected["after"]:
            return "new"
        if state is not None and state == expected["before"]:
            return "old"
        if state is not None and not scenario.pushes:
            # Another state than both may still say of itself that it is none.
            job = {"do": "look", "folder": str(values["out"]), "images": str(self.work / "images.safetensors")}
            [seen] = self.request([{**self.job([], folder), **job, "forget": 1}])
            if seen["code"] == 0 and "error" in json.loads(seen["out"])["load"]:
                state = None
        if state is not None:
            return "neither"
        if expected["before"] is None:
            return "nothing"
        # The next run puts it back before it does anything else, wherever its files are: try that with a copy.
        copy = folder / "tmp" / "copy"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tmp"))
        self.request([self.job([], folder) | {"do": "restore", "folder": str(copy / "out")}])
        back = digest(copy / "out") == expected["before"]
        shutil.rmtree(copy)
        return "old aside" if back else "old lost"

    def _wrong(self, scenario: Scenario, ended: dict, left: str, folder: Path) -> list[str]:
        broken = []
        if left in ("neither", "old lost"):
            broken.append(
                {"neither": "a folder that looks finished and is not", "old lost": "the old one is lost"}[left]
            )
        if ended["code"] in scenario.codes and left != "new":
            broken.append(f"says that it is done, and there is {left}")
        if ended["code"] == 2 and left == "new" and "as it was" in ended["err"]:
            broken.append("says that nothing has changed, and all has")
        if ended["code"] is not None and left == "old aside":
            broken.append("an error leaves the old one aside")
        if scenario.before == "old" and not any(folder.rglob(NOTES)):
            broken.append("the user's own file is lost")
        return broken

    def _again(self, scenario: Scenario, values: dict, folder: Path, left: str, expected: dict) -> dict[str, Any]:
        """Run it anew, as its message says: a training that left checkpoints goes on."""
        if left == "new" and scenario.before != "old" and not scenario.pushes and scenario.words[0] != "evaluate":
            return {"says": "not needed", "broken": []}
        words = scenario.filled(**values)
        [ended] = self.request([self.job(words, folder)])
        if ended["code"] == 2 and "--resume_from_checkpoint True" in ended["err"] and words[0] == "train":
            [ended] = self.request([self.job([*words, *_RESUME], folder)])
        broken = []
        if ended["code"] not in scenario.codes:
            last = (ended["err"].strip().splitlines() or [""])[-1][:300]
            broken.append(f"cannot be run again: {re.sub(r'/[^ ]*/', '', last)}")
        elif self.state(scenario, values) != expected["after"]:
            broken.append("another result when run again")
        if scenario.before == "old" and not (values["out"] / NOTES).exists():
            broken.append("the user's own file is gone when run again")
        return {"says": "as undisturbed" if not broken else "not", "broken": broken}

    def _rest(self, folder: Path) -> Iterator[Path]:
        """What lies beside the result when all is over."""
        for item in folder.iterdir():
            if item.name == "tmp":
                yield from item.iterdir()
            elif item.name != "out":
                yield item
        if (folder / "out").is_dir():
            yield from (item for item in (folder / "out").iterdir() if item.name.startswith("."))

    def together(self, first: list[str], second: list[str], before: str, delay: float) -> dict[str, Any]:
        """Two runs that write to one folder, the second one a little later."""
        folder, values = self.place(Scenario("", (), before))
        alone = []
        for words in (first, second):  # what each leaves where it is alone
            key = " ".join(words)
            if key not in self.references:
                self.references[key] = self.reference(Scenario(key, tuple(words), before, (0, 3)))
            alone.append(self.references[key]["after"])
        jobs = []
        for index, words in enumerate((first, second)):
            filled = [word.format(**values) for word in words]
            job = self.job(filled, folder, delay=delay * index)
            jobs.append(job | {"tmp": str(folder / f"tmp-{index}")})
            (folder / f"tmp-{index}").mkdir()
        ends = self.request(jobs)
        done = [index for index, ended in enumerate(ends) if ended["code"] in (0, 3)]
        broken = [f"raw: {_raw(ended['err'])}" for ended in ends if _raw(ended["err"])]
        state = digest(values["out"])
        # What began when the other had ended may replace it.
        if len(done) == 2 and ends[0]["seconds"] > delay:
            broken.append("both say that they are done")
        if not done:
            broken.append("neither is done")
        if state not in alone:
            broken.append("the folder is of neither")
        elif len(done) == 1 and state != alone[done[0]]:
            broken.append("the folder is not of the one that says so")
        result = {"ended": [ended["code"] for ended in ends], "broken": broken}
        result["seconds"] = [delay, *(ended["seconds"] for ended in ends)]
        if broken:
            result["says"] = " | ".join(ended["err"][-200:] for ended in ends)
        else:
            shutil.rmtree(folder)
        return result


def ended_badly(ended: dict, disturbance: dict, scenario: Scenario) -> list[str]:
    """Raw tracebacks, and exit codes that say something else than what happened."""
    broken = []
    if ended["late"]:
        broken.append("does not end")
    if raw := _raw(ended["err"]):
        broken.append(f"raw: {raw}")
    interrupted = disturbance.get("signal") == 2 or disturbance.get("hook", {}).get("action") == "interrupt"
    allowed = {*scenario.codes, 130} if interrupted else {*scenario.codes, 2}
    if ended["code"] is not None and ended["code"] not in allowed:
        broken.append(f"exit code {ended['code']}")
    return broken


def _raw(text: str) -> str:
    """The last line of a traceback, but for one of an interruption in the midst of Python's own clearing up."""
    text = re.sub(r"Exception ignored in: .*?KeyboardInterrupt: *$", "", text, flags=re.DOTALL | re.MULTILINE)
    if "Traceback (most recent call last)" not in text:
        return ""
    named = re.findall(r"^[\w.]*(?:Error|Exception|Interrupt|Exit)\b.*$", text, re.MULTILINE)
    return re.sub(r"/[^ ]*/", "", named[-1])[:160] if named else "a traceback"


def _kind(item: Path) -> str:
    return re.sub(r"(unfinished-|tmp)\w+$", r"\1…", item.name)
