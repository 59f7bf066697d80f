"""
What ESC does to the embedded models: each of the ten classes erased from each of the three, on the embedded images.

    OMP_NUM_THREADS=1 python benchmarks/embedded.py

Writes `benchmarks/results/embedded.json`: accuracies before and after for every class, and what a probe that is
trained to convergence on the features, forget labels included, still reads of the class. Beside each stands the
original, and a randomly initialised network, which tells what anyone learns from the pictures. Only what is missing is
run.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from performance import setting
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForImageClassification

from hf_esc import ESCModel, erase
from hf_esc.data import ImageData, image_batches, load_images
from hf_esc.embedded import embedded_models
from hf_esc.erasure.wrapping import wrap
from hf_esc.evaluation import harmonic_mean
from hf_esc.features.sites import find_sites
from hf_esc.loading import load_classifier, load_processor

RESULTS = Path(__file__).parent / "results" / "embedded.json"
SETTINGS = {"p": 1.5, "probe": "standardised features, multinomial logistic regression, C=100, L-BFGS to convergence"}


@torch.no_grad()
def features_and_predictions(model: ESCModel, data: ImageData, processor) -> dict[str, tuple[np.ndarray, ...]]:
    """For each split: features, predicted classes, labels."""
    splits = {}
    for name, split in (("train", data.train), ("test", data.test)):
        columns = {"image_column": data.image_column, "label_column": data.label_column}
        rows = []
        for batch in image_batches(split, processor, batch_size=100, **columns):
            output = model(pixel_values=batch["pixel_values"])
            rows.append((output.pooler_output.numpy(), output.logits.argmax(1).numpy(), batch["labels"].numpy()))
        splits[name] = tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))
    return splits


def head_accuracies(splits, forget: int) -> dict[str, float]:
    """The six numbers of `hf_esc.evaluation.Accuracies`."""
    result = {}
    for name, (_, predicted, labels) in splits.items():
        right, mask = predicted == labels, labels == forget
        result |= {f"forget_{name}": 100 * right[mask].mean(), f"retain_{name}": 100 * right[~mask].mean()}
        result[f"hm_{name}"] = harmonic_mean(result[f"forget_{name}"], result[f"retain_{name}"])
    return {key: float(value) for key, value in result.items()}


def probe_accuracies(splits, forgets: list[int]) -> dict[int, dict[str, float]]:
    """Test accuracies of a converged probe on the features, for each class as the forgotten one."""
    (train, _, train_labels), (test, _, labels) = splits["train"], splits["test"]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=100, max_iter=20_000))
    right = probe.fit(train, train_labels).predict(test) == labels
    iterations = int(probe[-1].n_iter_[0])
    return {
        forget: {
            "forget_test": 100 * float(right[labels == forget].mean()),
            "retain_test": 100 * float(right[labels != forget].mean()),
            "iterations": iterations,
        }
        for forget in forgets
    }


def projected(splits, basis: torch.Tensor):
    """The features that reach the head of the erased model, from those of the original."""
    u = basis.numpy()
    return {name: (z - (z @ u) @ u.T, predicted, labels) for name, (z, predicted, labels) in splits.items()}


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    classes = list(range(data.num_labels))
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in embedded_models():
        if len(results.get(name, {}).get("classes", {})) == len(classes):
            continue
        start = time.perf_counter()
        model = load_classifier(name, device="cpu")
        processor = load_processor(model)
        first = next(image_batches(data.train, processor, image_column=data.image_column, batch_size=1))
        sites = find_sites(model, first)
        torch.manual_seed(0)
        untrained = AutoModelForImageClassification.from_config(model.config).eval()
        original, random = (
            features_and_predictions(wrap(network, [site.to_dict() for site in sites]), data, processor)
            for network in (model, untrained)
        )
        probes = {"original": probe_accuracies(original, classes), "random": probe_accuracies(random, classes)}
        entry = {"parameters": model.num_parameters(), "features": sites[0].dim, "classes": {}}
        for forget in classes:
            erased = erase(model, data.select(data.train, [forget]), p=SETTINGS["p"], processing_class=processor)
            after = features_and_predictions(erased, data, processor)
            left = projected(original, erased.projections[0].factors[0].basis)
            assert np.allclose(left["test"][0], after["test"][0], atol=1e-3)  # the same features, both ways
            entry["classes"][data.label_names[forget]] = {
                "rank": erased.config.erasures[-1]["rank"],
                "unchanged": erased.config.erasures[-1]["unchanged"],
                "before": head_accuracies(original, forget),
                "after": head_accuracies(after, forget),
                "probe": {
                    "original": probes["original"][forget],
                    "erased": probe_accuracies(after, [forget])[forget],
                    "random": probes["random"][forget],
                },
            }
            print(
                name, data.label_names[forget], entry["classes"][data.label_names[forget]], file=sys.stderr, flush=True
            )
        entry |= {"seconds": time.perf_counter() - start, "settings": SETTINGS, "setting": setting(1)}
        results[name] = entry
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
