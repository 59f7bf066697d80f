"""The features of ESC-T: taken once, in order, kept in memory or on disk, and dealt out without repeating any."""

import copy
import gc
from itertools import chain

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.data import image_batches
from hf_esc.loading import load_processor
from hf_esc.training.feature_store import FeatureCache, ForgetFeatures, SharesLoader

from .esc_t import OF_A_RUN, TROUSER, factor, made, record, rows, soft, trained


@pytest.fixture(scope="module")
def pictures(fashion):
    return fashion.select(fashion.train, [TROUSER]).select(range(200))


@pytest.fixture(scope="module")
def run(resnet, pictures):
    """What a run on images came to."""
    return trained(resnet, pictures)


@pytest.fixture(scope="module")
def batch(run):
    return rows(run.train_dataset)


# Where they are kept.


@given(
    sizes=st.lists(st.integers(0, 700), max_size=8), dim=st.integers(1, 5), limit=st.sampled_from([0, 1, 2000, 2**62])
)
def test_the_cache_gives_what_it_was_given_in_memory_or_on_disk(sizes, dim, limit, tmp_path_factory):
    file = tmp_path_factory.mktemp("cache") / "folder" / "features.arrow"
    cache = FeatureCache(dim, file, limit)
    parts = [torch.randn(size, dim, generator=torch.Generator().manual_seed(size)) for size in sizes]
    for number, part in enumerate(parts):
        cache.append(part, torch.full((len(part),), number))
    kept = cache.finish()
    expected = torch.cat([torch.empty(0, dim), *parts])
    assert kept.on_disk == file.exists() == (4 * dim * len(expected) > limit)
    assert len(kept) == len(expected)
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    order = list(reversed(range(len(kept))))
    for picked in (order, order[:1], order[::3], []):
        found = kept.__getitems__(picked)
        assert found["features"].shape == (len(picked), dim)
        assert torch.equal(found["features"], expected[picked])
        assert found["labels"].tolist() == [labels[row] for row in picked]
    passes = list(kept.batches(100))
    assert all(len(one["labels"]) == 100 for one in passes[:-1])
    assert torch.equal(torch.cat([torch.empty(0, dim), *(one["features"] for one in passes)]), expected)


@pytest.mark.parametrize("limit", [0, 64 * 1024])
def test_the_cache_holds_no_more_than_it_may(limit, tmp_path):
    """The limit and a batch, and once it writes, no more than 1,024 rows and a batch."""
    cache, dim, size = FeatureCache(32, tmp_path / "features.arrow", limit), 32, 100
    held = []
    for _ in range(60):
        cache.append(torch.ones(size, dim), torch.zeros(size, dtype=torch.long))
        held.append(sum(part.numel() * 4 for part in cache._buffer))
    assert max(held) <= max(limit, 1024 * dim * 4) + size * dim * 4
    assert cache.finish().on_disk


def test_labels_and_features_come_back_in_any_order_and_precision(tmp_path):
    for limit in (0, 2**20):
        cache = FeatureCache(2, tmp_path / f"{limit}.arrow", limit)
        cache.append(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64), torch.tensor([7, 8]).int())
        cache.append(torch.tensor([[5.0, 6.0]], dtype=torch.bfloat16, requires_grad=True), torch.tensor([9]))
        kept = cache.finish()
        picked = kept.__getitems__([2, 0])
        assert picked["features"].tolist() == [[5, 6], [1, 2]]
        assert picked["features"].dtype == torch.float32
        assert picked["labels"].tolist() == [9, 7]
        assert kept[1]["features"].tolist() == [3, 4]
        assert kept[1]["labels"] == 8


# How they are dealt out.


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 9),
    processes=st.integers(1, 5),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 9),
)
def test_each_row_is_in_one_share_of_each_epoch(n, size, processes, seed, epoch):
    kept = ForgetFeatures(torch.arange(n), torch.arange(n)[:, None].float(), 1)

    def epochs(index, count, batch_size, seed=seed, epoch=epoch):
        loader = SharesLoader(kept, batch_size, index, count, seed=seed)
        loader.set_epoch(epoch)
        dealt = [one["labels"].tolist() for one in loader]
        assert [one["features"][:, 0].tolist() for one in loader] == dealt  # an epoch can be gone through again
        assert len(loader) == len(dealt)
        return dealt

    shares = [epochs(index, processes, size) for index in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(row for share in shares for part in share for row in part) == list(range(n))
    assert all(len(part) <= size for share in shares for part in share)
    # Together they are the batches of one process.
    alone = epochs(0, 1, size * processes)
    assert [sorted(chain(*parts)) for parts in zip(*shares, strict=True)] == [sorted(part) for part in alone]


def test_each_epoch_and_each_seed_has_its_own_order():
    kept = ForgetFeatures(torch.arange(100), torch.zeros(100, 1), 1)
    orders = set()
    for seed in (0, 50):
        loader = SharesLoader(kept, 10, 0, 1, seed=seed)
        for epoch in range(5):
            loader.set_epoch(epoch)
            orders.add(tuple(row for one in loader for row in one["labels"].tolist()))
    assert len(orders) == 10
    assert tuple(range(100)) not in orders


# Where they come from.


@torch.no_grad()
def test_they_are_what_reaches_the_head_in_order(resnet, pictures, batch):
    seen = []
    handle = resnet.classifier[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for images in image_batches(pictures, load_processor(resnet), image_column="image", batch_size=64):
        resnet(**images)
    handle.remove()
    torch.testing.assert_close(batch["features"], torch.cat(seen), rtol=1e-5, atol=1e-5)
    assert batch["labels"].tolist() == pictures["label"]


def as_columns(batch, names=None):
    label = ClassLabel(names=names) if names else Value("int64")
    schema = Features({"features": List(Value("float32")), "label": label, "shop": Value("string")})
    table = {"features": batch["features"].numpy(), "label": batch["labels"].tolist(), "shop": ["a"] * 200}
    return Dataset.from_dict(table, features=schema)


FORMS = {
    "stream": lambda run, pictures, batch: pictures.to_iterable_dataset(num_shards=3),
    "image batches": lambda run, pictures, batch: image_batches(
        pictures, run.processing_class, image_column="image", label_column="label"
    ),
    "other columns": lambda run, pictures, batch: pictures.rename_columns({"image": "img", "label": "fine_label"}),
    "ForgetFeatures": lambda run, pictures, batch: run.train_dataset,
    "feature batches": lambda run, pictures, batch: (
        {name: part[at : at + 90] for name, part in batch.items()} for at in range(0, 200, 90)
    ),
    "feature column": lambda run, pictures, batch: as_columns(batch),
    "feature column with a format": lambda run, pictures, batch: as_columns(batch).with_format("numpy", ["shop"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_however_they_come_the_mask_is_the_same(resnet, run, pictures, batch, form):
    trainer = trained(resnet, FORMS[form](run, pictures, batch))
    assert torch.equal(soft(trainer), soft(run))
    assert torch.equal(factor(trainer).mask, factor(run).mask)
    given = "images" if "image" in form or form in ("stream", "other columns") else "given"
    assert {**record(trainer), **OF_A_RUN} == {**record(run), **OF_A_RUN, "features": given}


def test_labels_of_given_features_are_matched_to_the_models_by_name(resnet, run, batch, fashion):
    names = fashion.label_names[::-1]
    turned = batch | {"labels": 9 - batch["labels"]}
    trainer = trained(resnet, as_columns(turned, names))
    assert record(trainer)["labels"] == ["Trouser"]
    assert torch.equal(soft(trainer), soft(run))


@pytest.mark.parametrize("settings", [{"feature_cache": "disk"}, {"feature_memory": 0}], ids=str)
def test_on_disk_or_in_memory_the_mask_is_the_same_and_the_file_goes(resnet, run, pictures, settings, tmp_path):
    trainer = trained(resnet, pictures, feature_cache_dir=str(tmp_path), **settings)
    assert trainer.train_dataset.on_disk
    assert not run.train_dataset.on_disk
    [file] = tmp_path.rglob("*.arrow")
    assert 200 * 128 * 4 < file.stat().st_size < 1.2 * 200 * 128 * 4
    assert torch.equal(soft(trainer), soft(run))
    del trainer
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_memory_is_kept_to_whatever_the_size_where_that_is_asked_for(resnet, pictures):
    few = pictures.select(range(20))
    assert not made(resnet, few, feature_cache="memory", feature_memory=0).train_dataset.on_disk


def test_no_step_runs_the_backbone(resnet, pictures):
    counted, model = [], copy.deepcopy(resnet)
    model.resnet.register_forward_hook(lambda *_: counted.append(1))

    def runs(act):
        before = len(counted)
        act()
        return len(counted) - before

    trainers = []
    # What it takes to find the head, and one for each batch.
    head, some, more = (
        runs(lambda n=n: trainers.append(made(model, pictures.select(range(n)), feature_batch_size=8)))
        for n in (1, 80, 160)
    )
    assert (some - head, more - head) == (9, 19)
    assert runs(trainers[-1].train) == 0
    assert runs(lambda: made(model, trainers[-1].train_dataset)) == head  # a picture in place of the image
