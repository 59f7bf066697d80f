"""
What an erasure keeps does not grow with the forget set.

Live tensors are counted while images stream in: by all classes that see the features alone, and by `erase` and `remap`
as a whole. Each count is made once more of code that does keep every feature, which shows that it would be seen.
"""

import gc
from itertools import pairwise

import pytest
import torch

from hf_esc.erasure import remap as remapping
from hf_esc.erasure import statistics
from hf_esc.erasure.remap import remap
from hf_esc.features.moments import SecondMoment
from hf_esc.features.sample import FeatureSample
from hf_esc.features.stream import FeatureBatch, stream_features

from .tiny import quietly
from .unlearning import learnt, pictures

BATCH, D = 500, 8


@pytest.fixture(scope="module", autouse=True)
def _only_what_comes_now():
    """Leave what earlier tests have made out of the count, which some of it would disturb: garbage, fake tensors."""
    gc.collect()
    gc.freeze()


def tensor_bytes() -> int:
    """Bytes of all storages that a live tensor holds."""
    gc.collect()
    found = [entry for entry in gc.get_objects() if issubclass(type(entry), torch.Tensor)]
    storages = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in found)}
    return sum(storages.values())


class KeepingMoment(SecondMoment):
    """A second moment that keeps every feature."""

    def update(self, features):
        self.kept = [*getattr(self, "kept", []), features]
        return super().update(features)


class KeepingSample(FeatureSample):
    """A sample that keeps every feature, as float16."""

    def update(self, batch):
        self.kept = [*getattr(self, "kept", []), *(z.half() for z in batch.features)]
        super().update(batch)


def keeping_stream(*args, **kwargs):
    """A stream that keeps what it has given."""
    kept = []
    for batch in stream_features(*args, **kwargs):
        kept.append(batch)
        yield batch


@pytest.mark.parametrize(("kind", "keeps"), [(SecondMoment, False), (KeepingMoment, True)])
def test_a_second_moment_does_not_grow_with_the_stream(kind, keeps):
    moment, sizes = kind(D), []
    for seed in range(6):
        moment.update(torch.randn(BATCH, D, generator=torch.Generator().manual_seed(seed)))
        sizes.append(tensor_bytes())
    assert moment.n == 6 * BATCH
    assert moment.matrix.untyped_storage().nbytes() == D * D * 8
    growth = [after - before for before, after in pairwise(sizes)]
    assert growth == ([BATCH * D * 4] * 5 if keeps else [0] * 5)


@pytest.mark.parametrize(("kind", "keeps"), [(FeatureSample, False), (KeepingSample, True)])
def test_a_sample_does_not_grow_once_it_is_full(kind, keeps):
    sample, sizes = kind(600), []
    for seed in range(6):
        z = torch.randn(BATCH, D, generator=torch.Generator().manual_seed(seed))
        sample.update(FeatureBatch([z], z[:, :4], torch.zeros(BATCH, dtype=torch.long)))
        sizes.append(tensor_bytes())
    assert [len(z) for z in sample.features] == [600]
    growth = [after - before for before, after in pairwise(sizes[1:])]
    assert growth == ([BATCH * D * 2] * 4 if keeps else [0] * 4)


def late_sizes(erasure) -> list[int]:
    """Bytes of live tensors at each of the last batches of forget images; all samples are full after 4,096 images."""
    sizes = []

    def stream():
        for seed in range(13):
            batch = pictures(1, BATCH, seed=seed)
            if seed > 9:
                sizes.append(tensor_bytes())
            yield batch

    erasure(stream())
    return sizes


def erased_from(batches):
    return quietly(learnt(), batches, rank=1)


def remapped(batches):
    return remap(learnt(), batches, [pictures(0, 32), pictures(2, 32)], bank_size=50)


@pytest.mark.parametrize(
    ("erasure", "module", "name", "keeping"),
    [
        (erased_from, None, None, None),
        (erased_from, statistics, "SecondMoment", KeepingMoment),
        (erased_from, statistics, "FeatureSample", KeepingSample),
        (erased_from, statistics, "stream_features", keeping_stream),
        (remapped, None, None, None),
        (remapped, remapping, "FeatureSample", KeepingSample),
        (remapped, remapping, "stream_features", keeping_stream),
    ],
    ids=[
        *("erase", "erase, moment keeps", "erase, sample keeps", "erase, stream keeps"),
        *("remap", "remap, sample keeps", "remap, stream keeps"),
    ],
)
def test_an_erasure_does_not_grow_with_the_forget_set(erasure, module, name, keeping, monkeypatch):
    if keeping is not None:
        monkeypatch.setattr(module, name, keeping)
    sizes = late_sizes(erasure)
    growth = [after - before for before, after in pairwise(sizes)]
    assert (growth == [0, 0]) == (keeping is None)
    assert keeping is None or min(growth) >= BATCH * D * 2
