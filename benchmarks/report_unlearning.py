"""The tables and figures of the experiments of `run.py`, from `benchmarks/results/experiments/`."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any

from results import any_stopped_early, early_mark

from hf_esc.methods import METHODS

RESULTS = Path(__file__).parent / "results"
REFERENCES = ("original", "retrain", "random")
NAMES = {"original": "Original", "retrain": "Retrain", "random": "Random network"}
NAMES |= {method.name: method.title for method in METHODS.values()}
# What a row trains on or looks at besides the images to forget.
READS_RETAIN = [method.name for method in METHODS.values() if method.uses_retain and method.name not in REFERENCES]
# What makes a trial shorter than a run.
_SHORTER = {"num_train_epochs": "epoch", "num_images": "image"}
Row = dict[str, Any]


def rows_of(experiment: str) -> list[Row]:
    file = RESULTS / "experiments" / f"{experiment}.json"
    rows = json.loads(file.read_text())["rows"].values() if file.exists() else []
    return [row for row in rows if not row.get("stale")]


def labels_of(rows: Iterable[Row]) -> list[str]:
    """Labels of methods in the order of `NAMES`, and then of the file."""
    found = list(dict.fromkeys(row["label"] for row in rows))
    return [name for name in NAMES if name in found] + [name for name in found if name not in NAMES]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def average(rows: Iterable[Row], pick: Callable[[Row], float | None], digits: int = 1, *, spread: bool = False) -> str:
    """The mean of what there is, and how far it spreads."""
    values = [value for row in rows if "error" not in row and (value := pick(row)) is not None]
    if not values:
        return "-"
    shown = f"{mean(values):.{digits}f}"
    return f"{shown} ± {pstdev(values):.{digits}f}" if spread and len(values) > 1 else shown


def head(key: str) -> Callable[[Row], float | None]:
    return lambda row: row["accuracies"].get(key)


def probe(name: str, key: str) -> Callable[[Row], float | None]:
    return lambda row: row["retention"][name].get(key)


def mark(rows: Iterable[Row]) -> str:
    """The methods that have converged probes which were stopped early, under a table that shows these."""
    early = [row for row in rows if any_stopped_early(row.get("retention", ()), row.get("probes", {}))]
    return early_mark([_title(label) for label in labels_of(early)])


SIX = ("forget_train", "retain_train", "forget_test", "retain_test", "hm_train", "hm_test")
SIX_TITLES = ["D_f", "D_r", "D_ft", "D_rt", "HM", "HM_t"]


def _title(label: str) -> str:
    return NAMES.get(label, label)


def _runs(rows: list[Row]) -> str:
    classes = len({tuple(row["request"]) for row in rows})
    seeds = len({row["seed"] for row in rows})
    good = sum("error" not in row for row in rows)
    return f"{classes} × {seeds}" if good == classes * seeds else f"{good} of {classes} × {seeds}"


def _everywhere(rows: list[Row]) -> list[Row]:
    """Those of methods that were run on every class: means over other classes could not be compared."""
    of = {label: {tuple(row["request"]) for row in rows if row["label"] == label} for label in labels_of(rows)}
    return [row for row in rows if of[row["label"]] == of["original"]]


def _reads(label: str) -> str:
    """Which images a method looks at."""
    return "" if label in REFERENCES else "forget + retain" if label in READS_RETAIN else "forget"


def table1(experiment: str) -> str:
    """What the head says."""
    rows = _everywhere(rows_of(experiment))
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        worst = max((row["accuracies"]["forget_test"] for row in own if "error" not in row), default=None)
        cells = [average(own, head(key)) for key in SIX]
        cells += [average(own, lambda row: row["membership"]), "-" if worst is None else f"{worst:.1f}"]
        lines.append([_title(label), _reads(label), _runs(own), *cells])
    header = ["method", "images", "classes × seeds", *SIX_TITLES, "MIA", "largest D_ft"]
    return table(header, lines)


def table1_probes(experiment: str) -> str:
    """What the features say, by the paper's probe and by one that is trained to the end."""
    rows = _everywhere(rows_of(experiment))
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        cells = [average(own, probe("paper", key)) for key in SIX]
        cells += [average(own, probe("converged", key)) for key in ("forget_test", "retain_test", "hm_test")]
        lines.append([_title(label), *cells])
    header = ["method", *(f"paper: {title}" for title in SIX_TITLES), "converged: D_ft", "D_rt", "HM_t"]
    return table(header, lines) + mark(rows)


def one_class(experiment: str, request: Sequence[str] = ("Trouser",), seed: int = 0) -> str:
    """All methods on one class with one seed: head and probes."""
    rows = [row for row in rows_of(experiment) if row["request"] == list(request) and row["seed"] == seed]
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        cells = [average(own, head(key)) for key in SIX]
        for name in ("paper", "converged"):
            cells += [average(own, probe(name, key)) for key in ("forget_test", "retain_test")]
        lines.append([_title(label), _reads(label), *cells])
    probes = [f"{name}: {title}" for name in ("paper", "converged") for title in ("D_ft", "D_rt")]
    return table(["method", "images", *SIX_TITLES, *probes], lines) + mark(rows)


def misses(experiment: str, most: float = 10, points: float = 5) -> str:
    """Which of the methods leave more than `most` % of the training images, or cost more than `points` of the rest."""
    rows = rows_of(experiment)
    before = {tuple(row["request"]): row["accuracies"] for row in rows if row["label"] == "original"}
    lines = []
    for label in labels_of(rows):
        if label in REFERENCES:
            continue
        for request, original in before.items():
            own = [row for row in rows if row["label"] == label and tuple(row["request"]) == request]
            good = [row for row in own if "error" not in row]
            if own and not good:
                lines.append([_title(label), ", ".join(request), "diverged", "", "", ""])
            if not good:
                continue
            left = mean(row["accuracies"]["forget_train"] for row in good)
            lost = original["retain_test"] - mean(row["accuracies"]["retain_test"] for row in good)
            if left > most or lost > points:
                why = [f"D_f above {most:g} %"] * (left > most) + [f"D_rt down by more than {points:g}"] * (
                    lost > points
                )
                lines.append([_title(label), ", ".join(request), f"{left:.1f}", f"{-lost:+.1f}", " and ".join(why)])
    if not lines:
        return (
            f"None: every method leaves at most {most:g} % of the forget images, and costs at most {points:g} points."
        )
    return table(["method", "class", "D_f", "change of D_rt", "missed"], lines)


def seconds_of(experiment: str) -> dict[str, float]:
    """The median of each method."""
    rows = [row for row in rows_of(experiment) if row["label"] not in REFERENCES and "error" not in row]
    return {label: median(r["seconds"] for r in rows if r["label"] == label) for label in labels_of(rows)}


def times(experiment: str) -> str:
    """The rank of each method by its time, and how many times ESC's it is."""
    seconds = seconds_of(experiment)
    lines = [
        [str(rank), _title(label), f"{value:.2f}", f"{value / seconds['esc']:.1f}"]
        for rank, (label, value) in enumerate(sorted(seconds.items(), key=lambda item: item[1]), start=1)
    ]
    return table(["rank", "method", "seconds", "times ESC's"], lines)


def fastest(experiment: str) -> str:
    """By how much ESC is ahead of the fastest of the others, as the paper has it for LAU."""
    seconds = seconds_of(experiment)
    own = seconds.pop("esc")
    label = min(seconds, key=lambda name: seconds[name])
    return (
        f"ESC takes {own:.2f} s, reading the images and the pass over them included. The fastest of the others is "
        f"{_title(label)} with {seconds[label]:.2f} s, {seconds[label] / own:.1f} times ESC's; LAU takes "
        f"{seconds['lau'] / own:.1f} times as long. The ESC paper reports 9.17 times for LAU on its own models and "
        "hardware."
    )


def table2() -> str:
    """ESC with other shares of directions."""
    rows = rows_of("table2") + [row for row in rows_of("table1-resnet") if row["label"] in REFERENCES]
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        cells = [average(own, head(key)) for key in ("forget_test", "retain_test", "hm_train", "hm_test")]
        cells += [average(own, probe("paper", key)) for key in ("hm_train", "hm_test")]
        cells += [average(own, probe("converged", key)) for key in ("hm_train", "hm_test")]
        lines.append([_title(label), *cells])
    header = ["ESC", "D_ft", "D_rt", "HM", "HM_t", "KR paper: HM", "HM_t", "KR converged: HM", "HM_t"]
    return table(header, lines) + mark(rows)


def in_turn() -> str:
    """
    After each of the requests: the images of all classes so far that are taken for any of them, those that are taken
    for their own, and what is right of the others.
    """
    rows = rows_of("in-turn")
    most = max((len(row["request"]) for row in rows), default=0)

    def cell(own: list[Row], pick: Callable[[str], Callable[[Row], float | None]]) -> str:
        keys = ("any_test", "forget_test", "retain_test")
        several = any(len(row["request"]) > 1 for row in own)
        return " / ".join(average(own, pick(key)) for key in (keys if several else keys[1:]))

    lines = []
    for label in labels_of(rows):
        by_number = [
            [row for row in rows if row["label"] == label and len(row["request"]) == number and "error" not in row]
            for number in range(1, most + 1)
        ]
        cells = [cell(own, head) if own else "" for own in by_number]
        cells += [
            cell(by_number[-1], lambda key, name=name: probe(name, key)) if by_number[-1] else ""
            for name in ("paper", "converged")
        ]
        lines.append([_title(label), *cells])
    header = ["method", *(f"{n} classes" if n > 1 else "1 class" for n in range(1, most + 1))]
    return table([*header, f"KR paper, {most}", f"KR converged, {most}"], lines) + mark(rows)


def table5() -> str:
    """Random images: how far from Retrain."""
    rows = rows_of("table5")
    retrain = [row for row in rows if row["label"] == "retrain"]
    picks = {
        "D_f": head("forget_train"),
        "D_r": head("retain_train"),
        "D_t": head("retain_test"),
        "MIA": lambda row: row["membership"],
    }
    lines = []
    for label in labels_of(rows):
        if label == "random":
            continue
        own = [row for row in rows if row["label"] == label and "error" not in row]
        cells = [average(own, pick, spread=True) for pick in picks.values()]
        gap = "-"
        if retrain and label != "retrain" and own:
            gap = f"{mean(abs(mean(map(pick, own)) - mean(map(pick, retrain))) for pick in picks.values()):.2f}"
        lines.append([_title(label), *cells, gap, average(own, lambda row: row.get("process_seconds"))])
    return table(["method", *picks, "Avg Gap", "processor seconds"], lines)


def tuning() -> str:
    """The chosen rates, with what they did on the validation images, and how many trials there were."""
    lines = []
    for file in sorted((RESULTS / "tuning").glob("*.json")):
        for number, (method, entry) in enumerate(json.loads(file.read_text()).items()):
            chosen = next((t for t in entry["trials"] if t["value"] == entry["best"]), None)
            cells = ["diverged", "-", "-", "-"]
            if chosen:
                tried = [trial["value"] for trial in entry["trials"]]
                edge = " (edge)" if chosen["value"] in (min(tried), max(tried)) else ""
                cells = [f"{chosen['value']:g}{edge}", *(f"{chosen[key]:.1f}" for key in ("forget", "retain"))]
                cells.append(f"gap {chosen['gap']:.1f}" if "gap" in chosen else f"{chosen['hm']:.1f}")
            name = file.stem.removesuffix("-random")
            first = f"`embedded/{name}`{', random images' if name != file.stem else ''}" if not number else ""
            shorter = ", ".join(
                f"{value} {_SHORTER[name]}{'s' * (value > 1)}" for name, value in entry["shorter"].items()
            )
            trials = f"{len(entry['trials'])}{f' of {shorter}' if shorter else ''}"
            lines.append([first, _title(method), entry["tuned"], cells[0], trials, *cells[1:]])
    return table(["model", "method", "tuned", "chosen", "trials", "D_f", "D_r", "HM, or gap to Retrain"], lines)


def short() -> str:
    """One line for each method, for the README."""
    rows = rows_of("table1-resnet")
    lines = []
    for label in labels_of(rows):
        own = [row for row in rows if row["label"] == label]
        reads = "" if label in REFERENCES else "yes" if label in READS_RETAIN else "no"
        cells = [
            " / ".join(average(own, pick(key)) for key in ("forget_test", "retain_test"))
            for pick in (head, lambda key: probe("paper", key), lambda key: probe("converged", key))
        ]
        lines.append([_title(label), reads, *cells])
    return table(
        ["method", "needs retain images", "head", "KR, the paper's probe", "KR, a converged probe"], lines
    ) + mark(rows)


def spent() -> str:
    """The hours of each experiment, of the processor: other jobs ran beside some, and the clock would count these."""
    lines = []
    for file in sorted((RESULTS / "experiments").glob("*.json")):
        found = json.loads(file.read_text())
        rows = found["rows"].values()
        own = [row for row in rows if row["method"] not in REFERENCES and row.get("process_seconds")]
        failed = sum("error" in row for row in rows)
        hours = sum(row["process_seconds"] for row in own) / 3600
        lines.append([f"`{file.stem}`", found["title"], str(len(rows)), str(failed), f"{hours:.2f}"])
    return table(["experiment", "", "rows", "failed", "processor hours of unlearning"], lines)


def _or_none(experiment: str, block: Callable[[], str]) -> Callable[[], str]:
    return lambda: block() if rows_of(experiment) else "Not run yet: `make experiments`."


BLOCKS: dict[str, Callable[[], str]] = {
    "unlearning-short": _or_none("table1-resnet", short),
    "unlearning-tuning": tuning,
    "unlearning-times": _or_none("times", lambda: times("times")),
    "unlearning-fastest": _or_none("times", lambda: fastest("times")),
    "unlearning-table2": _or_none("table2", table2),
    "unlearning-table5": _or_none("table5", table5),
    "unlearning-in-turn": _or_none("in-turn", in_turn),
    "unlearning-spent": spent,
}
for _model in ("resnet", "all-cnn", "vit"):
    for _block, _function in (
        ("table1", table1),
        ("probes", table1_probes),
        ("one-class", one_class),
        ("misses", misses),
    ):
        _name = f"table1-{_model}"
        BLOCKS[f"unlearning-{_block}-{_model}"] = _or_none(_name, partial(_function, _name))
