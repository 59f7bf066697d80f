"""Speed of knowledge retention: one pass of the backbone, where the protocol done literally takes ten."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from hf_esc.evaluation.knowledge_retention import knowledge_retention
from hf_esc.features import stream_features
from hf_esc.sites import find_sites

EPOCHS, BATCH = 10, 64


def features_of(model, sites, batches: list[dict]) -> torch.Tensor:
    return torch.cat([batch.features[0] for batch in stream_features(model, sites, batches)])


def one_pass(compare: Callable, model, batches: list[dict], runs: int) -> dict:
    """KR by the paper's probe, features included, over a bare forward pass of the same images."""
    sites = find_sites(model, batches[0])
    images = sum(len(batch["pixel_values"]) for batch in batches)
    labels = torch.arange(images) % 10
    half = images // 2

    @torch.no_grad()
    def forward():
        for batch in batches:
            model(**batch)

    def ours():
        z = features_of(model, sites, batches)
        knowledge_retention(z[:half], labels[:half], z[half:], labels[half:], [0])

    return compare(ours, forward, runs) | {"images": images}


def literal(compare: Callable, model, batches: list[dict], runs: int) -> dict:
    """The paper's protocol with the backbone in every step, over the same on features that are kept."""
    sites = find_sites(model, batches[0])
    pixels = torch.cat([batch["pixel_values"] for batch in batches])
    labels = torch.arange(len(pixels)) % 10
    half = len(pixels) // 2
    accuracies = {}

    def ours():
        z = features_of(model, sites, [{"pixel_values": part} for part in pixels.split(BATCH)])
        accuracies["ours"] = knowledge_retention(
            z[:half], labels[:half], z[half:], labels[half:], [0]
        ).accuracies.retain_test

    def backbone_in_the_loop():
        generator = torch.Generator().manual_seed(0)
        head = nn.Linear(sites[0].dim, 10)
        nn.init.xavier_normal_(head.weight, generator=generator)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
        for _ in range(EPOCHS):
            for rows in torch.randperm(half, generator=generator).split(BATCH):
                optimizer.zero_grad()
                z = features_of(model, sites, [{"pixel_values": pixels[rows]}])
                functional.cross_entropy(head(z), labels[:half][rows]).backward()
                optimizer.step()
        test = features_of(model, sites, [{"pixel_values": part} for part in pixels[half:].split(BATCH)])
        right = head(test).argmax(1) == labels[half:]
        accuracies["literal"] = 100 * right[labels[half:] != 0].double().mean().item()

    result = compare(backbone_in_the_loop, ours, runs)
    return result | {"images": len(pixels), **accuracies}
