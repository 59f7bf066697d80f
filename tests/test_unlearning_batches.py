"""Which images a step takes: every row once, both sides together, and each process its share."""

import hashlib
from itertools import chain

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.data.labelled_images import LabelledImages, labelled_images
from hf_esc.errors import DataError, ForgetSetError, ImageError, LabelError, ModelError
from hf_esc.training.steps import NOTHING, PairedLoader, Schedule, alone, mixed, paired, shuffled

from .pictures import NAMES, labelled, picture
from .pushing import tiny_vit
from .tiny import images, tiny
from .unlearning import forget_set, learnt, pictures, retain_set

sizes = st.integers(1, 60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(steps, side: int) -> list[int]:
    return torch.cat([NOTHING, *(step[side] for step in steps)]).tolist()


def plan(seed: int, rows: int = 50, *, index: int = 0, processes: int = 1) -> Schedule:
    """Steps of 8 rows."""
    return Schedule(lambda epoch, drawn: alone(shuffled(rows, 8, drawn), forget=True), index, processes, seed=seed)


# Steps


@given(sizes, sizes, st.integers(1, 16), st.integers(0, 100))
def test_every_row_comes_once_in_an_epoch(forget, retain, size, seed):
    batches = shuffled(forget, size, generator(seed))
    assert sorted(torch.cat(batches).tolist()) == list(range(forget))
    assert {len(batch) for batch in batches[:-1]} <= {size}
    both = mixed(forget, retain, size, generator(seed))
    assert sorted(rows_of(both, 0)) == list(range(forget))
    assert sorted(rows_of(both, 1)) == list(range(retain))
    assert all(0 < len(step[0]) + len(step[1]) <= size for step in both)


@given(sizes, sizes, st.integers(1, 16))
def test_the_longer_side_passes_once_and_the_shorter_one_goes_round(forget, retain, size):
    sides = [shuffled(rows, size, generator()) for rows in (forget, retain)]
    steps = paired(*sides)
    assert len(steps) == max(map(len, sides))
    for side, batches in enumerate(sides):
        for number, step in enumerate(steps):
            assert torch.equal(step[side], batches[number % len(batches)])


# The schedule


@given(sizes, st.integers(1, 5), st.integers(1, 16), st.integers(0, 3))
def test_shares_are_equal_and_together_the_step(rows, processes, size, epoch):
    def steps(epoch, drawn):
        return alone(shuffled(rows, size, drawn), forget=True)

    shares = []
    for index in range(processes):
        schedule = Schedule(steps, index, processes, seed=1)
        schedule.set_epoch(epoch)
        shares.append(list(schedule))
    for step, parts in zip(Schedule(steps, 0, 1, seed=1).of(epoch), zip(*shares, strict=True), strict=True):
        [length] = {len(part) for part in parts}
        together = [row for part in parts for _, row in part]
        wanted = step[0].tolist()
        assert set(together) == set(wanted)
        # Disjoint but for the padding, which is of the step's beginning, and there is no more of it than needed.
        assert length == -(-len(wanted) // processes)
        assert sorted(together) == sorted((wanted * processes)[: length * processes])


@given(sizes, sizes, st.integers(1, 5), st.integers(1, 4))
def test_of_steps_of_both_sides_together_a_share_repeats_no_image_where_it_need_not(forget, retain, processes, size):
    def steps(epoch, drawn):
        return mixed(forget, retain, size * processes, drawn)

    schedules = [Schedule(steps, index, processes, seed=1, together=True) for index in range(processes)]
    *full, last = zip(*schedules, strict=True)
    for parts in full:
        assert [len(part) for part in parts] == [size] * processes
        assert len({row for part in parts for row in part}) == size * processes
    assert len({len(part) for part in last}) == 1


def test_the_seed_is_the_order_and_no_epoch_is_that_of_another_seed():
    orders = {(seed, epoch): tuple(rows_of(plan(seed).of(epoch), 0)) for seed in range(6) for epoch in range(6)}
    assert len(set(orders.values())) == 36
    assert all(tuple(rows_of(plan(seed).of(epoch), 0)) == order for (seed, epoch), order in orders.items())


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.data())
def test_the_position_of_a_step_where_epochs_are_of_different_lengths(lengths, data):
    schedule = Schedule(
        lambda epoch, drawn: [(torch.tensor([0]), NOTHING)] * lengths[min(epoch, len(lengths) - 1)], 0, 1, seed=0
    )
    all_steps = [(epoch, step) for epoch, length in enumerate(lengths) for step in range(length)]
    number = data.draw(st.integers(0, len(all_steps) - 1))
    assert schedule.position(number) == all_steps[number]
    assert schedule.position(len(all_steps)) == (len(lengths), 0)
    assert schedule.steps_in(len(lengths)) == len(all_steps)
    assert schedule.steps_in(len(lengths) - 0.01) == len(all_steps)
    assert schedule.steps_in(1e-3) == 1


# The loader


def loaded(workers: int = 0):
    model = learnt()
    forget, retain = (labelled_images(model, given)[0] for given in (forget_set(10), retain_set(6)))
    schedule = Schedule(lambda epoch, drawn: mixed(10, 18, 5, drawn), 0, 1, seed=2)
    return forget, retain, PairedLoader(forget, retain, schedule, workers)


def test_a_batch_holds_the_images_and_labels_of_its_rows_and_lacks_a_side_that_has_none():
    forget, retain, loader = loaded()
    assert len(loader) == 6
    seen = {"forget": [], "retain": []}
    sides = {"forget": forget, "retain": retain}
    for batch in loader:
        assert set(batch) <= set(sides)
        for name, part in batch.items():
            seen[name] += part["rows"].tolist()
            again = sides[name].__getitems__(part["rows"].tolist())
            assert torch.equal(part["inputs"]["pixel_values"], again["inputs"]["pixel_values"])
            assert torch.equal(part["labels"], again["labels"])
    assert sorted(seen["forget"]) == list(range(10))
    assert sorted(seen["retain"]) == list(range(18))


def test_workers_give_the_same_batches_and_nothing_is_drawn_from_the_callers_generator():
    state = torch.random.get_rng_state()
    one, other = (list(loaded(workers)[2]) for workers in (0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    for batch, again in zip(one, other, strict=True):
        assert batch.keys() == again.keys()
        for name in batch:
            assert torch.equal(batch[name]["rows"], again[name]["rows"])
            assert torch.equal(batch[name]["inputs"]["pixel_values"], again[name]["inputs"]["pixel_values"])


# Images of data sets


def test_images_in_memory_are_those_that_are_read_anew():
    model, data = tiny_vit(), labelled([0, 1, 2, 3] * 3, NAMES)
    kept, read = (labelled_images(model, data, memory=memory)[0] for memory in (1024, 0))
    for rows in ([0], [7, 2, 2], list(range(12))):
        one, other = kept.__getitems__(rows), read.__getitems__(rows)
        assert torch.equal(one["inputs"]["pixel_values"], other["inputs"]["pixel_values"])
        assert one["labels"].tolist() == other["labels"].tolist() == [row % 4 for row in rows]
    part = read.part(torch.tensor([5, 9]))
    assert part.labels.tolist() == [1, 1]
    assert torch.equal(
        part.__getitems__([1])["inputs"]["pixel_values"], kept.__getitems__([9])["inputs"]["pixel_values"]
    )


def test_labels_are_matched_to_the_models_by_name():
    images, processor = labelled_images(tiny_vit(), labelled([0, 1, 3], list(reversed(NAMES))))
    assert images.labels.tolist() == [3, 2, 0]
    assert processor is not None


def test_shared_images_are_found_under_whatever_row_or_path(tmp_path):
    model = tiny_vit()
    for name in ("one.png", "copy.png", "other.png"):
        picture(1, seed=3 if name != "other.png" else 4).save(tmp_path / name)

    def data(*names):
        table = {"image": [str(tmp_path / name) for name in names], "label": [1] * len(names)}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        return labelled_images(model, datasets.Dataset.from_dict(table, features=features))[0]

    data("one.png").refuse_overlap(data("other.png"))
    with pytest.raises(ForgetSetError, match="share 1 images, such as row 1 of the retain set"):
        data("one.png").refuse_overlap(data("other.png", "copy.png"))
    inside = labelled_images(model, labelled([0, 1], NAMES))[0]
    with pytest.raises(ForgetSetError, match="share 2 images, such as row 0"):
        inside.refuse_overlap(labelled_images(model, labelled([0, 1, 1], NAMES))[0])
    tensors = labelled_images(model, [{"pixel_values": images(2), "labels": torch.tensor([0, 1])}])[0]
    with pytest.raises(ForgetSetError, match="Give both in the same form"):
        inside.refuse_overlap(tensors)
    with pytest.raises(ForgetSetError, match="share 2 images"):
        tensors.refuse_overlap(labelled_images(model, [{"pixel_values": images(3), "labels": torch.ones(3)}])[0])


def test_fingerprints_are_those_of_the_files():
    data = labelled([0, 1], NAMES)
    cells = data.cast_column("image", datasets.Image(decode=False))["image"]
    found = labelled_images(tiny_vit(), data)[0]
    assert found._fingerprints() == [hashlib.sha256(cell["bytes"]).digest() for cell in cells]


# What is refused


def unreadable():
    data = labelled([1] * 5, NAMES).cast_column("image", datasets.Image(decode=False))
    data = data.map(lambda row, i: {"image": {"bytes": b"none", "path": None}} if i == 3 else row, with_indices=True)
    return data.cast_column("image", datasets.Image())


STREAM = labelled([0, 1], NAMES)
REFUSED = {
    "no image": (lambda: [], ForgetSetError, "The forget set is empty"),
    "an empty data set": (lambda: STREAM.select([]), ForgetSetError, "The forget set is empty"),
    "a stream": (STREAM.to_iterable_dataset, ForgetSetError, "is a stream, and it"),
    "several splits": (
        lambda: datasets.DatasetDict(train=STREAM),
        ForgetSetError,
        r"one split, and this has \['train'\]",
    ),
    "a number": (lambda: 3, ForgetSetError, "not int"),
    "one batch": (lambda: {"pixel_values": images(1)}, ForgetSetError, "Batch 0 of the forget set is a str"),
    "no labels": (lambda: [{"pixel_values": images(2)}], ForgetSetError, "Batch 0 of the forget set has no `labels`"),
    "batches of two kinds": (
        lambda: [pictures(1, 2), {"pixels": images(2), "labels": torch.ones(2)}],
        ForgetSetError,
        "batches of the forget set do not fit together",
    ),
    "too few labels": (
        lambda: [{"pixel_values": images(3), "labels": torch.ones(2)}],
        ForgetSetError,
        r"different lengths: \[2, 3\]",
    ),
    "a label beyond": (lambda: [pictures(4, 2)], LabelError, "labels from 4 to 4, and the model has 4 classes"),
    "a negative label": (lambda: labelled([0, -1]), LabelError, "labels from -1 to 0, beyond the 4 classes"),
    "other classes": (lambda: labelled([0, 1], ["horse", "cow"]), LabelError, "labels are not the model's"),
    "no label column": (lambda: STREAM.remove_columns("label"), DataError, "label"),
    "an image that cannot be read": (unreadable, ImageError, "Image 3 "),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_images_are_is_said(what):
    make, error, message = REFUSED[what]
    with pytest.raises(error, match=message):
        labelled_images(tiny_vit(), make())


def test_an_image_that_cannot_be_read_is_named_in_every_pass_too():
    images, _ = labelled_images(tiny_vit(), unreadable(), memory=0)
    with pytest.raises(ImageError, match="Image 3 "):
        list(images.batches(2))


def test_a_data_set_needs_an_image_processor():
    with pytest.raises(ModelError, match="No image processor"):
        labelled_images(tiny(NAMES), STREAM)


def test_the_models_own_image_processor_goes_with_ready_batches():
    model = tiny_vit()
    batch = {"pixel_values": images(2), "labels": torch.tensor([0, 1])}
    assert labelled_images(model, [batch])[1] is model.image_processor
    assert labelled_images(tiny(NAMES), [batch])[1] is None


def test_the_set_that_is_at_fault_is_named():
    with pytest.raises(ForgetSetError, match="The retain set is empty"):
        labelled_images(learnt(), [], what="retain set")


def test_a_gray_model_gets_gray_images():
    from transformers import ViTImageProcessor

    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    found, _ = labelled_images(tiny(NAMES, num_channels=1), labelled([0, 1], NAMES), processor)
    assert found.__getitems__([0, 1])["inputs"]["pixel_values"].shape == (2, 1, 16, 16)


def test_rows_of_batches_are_in_the_order_in_which_they_came():
    found = LabelledImages(torch.arange(9), lambda rows: {"x": torch.tensor(rows)}, list, from_files=False)
    batches = list(found.batches(4))
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 1]
    assert list(chain(*(batch["inputs"]["x"].tolist() for batch in batches))) == list(range(9))
