"""
Write the tables of the README and the documentation anew from the committed results.

    python benchmarks/report.py

A table stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. With `--check`, nothing is written, and the exit
code is 1 if a page does not say what the results say.
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def embedded_models() -> str:
    """Accuracy of the checkpoints as they come."""
    rows = []
    for folder in sorted((ROOT / "hf_esc" / "embedded").glob("*/training.json")):
        log = json.loads(folder.read_text())
        rows.append(
            [
                f"`embedded/{folder.parent.name}`",
                f"{log['parameters']:,}",
                f"{log['accuracy']['embedded_train']:.1f}",
                f"{log['accuracy']['embedded_test']:.1f}",
                f"{log['seconds'] / 60:.0f}",
            ]
        )
    return table(["model", "parameters", "train, %", "test, %", "minutes to train"], rows)


def embedded_erasures() -> str:
    """The head before and after, the mean over ten classes and the worst of them."""
    rows = []
    for name, entry in load("embedded").items():
        classes = entry["classes"].values()
        for when in ("before", "after"):
            values = [c[when] for c in classes]
            cells = [f"{mean(v[key] for v in values):.1f}" for key in ("forget_train", "retain_train")]
            cells += [f"{mean(v[key] for v in values):.1f}" for key in ("forget_test", "retain_test", "hm_test")]
            worst = max(v["forget_test"] for v in values)
            rows.append([f"`{name}`" if when == "before" else "", when, *cells, f"{worst:.1f}"])
    header = ["model", "", "D_f", "D_r", "D_ft", "D_rt", "HM_t", "largest D_ft of the ten"]
    return table(header, rows)


def embedded_probes() -> str:
    """Head and converged probe: forget / retain test accuracy, mean over ten classes."""
    rows = []
    for name, entry in load("embedded").items():
        classes = list(entry["classes"].values())

        def cell(pick: Callable[[dict], dict], classes=classes) -> str:
            values = [pick(c) for c in classes]
            return " / ".join(f"{mean(v[key] for v in values):.1f}" for key in ("forget_test", "retain_test"))

        rows += [
            [f"`{name}`", "original", cell(lambda c: c["before"]), cell(lambda c: c["probe"]["original"])],
            ["", "erased", cell(lambda c: c["after"]), cell(lambda c: c["probe"]["erased"])],
            ["", "random network", "", cell(lambda c: c["probe"]["random"])],
        ]
    return table(["model", "", "head", "converged probe"], rows)


def several_classes() -> str:
    rows = [
        [
            row["how"],
            str(row["directions"]),
            *(f"{row[key]:.1f}" for key in ("forget_train", "forget_test", "retain_test")),
        ]
        for row in load("several_classes")["rows"]
    ]
    return table(["", "directions", "D_f", "D_ft", "D_rt"], rows)


def performance() -> str:
    rows = []
    for name, entry in load("performance").items():
        if "ratio" in entry:
            faster = entry.get("times_faster")
            measured = f"{faster:.1f} times faster" if faster else f"ratio {entry['ratio']:.3f}"
            if "projector_difference" in entry:
                measured += f", projectors within {entry['projector_difference']:.0e}"
        elif "difference_mib" in entry:
            measured = f"{entry['difference_mib']:.1f} MiB more"
        else:
            measured = f"{entry['seconds']:.2f} s"
        rows.append([f"`{name}`", entry["bar"], measured, "met" if entry["met"] else "**missed**"])
    return table(["measurement", "bar", "measured", ""], rows)


def demo() -> str:
    return f"```\n{(RESULTS / 'make-demo.txt').read_text().rstrip()}\n```"


def test() -> str:
    return f"```\n{(RESULTS / 'make-test.txt').read_text().rstrip()}\n```"


BLOCKS = {
    function.__name__.replace("_", "-"): function
    for function in (embedded_models, embedded_erasures, embedded_probes, several_classes, performance, demo, test)
}


def main() -> None:
    stale = []
    for page in PAGES:
        text = page.read_text()

        def fill(match: re.Match) -> str:
            name = match[1]
            return f"<!-- begin {name} -->\n\n{BLOCKS[name]()}\n\n<!-- end {name} -->"

        fresh = re.sub(r"<!-- begin ([\w-]+) -->.*?<!-- end \1 -->", fill, text, flags=re.DOTALL)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if "--check" not in sys.argv:
                page.write_text(fresh)
    for page in stale:
        print(f"{page} {'is stale: run `make report`' if '--check' in sys.argv else 'was written anew'}")
    sys.exit(bool(stale) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
