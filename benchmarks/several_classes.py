"""
Several classes at once: directions of the pooled forget features against directions of each class in turn.

    OMP_NUM_THREADS=1 python benchmarks/several_classes.py

Writes `benchmarks/results/several_classes.json`: accuracies of the head of the embedded ResNet on the embedded images
after three classes are erased at once, for a number of directions, with the original beside them.
"""

import json
from pathlib import Path

import torch
import transformers
from embedded import features_and_predictions
from performance import setting

from hf_esc.data import image_batches, load_images
from hf_esc.features.basis import join_basis, remaining_directions
from hf_esc.features.head import site_outputs
from hf_esc.features.moments import SecondMoment
from hf_esc.features.sites import find_sites
from hf_esc.loading import load_classifier, load_processor

RESULTS = Path(__file__).parent / "results" / "several_classes.json"
MODEL, FORGET = "embedded/resnet", ["Trouser", "Sneaker", "Bag"]
POOLED, PER_CLASS = (1, 2, 3, 4, 6, 8), (1, 2)


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    model = load_classifier(MODEL, device="cpu")
    processor = load_processor(model)
    sites = find_sites(model, next(image_batches(data.train, processor, image_column="image", batch_size=1)))
    splits = features_and_predictions(model, data, processor, MODEL)
    forget = torch.tensor([data.label_names.index(name) for name in FORGET])
    (train, _, train_labels), (test, _, test_labels) = (
        map(torch.as_tensor, splits[name]) for name in ("train", "test")
    )

    def moment(labels: torch.Tensor) -> SecondMoment:
        return SecondMoment(train.shape[1]).update(train[torch.isin(train_labels, labels)])

    @torch.no_grad()
    def accuracies(basis: torch.Tensor) -> dict[str, float]:
        result = {}
        u = basis.float()
        for name, z, labels in (("train", train, train_labels), ("test", test, test_labels)):
            right = site_outputs(model, sites, [z - (z @ u) @ u.T])[0].argmax(1) == labels
            gone = torch.isin(labels, forget)
            result[f"forget_{name}"] = 100 * right[gone].double().mean().item()
            result[f"retain_{name}"] = 100 * right[~gone].double().mean().item()
        return result

    nothing = torch.zeros(train.shape[1], 0, dtype=torch.float64)
    rows = [{"directions": 0, "how": "original", **accuracies(nothing)}]
    for rank in POOLED:
        basis = join_basis(nothing, remaining_directions(nothing, moment(forget).matrix), rank)
        rows.append({"directions": rank, "how": "pooled", **accuracies(basis)})
    for rank in PER_CLASS:
        basis = nothing
        for label in forget.sort().values:
            basis = join_basis(basis, remaining_directions(basis, moment(label).matrix), rank)
        rows.append({"directions": basis.shape[1], "how": "per class", **accuracies(basis)})
    results = {"model": MODEL, "forget": FORGET, "features": train.shape[1], "rows": rows, "setting": setting(1)}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
