"""
What every probe and some adaptive attackers read after a remap, on the embedded models; other transports and gates.

    OMP_NUM_THREADS=1 python benchmarks/remap.py

Writes `benchmarks/results/remap.json`. Each class is erased with three seeds of the bank. Only what is missing is run.
Features are computed once for each model; the map is then applied to them, as the erased model does.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
from performance import setting
from results import any_stopped_early, read, write
from sklearn.metrics import roc_auc_score
from torch import Tensor

from hf_esc.data import image_batches, load_images
from hf_esc.embedded import embedded_models
from hf_esc.erasure.remap import remap
from hf_esc.evaluation.accuracy import accuracies_of, share_of, shares_of
from hf_esc.evaluation.knowledge_retention import retention_of
from hf_esc.evaluation.model_features import SplitFeatures, model_features
from hf_esc.evaluation.probes import PROBES, train_probe
from hf_esc.features.sites import find_sites
from hf_esc.features.stream import stream_features
from hf_esc.loading import load_classifier, load_processor
from hf_esc.modeling.remap_factor import RemapFactor

RESULTS = Path(__file__).parent / "results" / "remap.json"
ALONE = "converged, retain labels alone"
CLASSES, SEEDS = ("Trouser", "Shirt", "Bag"), (0, 1, 2)


class HashTransport(RemapFactor):
    """Any vector of the bank, by a hash of the feature: uniform, and not gradual."""

    def rank(self, x: Tensor, likeliest: Tensor) -> Tensor:
        mixed = (x.double() @ torch.arange(1, self.dim + 1, dtype=torch.float64).sqrt()) * 1e4
        return ((mixed - mixed.floor()) * len(self.bank)).long().clamp_max(len(self.bank) - 1)


class NearestTransport(RemapFactor):
    """The nearest vector of the bank where eight directions of the class are projected out, both standardised."""

    forget: Tensor

    def rank(self, x: Tensor, likeliest: Tensor) -> Tensor:
        basis = torch.linalg.eigh(self.forget.double().T @ self.forget.double()).eigenvectors[:, -8:].float()

        def erased(z: Tensor, of: Tensor) -> Tensor:
            z, of = (part - (part @ basis) @ basis.T for part in (z, of))
            return (z - of.mean(dim=0)) / of.std(dim=0).clamp_min(1e-6)

        bank = self.bank.float()
        return torch.cdist(erased(x, self.forget), erased(bank, bank)).argmin(dim=1)


TRANSPORTS = {"quantile": RemapFactor, "hash": HashTransport, "nearest": NearestTransport}


def with_threshold(factor: RemapFactor, threshold: float) -> RemapFactor:
    """The same map behind another gate. What a lower threshold lets in beyond the argmax is ranked among the rest."""
    other = RemapFactor(factor.dim, len(factor.bank), factor.labels, len(factor.bias), threshold)
    other.load_state_dict(factor.state_dict())
    return other


def with_transport(factor: RemapFactor, kind: type[RemapFactor], forget: Tensor) -> RemapFactor:
    other = kind(factor.dim, len(factor.bank), factor.labels, len(factor.bias), factor.threshold)
    other.load_state_dict(factor.state_dict())
    other.forget = forget
    return other


@dataclass(frozen=True)
class Case:
    """A class of a model: features of both splits as the original has them, and pictures with and without noise."""

    train: SplitFeatures
    test: SplitFeatures
    label: int
    clean: Tensor
    noisy: Tensor

    def measured(self, change: Callable[[Tensor], Tensor], seed: int) -> dict:
        """Accuracies of every probe on changed features, and of one trained on retain images alone; and settings."""
        train, test = self.train, self.test
        z_train, z_test = change(train.features), change(test.features)
        gone, gone_test = train.labels == self.label, test.labels == self.label
        parts = (z_train, train.labels, gone), (z_test, test.labels, gone_test)
        found = {probe: retention_of(*parts, probe=probe, seed=seed) for probe in PROBES}
        alone = train_probe("converged", z_train[~gone], train.labels[~gone], num_labels=10)
        right = alone.predict(z_test) == test.labels
        return {
            "probes": {probe: asdict(read.accuracies) for probe, read in found.items()}
            | {ALONE: {"retain_test": share_of(right, ~gone_test)}},
            "settings": {probe: read.settings for probe, read in found.items()} | {ALONE: alone.settings},
        }

    def head(self, factor: RemapFactor, change: Callable[[Tensor], Tensor]) -> dict:
        """Accuracies of the head on changed features."""
        shares = []
        for split in (self.train, self.test):
            said = factor.logits(change(split.features)).argmax(dim=1)
            shares.append(shares_of(said, split.labels, split.labels == self.label))
        return asdict(accuracies_of(*shares))

    def gate(self, factor: RemapFactor) -> dict:
        """Of the test images: how many forget images the gate finds, and how many others it takes for them."""
        gated, gone = factor.gate(factor.logits(self.test.features)), self.test.labels == self.label
        return {"recall": share_of(gated, gone), "false_alarms": share_of(gated, ~gone)}

    def original(self, factor: RemapFactor) -> dict:
        return {"head": self.head(factor, unchanged), **self.measured(unchanged, 0)}

    def remapped(self, factor: RemapFactor, seed: int = 0, *, probes: bool = True) -> dict:
        found = {"gate": self.gate(factor), "head": self.head(factor, factor)}
        return found | (self.measured(factor, seed) if probes else {})

    def attackers(self, factor: RemapFactor) -> dict:
        """Who looks for the map itself. Each is told by a number that is 50, or the others', where nothing shows."""
        z_train, z_test = factor(self.train.features), factor(self.test.features)
        gated, gated_test = (factor.gate(factor.logits(part.features)) for part in (self.train, self.test))
        # As many of the others as there are gated ones: a detector that always says no would be right nearly always.
        others = (~gated).nonzero().flatten()
        drawn = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(0))[: int(gated.sum())]]
        rows = torch.cat([gated.nonzero().flatten(), drawn])
        said = train_probe("mlp", z_train[rows], gated[rows].long(), num_labels=2).predict(z_test).bool()
        # A feature that came before, but for its last digits.
        exact = z_test.double()
        nearest = torch.cdist(exact, exact).fill_diagonal_(torch.inf).min(dim=1).values
        repeated = nearest / exact.norm(dim=1) < 2e-3
        shut = factor.gate(factor.logits(self.clean))
        return {
            "detector of gated features, balanced accuracy": (
                share_of(said, gated_test) + share_of(~said, ~gated_test)
            )
            / 2,
            "repeated outputs, share of gated test images": share_of(repeated, gated_test),
            "repeated outputs, share of other test images": share_of(repeated, ~gated_test),
            "movement under noise, AUC": self._auc_of_movement(factor, shut),
            "movement under noise, AUC of the original": self._auc_of_movement(unchanged, shut),
        }

    def _auc_of_movement(self, change: Callable[[Tensor], Tensor], shut: Tensor) -> float:
        before, after = change(self.clean), change(self.noisy)
        moved = (after - before).norm(dim=1) / before.norm(dim=1)
        auc = 100 * roc_auc_score(shut.numpy(), moved.numpy())
        return max(auc, 100 - auc)


def unchanged(features: Tensor) -> Tensor:
    return features


def features_of(model, pixels: Tensor) -> Tensor:
    sites = find_sites(model, {"pixel_values": pixels[:1]})
    batches = ({"pixel_values": part} for part in pixels.split(100))
    return torch.cat([batch.features[0] for batch in stream_features(model, sites, batches)])


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    data = load_images("embedded")
    results = read(RESULTS) or {"setting": setting(1)}
    columns = {"image_column": data.image_column, "label_column": data.label_column}

    def keep(place: tuple[str, ...], function: Callable, *args, **options) -> None:
        node = results
        for key in place[:-1]:
            node = node.setdefault(key, {})
        there = node.get(place[-1])
        if there is None or any_stopped_early(there.get("probes", ()), there.get("settings", {})):
            start = time.perf_counter()
            node[place[-1]] = function(*args, **options)
            write(RESULTS, results)
            print(*place, f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)

    for name in embedded_models():
        model = load_classifier(name, device="cpu")
        processor = load_processor(model)
        folder = Path("build/features") / name.replace("/", "-")
        seen = model_features(model, data, processor, folder=folder, name="original", batch_size=100)
        rows = torch.cat([(seen.test.labels == label).nonzero().flatten()[:60] for label in range(10)])
        [batch] = image_batches(data.test.select(rows.tolist()), processor, batch_size=len(rows), **columns)
        noise = torch.randn(batch["pixel_values"].shape, generator=torch.Generator().manual_seed(0))
        clean, noisy = (features_of(model, batch["pixel_values"] + size * noise) for size in (0, 0.05))
        for title in CLASSES:
            label = data.label_names.index(title)
            case = Case(seen.train, seen.test, label, clean, noisy)
            sets = data.forget_set([label]), data.select(data.train, [label], keep=False)
            common = {"processing_class": processor, "batch_size": 100, **columns}
            first = remap(model, *sets, **common).projections[0].factors[0]
            keep((name, title, "original"), case.original, first)
            for seed in SEEDS:
                factor = first if seed == 0 else remap(model, *sets, seed=seed, **common).projections[0].factors[0]
                keep((name, title, f"seed={seed}"), case.remapped, factor, seed)
            keep((name, title, "attackers"), case.attackers, first)
            for threshold in (0.3, 0.1, 0.03):
                other = with_threshold(first, threshold)
                keep((name, title, f"threshold={threshold}"), case.remapped, other, probes=title == CLASSES[0])
            if title == CLASSES[0]:
                for transport in ("hash", "nearest"):
                    other = with_transport(
                        first, TRANSPORTS[transport], seen.train.features[seen.train.labels == label]
                    )
                    keep((name, title, f"transport={transport}"), case.remapped, other)
                    keep((name, title, f"attackers, transport={transport}"), case.attackers, other)


if __name__ == "__main__":
    main()
