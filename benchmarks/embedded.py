"""
What ESC does to the embedded models: each of the ten classes erased from each of the three, on the embedded images.

    OMP_NUM_THREADS=1 python benchmarks/embedded.py

Writes `benchmarks/results/embedded.json`: accuracies before and after for every class, and what a probe that is
trained to convergence on the features, forget labels included, still reads of the class. Beside each stands the
original, and a randomly initialised network, which tells what anyone learns from the pictures. Only what is missing is
run.
"""

import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from performance import setting
from results import read, stopped_early, write

from hf_esc import ESCModel, erase
from hf_esc.data import ImageData, load_images
from hf_esc.embedded import embedded_models
from hf_esc.evaluation.accuracy import accuracies_of, share_of, shares_of
from hf_esc.evaluation.model_features import model_features
from hf_esc.evaluation.probes import train_probe
from hf_esc.features.head import site_outputs
from hf_esc.features.sites import SiteGroup
from hf_esc.loading import load_classifier, load_processor, random_network

RESULTS = Path(__file__).parent / "results" / "embedded.json"
SETTINGS = {"p": 1.5, "probe": "converged"}
# For each split: features, predicted classes, labels.
Splits = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]


def features_and_predictions(model, data: ImageData, processor, whose: str, name: str = "original") -> Splits:
    """Of a network of the kind of the embedded model `whose`. The features are kept where `run.py` keeps them."""
    folder = Path("build/features") / whose.replace("/", "-")
    seen = model_features(model, data, processor, folder=folder, name=name, batch_size=100)
    return {
        title: (part.features.numpy(), part.logits.argmax(1).numpy(), part.labels.numpy())
        for title, part in (("train", seen.train), ("test", seen.test))
    }


@torch.no_grad()
def after(erased: ESCModel, splits: Splits) -> Splits:
    """The same for an erased model, from the features before the erasure."""
    found = {}
    sites = [SiteGroup.from_dict(site) for site in erased.config.sites]
    for title, (z, _, labels) in splits.items():
        projected = erased.projections[0](torch.as_tensor(z))
        logits = site_outputs(erased.model, sites, [projected])[0]
        found[title] = (projected.numpy(), logits.argmax(1).numpy(), labels)
    return found


def head_accuracies(splits: Splits, forget: int) -> dict[str, float | None]:
    """The numbers of `hf_esc.evaluation.Accuracies`."""
    shares = []
    for _, predicted, labels in splits.values():
        of = torch.as_tensor(labels)
        shares.append(shares_of(torch.as_tensor(predicted), of, of == forget))
    return asdict(accuracies_of(*shares))


def probe_accuracies(splits: Splits, forgets: list[int]) -> dict[int, dict[str, Any]]:
    """Test accuracies of a converged probe on the features, for each class as the forgotten one, and its settings."""
    (z, labels), (z_test, labels_test) = (
        (torch.as_tensor(splits[name][0]), torch.as_tensor(splits[name][2])) for name in ("train", "test")
    )
    probe = train_probe("converged", z, labels, num_labels=int(labels.max()) + 1)
    right = probe.predict(z_test) == labels_test
    return {
        forget: {
            "forget_test": share_of(right, labels_test == forget),
            "retain_test": share_of(right, labels_test != forget),
            **probe.settings,
        }
        for forget in forgets
    }


def probes_of(classes: dict[str, Any]) -> Iterable[dict[str, Any]]:
    """What each probe of a model's results found, and its settings."""
    return (probe for entry in classes.values() for probe in entry["probe"].values())


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    classes = list(range(data.num_labels))
    results = read(RESULTS)
    for name in embedded_models():
        there = results.get(name, {}).get("classes", {})
        if len(there) == len(classes) and not any(map(stopped_early, probes_of(there))):
            continue
        start = time.perf_counter()
        model = load_classifier(name, device="cpu")
        processor = load_processor(model)
        original = features_and_predictions(model, data, processor, name)
        random = features_and_predictions(random_network(model), data, processor, name, "random")
        probes = {"original": probe_accuracies(original, classes), "random": probe_accuracies(random, classes)}
        entry = {"parameters": model.num_parameters(), "features": original["train"][0].shape[1], "classes": {}}
        for forget in classes:
            erased = erase(model, data.select(data.train, [forget]), p=SETTINGS["p"], processing_class=processor)
            left = after(erased, original)
            batch = next(data.batches(data.test, processor, batch_size=100))
            with torch.no_grad():
                seen = erased(pixel_values=batch["pixel_values"]).pooler_output.numpy()
            assert np.allclose(seen, left["test"][0][:100], atol=1e-3)  # the same features, both ways
            entry["classes"][data.label_names[forget]] = {
                "rank": erased.config.erasures[-1]["rank"],
                "unchanged": erased.config.erasures[-1]["unchanged"],
                "before": head_accuracies(original, forget),
                "after": head_accuracies(left, forget),
                "probe": {
                    "original": probes["original"][forget],
                    "erased": probe_accuracies(left, [forget])[forget],
                    "random": probes["random"][forget],
                },
            }
            print(
                name, data.label_names[forget], entry["classes"][data.label_names[forget]], file=sys.stderr, flush=True
            )
        entry |= {"seconds": time.perf_counter() - start, "settings": SETTINGS, "setting": setting(1)}
        results[name] = entry
        write(RESULTS, results)


if __name__ == "__main__":
    main()
