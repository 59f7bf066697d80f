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

import report_faults
import report_methods
import report_unlearning
from results import any_stopped_early, early_mark, listed, parts_stopped_early, stopped_early

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
            ["", "ESC", cell(lambda c: c["after"]), cell(lambda c: c["probe"]["erased"])],
            ["", "ESC-T", *_esc_t_head_and_probe(name)],
            ["", "random network", "", cell(lambda c: c["probe"]["random"])],
        ]
    return table(["model", "", "head", "converged probe"], rows) + early_mark(_early_in_embedded())


def _early_in_embedded() -> list[str]:
    """Models and what of them."""
    found = []
    for name, entry in load("embedded").items():
        probes = [classes["probe"] for classes in entry["classes"].values()]
        probes += [{"ESC-T": by_seed["seed=0"]["probe"]} for by_seed in load("esc_t")["seeds"][name].values()]
        titles = {"original": "the original", "erased": "ESC", "ESC-T": "ESC-T", "random": "the random network"}
        early = {what for each in probes for what, probe in each.items() if stopped_early(probe)}
        found += [f"`{name}` ({', '.join(titles[what] for what in titles if what in early)})"] if early else []
    return found


def _esc_t_head_and_probe(name: str) -> list[str]:
    """The same two cells for ESC-T, of the first seed."""
    runs = [by_seed["seed=0"] for by_seed in load("esc_t")["seeds"][name].values()]
    return [
        " / ".join(f"{mean(run[what][key] for run in runs):.1f}" for key in ("forget_test", "retain_test"))
        for what in ("after", "probe")
    ]


def esc_t_seeds() -> str:
    """ESC-T of each of ten classes with three seeds: the mean over all runs, and the worst of them."""
    rows = []
    for name, classes in load("esc_t")["seeds"].items():
        runs = [run for by_seed in classes.values() for run in by_seed.values()]
        esc = [c["after"] for c in load("embedded")[name]["classes"].values()]
        keys = ("forget_train", "retain_train", "forget_test", "retain_test", "hm_test")
        for title, values in (
            ("before", [run["before"] for run in runs]),
            ("ESC", esc),
            ("ESC-T", [run["after"] for run in runs]),
        ):
            cells = [f"{mean(v[key] for v in values):.1f}" for key in keys]
            change = ""
            if title == "ESC-T":
                changes = [run["after"]["retain_train"] - run["before"]["retain_train"] for run in runs]
                change = f"{min(changes):+.1f} to {max(changes):+.1f}"
            worst = f"{max(v['forget_train'] for v in values):.1f}"
            rows.append([f"`{name}`" if title == "before" else "", title, *cells, worst, change])
    header = ["model", "", "D_f", "D_r", "D_ft", "D_rt", "HM_t", "largest D_f", "change of D_r"]
    return table(header, rows)


def esc_t_three_classes() -> str:
    """Three classes of each model, each seed on its own."""
    rows = []
    for name, classes in load("esc_t")["seeds"].items():
        for label in ("Trouser", "Shirt", "Bag"):
            for key, run in classes[label].items():
                before, after = run["before"], run["after"]
                first = key == "seed=0"
                rows.append(
                    [
                        f"`{name}`" if first and label == "Trouser" else "",
                        label if first else "",
                        key.removeprefix("seed="),
                        f"{before['forget_train']:.1f} → {after['forget_train']:.1f}",
                        f"{before['retain_train']:.1f} → {after['retain_train']:.1f}",
                        f"{before['forget_test']:.1f} → {after['forget_test']:.1f}",
                        f"{before['retain_test']:.1f} → {after['retain_test']:.1f}",
                        str(run["steps"]),
                        f"{100 * run['cut'][0]:.2f}",
                    ]
                )
    return table(["model", "class", "seed", "D_f", "D_r", "D_ft", "D_rt", "steps", "entries cut, %"], rows)


def _esc_t_choices(experiment: str) -> str:
    """For each setting and model: D_f / D_r / D_rt, the mean over three classes."""
    results = load("esc_t")[experiment]
    models = list(results)
    settings = list(next(iter(results[models[0]].values())))
    rows = []
    for setting in settings:
        cells = []
        for name in models:
            runs = [by_setting[setting] for by_setting in results[name].values()]
            if any("error" in run for run in runs):
                erased = sum("error" not in run for run in runs)
                cells.append(f"an error: {'nothing' if not erased else f'{erased} of {len(runs)} classes'} erased")
                continue
            values = [run["after"] for run in runs]
            keys = ("forget_train", "retain_train", "retain_test")
            cell = " / ".join(f"{mean(v[key] for v in values):.1f}" for key in keys)
            limit = sum(run["stopped"] == "limit" for run in runs)
            cells.append(f"{cell}, {round(mean(run['steps'] for run in runs))} steps" + (", limit" if limit else ""))
        rows.append([f"`{setting.replace('=', ' = ')}`", *cells])
    first = next(iter(next(iter(results[models[0]].values())).values()))
    assert "before" in first
    before = []
    for name in models:
        values = [next(iter(by_setting.values()))["before"] for by_setting in results[name].values()]
        keys = ("forget_train", "retain_train", "retain_test")
        before.append(" / ".join(f"{mean(v[key] for v in values):.1f}" for key in keys))
    return table(["D_f / D_r / D_rt", *(f"`{name}`" for name in models)], [["before", *before], *rows])


def esc_t_ablation() -> str:
    return _esc_t_choices("ablation")


def esc_t_tau() -> str:
    return _esc_t_choices("tau")


def esc_t_learning_rate() -> str:
    return _esc_t_choices("learning_rate")


def esc_t_tolerance() -> str:
    return _esc_t_choices("tolerance")


NETWORKS = {"original": "original", "retrain": "Retrain", "random": "random", "model": "ESC", "ESC-T": "ESC-T"}


def _early_networks(part: str) -> list[str]:
    """Networks with converged probes that were stopped early in this part of the reports."""
    whose = []
    for name, entry in load("knowledge_retention").items():
        columns = [title for key, title in NETWORKS.items() if part in parts_stopped_early(entry["models"][key])]
        whose += [f"`{name}` ({', '.join(columns)})"] if columns else []
    return whose


def _early_in_reports(part: str) -> str:
    return early_mark(_early_networks(part))


def knowledge_retention() -> str:
    """Forget / retain test accuracy of the head and of every probe, of each network."""
    columns = NETWORKS
    rows = []
    for name, entry in load("knowledge_retention").items():
        models = entry["models"]

        def cells(pick: Callable[[dict], dict], models=models) -> list[str]:
            values = [pick(models[column]) for column in columns]
            return [f"{value['forget_test']:.1f} / {value['retain_test']:.1f}" for value in values]

        rows.append([f"`{name}`", "head", *cells(lambda m: m["accuracies"])])
        for probe in models["model"]["retention"]:
            rows.append(["", probe.replace("_", " "), *cells(lambda m, p=probe: m["retention"][p]["mean"])])
            spread = max(models[column]["retention"][probe]["spread"]["forget_test"] for column in columns)
            rows[-1][1] += f" (± {spread:.1f})" if spread else ""
    return table(["model", "", *columns.values()], rows) + _early_in_reports("retention")


def retention_in_short() -> str:
    """The head and the two probes that always stand together."""
    rows = []
    for name, entry in load("knowledge_retention").items():
        for index, (column, title) in enumerate(NETWORKS.items()):
            model = entry["models"][column]
            found = [model["accuracies"], *(model["retention"][p]["mean"] for p in ("paper", "converged"))]
            cells = [f"{value['forget_test']:.1f} / {value['retain_test']:.1f}" for value in found]
            spread = model["retention"]["paper"]["spread"]["forget_test"]
            cells[1] = f"{found[1]['forget_test']:.1f} ± {spread:.1f} / {found[1]['retain_test']:.1f}"
            rows.append([f"`{name}`" if not index else "", title, *cells])
    header = ["model", "", "head", "KR, the paper's probe", "KR, a converged probe"]
    return table(header, rows) + _early_in_reports("retention")


def kr_curve() -> str:
    """What a converged probe gets right of forget test images, by the number of them that it was given labels for."""
    rows = []
    header: list[str] = []
    for name, entry in load("knowledge_retention").items():
        for index, (column, title) in enumerate(NETWORKS.items()):
            curve = entry["models"][column]["curve"]
            header = [f"{point['labelled']}" for point in curve]
            rows.append([f"`{name}`" if not index else "", title, *(f"{point['forget_test']:.1f}" for point in curve)])
    return table(["model", "", *header], rows) + _early_in_reports("curve")


def attacks() -> str:
    """What each attack gets right of forget test images, and in brackets of the others."""
    rows = []
    for name, entry in load("knowledge_retention").items():
        models = entry["models"]
        for index, attack in enumerate(models["model"]["attacks"]):
            found = [models[column]["attacks"][attack] for column in NETWORKS]
            cells = [f"{r['forget_test']:.1f} ({r['retain_test']:.1f})" if r else "" for r in found]
            rows.append([f"`{name}`" if not index else "", f"`{attack}`", *cells])
    return table(["model", "attack", *NETWORKS.values()], rows) + _early_in_reports("attacks")


def attack_meanings() -> str:
    """Who could do each attack, and how."""
    models = next(iter(load("knowledge_retention").values()))["models"]
    return "\n".join(f"- `{name}`: {result['meaning']}." for name, result in models["model"]["attacks"].items())


def other_metrics() -> str:
    """Membership inference and ZRF."""
    rows = []
    for name, entry in load("knowledge_retention").items():
        for index, (column, title) in enumerate(NETWORKS.items()):
            model = entry["models"][column]
            mia = model["membership"]
            rows.append(
                [
                    f"`{name}`" if not index else "",
                    title,
                    f"{mia['accuracy']:.1f} ± {mia['spread']:.1f}",
                    f"{mia['auc']:.1f}",
                    f"{mia['tpr_at_1_fpr']:.1f}",
                    f"{model['zrf']['zrf']:.3f}",
                ]
            )
    whose = _early_networks("retention")
    mark = (
        f"\n\nNot measured anew yet: {listed(whose)}. Their MIA accuracy still depends on the order of the images, "
        "within the spread that stands beside it."
        if whose
        else ""
    )
    return table(["model", "", "MIA accuracy", "MIA AUC", "TPR at 1 % FPR", "ZRF"], rows) + mark


def _remap_entries():
    """(model, class, its entry) of the results."""
    for name, classes in load("remap").items():
        if name != "setting":
            yield from ((name, title, entry) for title, entry in classes.items())


def _early_in_remap() -> str:
    """Models and classes with a converged probe that was stopped early, under a table that shows these."""
    whose: dict[str, list[str]] = {}
    for name, title, entry in _remap_entries():
        if any(any_stopped_early(part.get("probes", ()), part.get("settings", {})) for part in entry.values()):
            whose.setdefault(name, []).append(title)
    return early_mark([f"`{name}` ({', '.join(titles)})" for name, titles in whose.items()])


REMAP_SEEDS = (0, 1, 2)
READERS = {"paper": "paper", "converged": "converged", "mlp": "MLP", "knn": "k-NN"}


def remap_probes() -> str:
    """Forget test images that each reader gets right, the mean of three banks, beside the original's and the bound."""
    rows = []
    for name, title, entry in _remap_entries():
        runs = [entry[f"seed={seed}"] for seed in REMAP_SEEDS]
        recall = runs[0]["gate"]["recall"]
        before, after = [entry["original"]["head"]["forget_test"]], [mean(r["head"]["forget_test"] for r in runs)]
        for probe in READERS:
            before.append(entry["original"]["probes"][probe]["forget_test"])
            after.append(mean(r["probes"][probe]["forget_test"] for r in runs))
        cells = [f"{b:.1f} → {a:.1f}" for b, a in zip(before, after, strict=True)]
        rows.append([f"`{name}`" if title == "Trouser" else "", title, f"{recall:.1f}", f"{100 - recall:.1f}", *cells])
    header = ["model", "class", "gate finds", "it misses", "head", *READERS.values()]
    return table(header, rows) + _early_in_remap()


# A probe that is trained on retain labels alone, and one that is asked for the forgotten class alone.
ALONE, ONE_VS_REST = "converged, retain labels alone", "one_vs_rest"


def _balanced(found: dict) -> float:
    return (found["forget_test"] + found["retain_test"]) / 2


def remap_retain() -> str:
    """
    Retain test images that each reader gets right, before and after, and the mean of three banks; what the gate takes
    for forgotten stands beside those that it costs.
    """
    rows = []
    for name, title, entry in _remap_entries():
        runs = [entry[f"seed={seed}"] for seed in REMAP_SEEDS]
        before, after = entry["original"]["probes"], [r["probes"] for r in runs]
        cells = [
            f"{entry['original']['head']['retain_test']:.1f} → {mean(r['head']['retain_test'] for r in runs):.1f}"
        ]
        for probe in (ALONE, *READERS):
            cells.append(f"{before[probe]['retain_test']:.1f} → {mean(p[probe]['retain_test'] for p in after):.1f}")
        cells.insert(2, f"{runs[0]['gate']['false_alarms']:.1f}")
        rows.append([f"`{name}`" if title == "Trouser" else "", title, *cells])
    header = ["model", "class", "head", ALONE, "false alarms of the gate", *READERS.values()]
    return table(header, rows) + _early_in_remap()


def remap_one_vs_rest() -> str:
    """Balanced accuracy of a reader that is asked for the class alone, and of one who knows what the gate misses."""
    rows = []
    for name, title, entry in _remap_entries():
        runs = [entry[f"seed={seed}"] for seed in REMAP_SEEDS]
        before = _balanced(entry["original"]["probes"][ONE_VS_REST])
        after = mean(_balanced(r["probes"][ONE_VS_REST]) for r in runs)
        allowed = 50 + (100 - runs[0]["gate"]["recall"]) / 2
        cells = [f"{before:.1f}", f"{after:.1f}", f"{allowed:.1f}", f"{after - allowed:+.1f}"]
        rows.append([f"`{name}`" if title == "Trouser" else "", title, *cells])
    header = ["model", "class", "original", "remapped", "50 + half of what the gate misses", "difference"]
    return table(header, rows) + _early_in_remap()


def remap_misses() -> str:
    """Every bar that a bank misses. Retain accuracies may move by 1 point, or 3 where a probe is told wrong labels."""
    rows = []
    for name, title, entry in _remap_entries():
        for seed in REMAP_SEEDS:
            run, before = entry[f"seed={seed}"], entry["original"]["probes"]
            missed, false_alarms = 100 - run["gate"]["recall"], f"{run['gate']['false_alarms']:.2f}"
            found = []
            for probe, reader in READERS.items():
                read = run["probes"][probe]["forget_test"]
                found.append((reader, "D_ft at most what the gate misses and 3", read, missed + 3, False))
            for probe, reader in ((ALONE, ALONE), *READERS.items()):
                change = run["probes"][probe]["retain_test"] - before[probe]["retain_test"]
                most = 1 if probe == ALONE else 3
                found.append((reader, f"D_rt moves by at most {most}", change, most, True))
            for reader, bar, value, most, change in found:
                over = abs(value) - most
                if over > 1e-9:
                    shown = f"{value:+.2f}" if change else f"{value:.2f}"
                    rows.append([f"`{name}`", title, str(seed), reader, bar, shown, f"**{over:.2f}**", false_alarms])
    header = ["model", "class", "bank", "reader", "bar", "measured", "missed by", "false alarms of the gate"]
    return (table(header, rows) if rows else "None is missed.") + _early_in_remap()


def remap_transports() -> str:
    """Trouser, by transport: forget / retain test accuracy of each probe."""
    rows = []
    for name, title, entry in _remap_entries():
        for transport in ("quantile", "hash", "nearest"):
            run = entry.get("seed=0" if transport == "quantile" else f"transport={transport}")
            if run is None or title != "Trouser":
                continue
            probes = [run["probes"][probe] for probe in READERS]
            cells = [f"{p['forget_test']:.1f} / {p['retain_test']:.1f}" for p in probes]
            found = entry["attackers" if transport == "quantile" else f"attackers, transport={transport}"]
            detector, repeated, _, moved, _ = found.values()
            cells += [f"{value:.1f}" for value in (detector, repeated, moved)]
            rows.append([f"`{name}`" if transport == "quantile" else "", transport, *cells])
    header = ["model", "transport", *READERS.values(), "detector", "repeated", "movement"]
    return table(header, rows) + _early_in_remap()


def remap_gates() -> str:
    """The operating curve of the gate: what it finds and what it takes for forgotten."""
    rows = []
    for name, title, entry in _remap_entries():
        gates = [entry["seed=0"], *(entry[f"threshold={t}"] for t in (0.3, 0.1, 0.03))]
        cells = [f"{g['gate']['recall']:.1f} / {g['gate']['false_alarms']:.2f}" for g in gates]
        kept = [f"{g['head']['retain_test']:.1f}" for g in gates]
        shown = [f"{cell}, {head}" for cell, head in zip(cells, kept, strict=True)]
        rows.append([f"`{name}`" if title == "Trouser" else "", title, *shown])
    return table(["model", "class", "argmax", "threshold 0.3", "0.1", "0.03"], rows)


def remap_attackers() -> str:
    """What those find who look for the map itself."""
    rows = []
    for name, title, entry in _remap_entries():
        found = entry["attackers"]
        rows.append([f"`{name}`" if title == "Trouser" else "", title, *(f"{value:.1f}" for value in found.values())])
    header = ["model", "class", *next(_remap_entries())[2]["attackers"]]
    return table(header, rows)


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
            if "times_slower" in entry:
                measured = f"{entry['times_slower']:.1f} times slower, accuracies "
                measured += "equal" if entry["accuracies_equal"] else "not equal"
            if "entries_that_differ" in entry:
                measured += f", {entry['entries_that_differ']} of {entry['entries_cut']} cut entries differ"
            if "reference_mib" in entry:
                measured += f": {entry['mib']:.0f} over {entry['reference_mib']:.0f} MiB, of which the imports alone"
                measured += f" take {entry['imports_mib']:.0f}"
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
    for function in (
        embedded_models,
        embedded_erasures,
        embedded_probes,
        esc_t_seeds,
        esc_t_three_classes,
        esc_t_ablation,
        esc_t_tau,
        esc_t_learning_rate,
        esc_t_tolerance,
        knowledge_retention,
        retention_in_short,
        kr_curve,
        attacks,
        attack_meanings,
        other_metrics,
        several_classes,
        remap_probes,
        remap_retain,
        remap_one_vs_rest,
        remap_misses,
        remap_transports,
        remap_gates,
        remap_attackers,
        performance,
        demo,
        test,
    )
} | report_unlearning.BLOCKS
BLOCKS |= report_methods.BLOCKS | report_faults.BLOCKS


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
