"""
Speed and memory of erasure, as ratios inside one run, against the bars that the project sets itself.

    OMP_NUM_THREADS=1 python benchmarks/performance.py
    OMP_NUM_THREADS=1 python benchmarks/performance.py --efficientnet FOLDER --only erase/efficientnet-lite0

Writes `benchmarks/results/performance.json`, one entry for each measurement; `--only` leaves the other entries as they
are. `--efficientnet` takes a checkpoint of EfficientNet-Lite0 as a TimmWrapper folder; without it the weights are
random.
"""

import itertools
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import kr_speed
import torch
import transformers
from esc_t_speed import cached_over_backbone
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    HfArgumentParser,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

import hf_esc
from hf_esc import SecondMoment, erase, find_sites, principal_directions
from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.data import image_batches, load_images
from hf_esc.erasure.remap import remap
from hf_esc.features.sites import SiteGroup
from hf_esc.features.stream import stream_features
from hf_esc.loading import load_classifier, load_processor
from hf_esc.modeling.factors import MaskedFactor
from hf_esc.modeling.remap_factor import RemapFactor

RESULTS = Path(__file__).parent / "results" / "performance.json"


@dataclass
class Arguments:
    runs: int = field(default=7, metadata={"help": "Interleaved runs of each of two things that are compared."})
    only: str = field(default="", metadata={"help": "Run the measurements whose name begins so, and keep the others."})
    efficientnet: str = field(default="", metadata={"help": "A checkpoint of EfficientNet-Lite0."})
    process: str = field(default="", metadata={"help": "Used by the memory measurements for their own processes."})


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(ours: Callable[[], object], reference: Callable[[], object], runs: int) -> dict:
    """
    Interleaved runs, after one of each that does not count. The ratio is the median of the ratios of neighbouring
    runs, which a machine that slows down for a while disturbs less than the ratio of the medians.
    """
    ours(), reference()
    pairs = []
    for run in range(runs):
        # Whoever goes first may find a colder cache: take turns.
        if run % 2:
            theirs = seconds(reference)
            pairs.append((seconds(ours), theirs))
        else:
            pairs.append((seconds(ours), seconds(reference)))
    return {
        "seconds": statistics.median(a for a, _ in pairs),
        "reference_seconds": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(a / b for a, b in pairs),
        "ratios": [a / b for a, b in pairs],
    }


def vit_b16() -> ViTForImageClassification:
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


def efficientnet(folder: str):
    if folder:
        return AutoModelForImageClassification.from_pretrained(folder).eval()
    torch.manual_seed(0)
    return TimmWrapperForImageClassification(
        TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=1000)
    ).eval()


def with_processor(folder: str):
    """EfficientNet-Lite0 with the image processor of its checkpoint, or one for its size."""
    model = efficientnet(folder)
    processor = load_processor(model) if folder else ViTImageProcessor()
    return model, processor


def random_batches(count: int, batch_size: int, size: int = 224) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": torch.randn(batch_size, 3, size, size, generator=generator)} for _ in range(count)]


def embedded_batches(count: int) -> list[dict]:
    data = load_images("embedded")
    processor = load_processor(load_classifier("embedded/vit", device="cpu"))
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    rows = data.train.select(range(count))
    return [
        {"pixel_values": batch["pixel_values"]} for batch in image_batches(rows, processor, batch_size=32, **columns)
    ]


def erase_over_forward(model, batches: list[dict], runs: int) -> dict:
    """
    `erase`, its copy of the model and its eigendecomposition included, over the bare forward pass of the same
    images.
    """
    sites = find_sites(model, batches[0])

    @torch.no_grad()
    def forward():
        for batch in batches:
            model(**batch)

    return compare(lambda: erase(model, batches, sites=sites), forward, runs)


def moment_over_svd(runs: int, dtype: torch.dtype) -> dict:
    """The second moment and its eigendecomposition, over the SVD of the stored features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(20_000, 768, generator=generator) * torch.logspace(0, -2, 768) + 0.1
    stored = features.to(dtype).T.contiguous()  # (d, N)
    found = {}

    def ours():
        moment = SecondMoment(768)
        for batch in features.split(256):
            moment.update(batch)
        found["ours"] = principal_directions(moment.matrix, 11)

    def svd():
        found["svd"] = torch.linalg.svd(stored, full_matrices=False).U[:, :11]

    result = compare(ours, svd, runs)
    ours_projector, svd_projector = (u.double() @ u.double().T for u in (found["ours"], found["svd"]))
    return result | {
        "times_faster": 1 / result["ratio"],
        "projector_difference": (ours_projector - svd_projector).abs().max().item(),
    }


def inference(runs: int, *, masked: bool = False) -> dict:
    """An erased model over its base."""
    base, [batch] = vit_b16(), random_batches(1, 8)
    erased = erase(base, [batch], rank=7)
    if masked:
        torch.manual_seed(0)
        basis = torch.linalg.qr(torch.randn(768, 768)).Q
        record = erased.config.erasures[-1]
        erased.set_factors([[MaskedFactor.of(basis, torch.rand(768, 768) > 0.005)]], record)

    @torch.no_grad()
    def run(model):
        model(**batch)

    return compare(lambda: run(erased), lambda: run(base), runs)


def esc_and_remap() -> tuple[hf_esc.ESCModel, hf_esc.ESCModel]:
    """ViT-B/16 with a projection of ESC, and with a remap that is as large as by default."""
    base, [batch] = vit_b16(), random_batches(1, 8)
    projected, remapped = erase(base, [batch], rank=7), erase(base, [batch], rank=7)
    torch.manual_seed(0)
    factor = RemapFactor(768, 2000, [0], 1000)
    for name, buffer in factor.named_buffers():
        setattr(factor, name, torch.randn(buffer.shape).to(buffer.dtype))
    # As a file may have them: directions of length 1, ranks in order, and no vector that the gate finds.
    factor.directions = functional.normalize(factor.directions)
    factor.ranks = factor.ranks.sort().values
    factor.bias[0] = -1e4
    remapped.set_factors([[factor]], remapped.config.erasures[-1])
    return projected, remapped


def remap_inference(runs: int) -> dict:
    """A remapped model over one that ESC has erased a class from."""
    [batch] = random_batches(1, 8)
    projected, remapped = esc_and_remap()

    @torch.no_grad()
    def run(model):
        model(**batch)

    return compare(lambda: run(remapped), lambda: run(projected), runs)


def embedded_sets() -> tuple[ViTForImageClassification, list[dict], list[dict], list[SiteGroup]]:
    """The embedded ViT, 700 images to forget with labels, 2,210 others without, and where its head is."""
    model = load_classifier("embedded/vit", device="cpu")
    data, processor = load_images("embedded"), load_processor(model)
    columns = {"image_column": data.image_column, "label_column": data.label_column}
    sets = data.forget_set([1]), data.select(data.train, [1], keep=False).select(range(2210))
    forget, retain = (list(image_batches(rows, processor, batch_size=32, **columns)) for rows in sets)
    retain = without_labels(retain)
    return model, forget, retain, find_sites(model, retain[0])


def without_labels(batches: list[dict]) -> list[dict]:
    return [{"pixel_values": batch["pixel_values"]} for batch in batches]


def remap_over_esc(runs: int) -> dict:
    """Remap of 700 forget and 2,210 retain images, over ESC of as many images."""
    model, forget, retain, sites = embedded_sets()
    pictures = without_labels(forget) + retain
    return compare(
        lambda: remap(model, forget, retain, sites=sites), lambda: erase(model, pictures, sites=sites), runs
    )


def peak_memory(process: str) -> float:
    """The peak of a process of its own that does what `PROCESSES` has by this name, in MiB."""
    command = [sys.executable, __file__, "--process", process]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak() -> None:
    # Not `getrusage`: its peak survives exec, and so would be that of the process which started this one.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def all_cnn_768() -> AllCNNForImageClassification:
    torch.manual_seed(0)
    return AllCNNForImageClassification(AllCNNConfig(hidden_sizes=(4, 768), num_labels=10)).eval()


def erase_rows(rows: int) -> None:
    """ESC of so many feature rows of 768 dimensions."""
    model = all_cnn_768()
    batches = ({"pixel_values": torch.randn(100, 3, 12, 12)} for _ in range(rows // 100))
    erase(model, batches, rank=11)


def erase_768(method: str) -> None:
    """Remap of 700 forget and 2,210 retain images with 768 feature dimensions, or ESC of as many images."""
    model = all_cnn_768()

    def images(count: int, shade: float) -> Iterator[dict]:
        """Noise on a shade, by which the head tells what is to be forgotten from the rest."""
        return ({"pixel_values": torch.randn(10, 3, 12, 12) + shade} for _ in range(count // 10))

    light, dark = next(images(10, 1)), next(images(10, -1))
    sites = find_sites(model, light)
    means = [batch.features[0].mean(dim=0) for batch in stream_features(model, sites, [light, dark])]
    with torch.no_grad():
        model.classifier.weight.zero_()[0] = means[0] - means[1]
        model.classifier.bias.zero_()[0] = -model.classifier.weight[0] @ (means[0] + means[1]) / 2
    if method == "remap":
        labels = {"labels": torch.zeros(10, dtype=torch.long)}
        remap(model, (batch | labels for batch in images(700, 1)), images(2210, -1), sites=sites)
    else:
        erase(model, itertools.chain(images(700, 1), images(2210, -1)), rank=11, sites=sites)


def erase_embedded(method: str) -> None:
    """What `remap_over_esc` times, once."""
    model, forget, retain, sites = embedded_sets()
    if method == "remap":
        remap(model, forget, retain, sites=sites)
    else:
        erase(model, without_labels(forget) + retain, sites=sites)


@torch.no_grad()
def infer(folder: str) -> None:
    """Three batches through a model that is loaded from its file, as it is served."""
    model = hf_esc.ESCModel.from_pretrained(folder).eval()
    for batch in random_batches(3, 8):
        model(**batch)


PROCESSES: dict[str, Callable[[str], object]] = {
    "imports": lambda nothing: None,
    "rows": lambda rows: erase_rows(int(rows)),
    "erase-768": erase_768,
    "erase-embedded-vit": erase_embedded,
    "inference": infer,
}


def memory() -> dict:
    few, many = peak_memory("rows 5000"), peak_memory("rows 50000")
    return {"mib_5000_rows": few, "mib_50000_rows": many, "difference_mib": many - few}


def compare_memory(ours: str, reference: str, runs: int) -> dict:
    """
    Peaks of fresh processes in turn: the medians, and by how much ours is above the other. Most of either is the
    libraries, so the peak of a process that imports them and does nothing stands beside.
    """
    pairs = [(peak_memory(ours), peak_memory(reference)) for _ in range(runs)]
    mib, reference_mib = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "mib": mib,
        "reference_mib": reference_mib,
        "imports_mib": peak_memory("imports -"),
        "difference_mib": mib - reference_mib,
        "ratio": mib / reference_mib,
        "ratios": [a / b for a, b in pairs],
    }


def remap_erase_memory(kind: str, runs: int) -> dict:
    return compare_memory(f"{kind} remap", f"{kind} esc", runs)


def remap_inference_memory(runs: int) -> dict:
    """A remapped ViT-B/16 over one that ESC has erased a class from, each loaded from its file."""
    with tempfile.TemporaryDirectory() as folder:
        projected, remapped = esc_and_remap()
        projected.save_pretrained(f"{folder}/esc")
        remapped.save_pretrained(f"{folder}/remap")
        del projected, remapped
        return compare_memory(f"inference {folder}/remap", f"inference {folder}/esc", runs)


def command_help(runs: int) -> dict:
    """`hf-esc --help` as a user starts it."""
    command = [Path(sys.executable).parent / "hf-esc", "--help"]
    return {
        "seconds": statistics.median(
            seconds(lambda: subprocess.run(command, capture_output=True, check=True)) for _ in range(runs)
        )
    }


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    if arguments.process:
        kind, argument = arguments.process.split(" ", 1)
        PROCESSES[kind](argument)
        print_peak()
        return
    transformers.utils.logging.disable_progress_bar()
    import warnings

    warnings.simplefilter("ignore", hf_esc.errors.IncompleteErasureWarning)  # random weights
    runs = arguments.runs
    measurements: dict[str, tuple[Callable[[], dict], str, Callable[[dict], bool]]] = {
        "erase/vit-b16": (
            lambda: erase_over_forward(vit_b16(), random_batches(6, 8), runs),
            "ratio at most 1.05",
            lambda r: r["ratio"] <= 1.05,
        ),
        "erase/efficientnet-lite0": (
            lambda: (
                erase_over_forward(efficientnet(arguments.efficientnet), random_batches(8, 32), runs)
                | {"weights": "pretrained" if arguments.efficientnet else "random"}
            ),
            "ratio at most 1.05",
            lambda r: r["ratio"] <= 1.05,
        ),
        "erase/embedded-vit": (
            lambda: erase_over_forward(load_classifier("embedded/vit", device="cpu"), embedded_batches(2000), runs),
            "ratio at most 1.05",
            lambda r: r["ratio"] <= 1.05,
        ),
        "moment-over-svd/float64": (
            lambda: moment_over_svd(runs, torch.float64),
            "4 times faster or more, projectors within 1e-8",
            lambda r: r["times_faster"] >= 4 and r["projector_difference"] <= 1e-8,
        ),
        "moment-over-svd/float32": (
            lambda: moment_over_svd(runs, torch.float32),
            "4 times faster or more",
            lambda r: r["times_faster"] >= 4,
        ),
        "inference/vit-b16": (lambda: inference(runs), "ratio at most 1.02", lambda r: r["ratio"] <= 1.02),
        "inference/vit-b16-masked": (
            lambda: inference(runs, masked=True),
            "ratio at most 1.02",
            lambda r: r["ratio"] <= 1.02,
        ),
        "esc-t/cached-over-backbone": (
            lambda: cached_over_backbone(compare, 3),
            "10 times faster or more, masks equal after binarising",
            lambda r: r["times_faster"] >= 10 and r["entries_that_differ"] == 0,
        ),
        "inference/vit-b16-remap": (
            lambda: remap_inference(runs),
            "at most 1.05 times ESC's",
            lambda r: r["ratio"] <= 1.05,
        ),
        "erase/embedded-vit-remap": (
            lambda: remap_over_esc(runs),
            "at most 1.05 times ESC's of as many images",
            lambda r: r["ratio"] <= 1.05,
        ),
        "kr/one-pass": (
            lambda: kr_speed.one_pass(compare, *with_processor(arguments.efficientnet), 3),
            "ratio at most 1.3",
            lambda r: r["ratio"] <= 1.3,
        ),
        "kr/literal-over-cached": (
            lambda: kr_speed.literal(compare, *with_processor(arguments.efficientnet), 3),
            "the same accuracies",
            lambda r: r["accuracies_equal"],
        ),
        "cli/help": (lambda: command_help(runs), "under half a second", lambda r: r["seconds"] < 0.5),
        "memory/erase": (memory, "within 16 MiB", lambda r: r["difference_mib"] <= 16),
        "memory/erase-embedded-vit-remap": (
            lambda: remap_erase_memory("erase-embedded-vit", runs),
            "at most 1.05 times ESC's of as many images",
            lambda r: r["ratio"] <= 1.05,
        ),
        "memory/erase-768-remap": (
            lambda: remap_erase_memory("erase-768", runs),
            "at most 1.05 times ESC's of as many images",
            lambda r: r["ratio"] <= 1.05,
        ),
        "memory/inference-vit-b16-remap": (
            lambda: remap_inference_memory(runs),
            "at most 1.05 times ESC's",
            lambda r: r["ratio"] <= 1.05,
        ),
    }
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (measure, bar, meets) in measurements.items():
        if not name.startswith(arguments.only):
            continue
        result = measure()
        results[name] = {"bar": bar, "met": meets(result), **result, "setting": setting(runs)}
        shown = {key: round(value, 4) for key, value in result.items() if isinstance(value, float)}
        print(f"{'met   ' if results[name]['met'] else 'MISSED'} {name}: {bar}; {shown}", file=sys.stderr, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def setting(runs: int) -> dict:
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "runs": runs,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "hf_esc": hf_esc.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "revision": revision.stdout.strip(),
    }


if __name__ == "__main__":
    main()
