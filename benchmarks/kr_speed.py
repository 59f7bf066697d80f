"""Speed of knowledge retention: one pass of the backbone, where the paper's protocol done literally takes ten."""

from collections.abc import Callable

import evaluate
import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_esc.data import image_batches, load_images
from hf_esc.evaluation.accuracy import accuracies_of, shares_of
from hf_esc.features.sites import find_sites
from hf_esc.features.stream import stream_features

EPOCHS, BATCH, LEARNING_RATE = 10, 64, 1e-3
FORGET = 1


def pictures(processor, count: int) -> tuple[Tensor, Tensor]:
    """So many embedded pictures, preprocessed, with their labels."""
    data = load_images("embedded")
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    rows = data.train.shuffle(seed=0).select(range(count))
    batches = list(image_batches(rows, processor, batch_size=BATCH, **columns))
    return torch.cat([batch["pixel_values"] for batch in batches]), torch.cat([batch["labels"] for batch in batches])


def kr_score(metric, model, sites, pixels: Tensor, labels: Tensor) -> dict:
    """The paper's probe, from pictures to accuracies: seven of ten pictures to train it, three to try it."""
    batches = ({"pixel_values": part} for part in pixels.split(BATCH))
    features = torch.cat([batch.features[0] for batch in stream_features(model, sites, batches)])
    half = len(pixels) * 7 // 10
    return metric.compute(
        predictions=features[half:],
        references=labels[half:],
        train_features=features[:half],
        train_labels=labels[:half],
        forget_labels=[FORGET],
    )


def one_pass(compare: Callable, model, processor, runs: int) -> dict:
    """`kr_score` by the paper's probe, features included, over a bare forward pass of the same 2,000 pictures."""
    pixels, labels = pictures(processor, 2000)
    sites = find_sites(model, {"pixel_values": pixels[:1]})
    metric = evaluate.load("kr_score")

    @torch.no_grad()
    def forward():
        for part in pixels.split(BATCH):
            model(pixel_values=part)

    return compare(lambda: kr_score(metric, model, sites, pixels, labels), forward, runs) | {"images": len(pixels)}


def literal(compare: Callable, model, processor, runs: int) -> dict:
    """The paper's protocol with the backbone in every step, over `kr_score`, on 500 pictures."""
    pixels, labels = pictures(processor, 500)
    sites = find_sites(model, {"pixel_values": pixels[:1]})
    metric = evaluate.load("kr_score")
    half = len(pixels) * 7 // 10
    found: dict[str, dict] = {}

    def ours():
        found["ours"] = kr_score(metric, model, sites, pixels, labels)

    def features(part: Tensor) -> Tensor:
        [batch] = stream_features(model, sites, [{"pixel_values": part}])
        return batch.features[0]

    def backbone_in_the_loop():
        generator = torch.Generator().manual_seed(0)
        head = nn.utils.skip_init(nn.Linear, sites[0].dim, 10)
        nn.init.xavier_normal_(head.weight, generator=generator)
        nn.init.zeros_(head.bias)
        optimizer = torch.optim.SGD(head.parameters(), lr=LEARNING_RATE)
        for _ in range(EPOCHS):
            for rows in torch.randperm(half, generator=generator).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(head(features(pixels[rows])), labels[rows]).backward()
                optimizer.step()
        shares = []
        for part, truth in ((pixels[:half], labels[:half]), (pixels[half:], labels[half:])):
            said = torch.cat([head(features(some)).argmax(dim=1) for some in part.split(BATCH)])
            shares.append(shares_of(said, truth, truth == FORGET))
        found["literal"] = vars(accuracies_of(*shares))

    result = compare(backbone_in_the_loop, ours, runs)
    return result | {
        "times_slower": result["ratio"],
        "images": len(pixels),
        "accuracies": found["literal"],
        "accuracies_equal": all(found["ours"][key] == value for key, value in found["literal"].items()),
    }
