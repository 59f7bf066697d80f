"""Requests in turn, by ESC and ESC-T in any order: their projections compose, and nothing that was erased returns."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_esc import ESCTTrainer, ESCTTrainingArguments, erase
from hf_esc.data import image_batches
from hf_esc.errors import ForgetSetError, IncompleteErasureWarning, LabelError, RankError
from hf_esc.loading import load_processor
from hf_esc.modeling.projection import LowRankFactor, MaskedFactor, product

from .tiny import batches, images, quietly, ranks, tiny

pytestmark = pytest.mark.slow

# The classes that are forgotten, in this order.
TROUSER, BAG, SANDAL, SNEAKER = CLASSES = (1, 8, 5, 7)

# What the factors of the projection are in the end: the rank of a low-rank one, None for a mask. Behind a mask stands
# what low-rank factors have projected out before, for the mask would mix it back in.
SEQUENCES = {
    "esc, esc": [2],
    "esc, esc-t": [1, None, 1],
    "esc-t, esc": [None, 1],
    "esc-t, esc-t": [None, None],
    "esc, esc-t, esc": [1, None, 2],
    "esc, esc-t, esc-t, esc": [1, None, 1, None, 2],
    "esc, esc, esc-t, esc": [2, None, 3],
}


@pytest.fixture(scope="module")
def train(fashion):
    """3,000 training images of ten classes."""
    return fashion.train.select(range(3000))


@pytest.fixture(scope="module")
def forget(fashion, train, tmp_path_factory):
    """Forget classes, or so many images of them, by a method."""
    settings = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}

    def request(model, method, *labels, number=None, **kwargs):
        rows = fashion.select(train, labels)
        rows = rows.select(range(number)) if number else rows
        if method == "esc":
            return erase(model, rows, **kwargs)
        arguments = ESCTTrainingArguments(tmp_path_factory.mktemp("esc-t"), report_to="none", **settings)
        trainer = ESCTTrainer(model, arguments, rows, **kwargs)
        trainer.train()
        return trainer.erased_model

    return request


@pytest.fixture(scope="module")
def after(resnet, forget):
    """The model after each of the requests of a sequence; each beginning is computed once."""
    models = {(): resnet}

    def requests(sequence):
        methods = tuple(sequence.split(", "))
        for i, method in enumerate(methods):
            if methods[: i + 1] not in models:
                models[methods[: i + 1]] = forget(models[methods[:i]], method, CLASSES[i])
        return [models[methods[: i + 1]] for i in range(len(methods))]

    return requests


@pytest.fixture(scope="module", params=SEQUENCES)
def sequence(request):
    return request.param


@pytest.fixture(scope="module")
def pictures(resnet, fashion):
    """Batches of five hundred test images, with their labels."""
    rows = fashion.test.shuffle(seed=0).select(range(500))
    columns = {"image_column": "image", "label_column": "label"}
    return list(image_batches(rows, load_processor(resnet), batch_size=100, **columns))


@torch.no_grad()
def accuracies(model, pictures):
    """In % of the images of each class."""
    hits = torch.cat([model(batch["pixel_values"]).logits.argmax(1) == batch["labels"] for batch in pictures])
    labels = torch.cat([batch["labels"] for batch in pictures])
    return [100 * hits[labels == label].double().mean().item() for label in range(10)]


@torch.no_grad()
def features_of(model, rows):
    """What reaches the head now, `(N, d)` in float64."""
    seen = image_batches(rows, load_processor(model), image_column="image", batch_size=128)
    return torch.cat([model.features(pixel_values=batch["pixel_values"]) for batch in seen]).double()


def matrix(model):
    return product(model.projections[0].factors, 128)


def added(models, number):
    """The directions `(d, k)` that a request, one of ESC, has added to the last factor."""
    before = (ranks(models[number - 1])[-1] or 0) if number else 0
    return models[number].projections[0].factors[-1].basis.double()[:, before:]


def leading(z, rank):
    """The projection onto the first left singular vectors of features `(N, d)`."""
    u = torch.linalg.svd(z.T, full_matrices=False).U[:, :rank]
    return u @ u.T


# What the factors are.


def test_low_rank_factors_in_a_row_are_one_and_masks_stay_apart(sequence, after):
    model = after(sequence)[-1]
    assert ranks(model) == SEQUENCES[sequence]
    assert [type(factor) for factor in model.projections[0].factors] == [
        MaskedFactor if rank is None else LowRankFactor for rank in SEQUENCES[sequence]
    ]


def test_a_later_request_leaves_the_factors_of_the_earlier_ones_as_they_are(sequence, after):
    models = after(sequence)
    for earlier, later in pairwise(models):
        for old, new in zip(earlier.projections[0].factors, later.projections[0].factors, strict=False):
            assert type(old) is type(new)
            assert torch.equal(old.basis, new.basis[:, : old.basis.shape[1]])  # a low-rank one may have got more
            if isinstance(old, MaskedFactor):
                assert torch.equal(old.mask, new.mask)


def test_what_reaches_the_head_is_the_product_of_the_factors_in_their_order(sequence, after, pictures):
    model, pixels = after(sequence)[-1], pictures[0]["pixel_values"]
    with torch.no_grad(), model.disable_projection():
        raw = model.features(pixels).double()
    expected = raw
    for factor in model.projections[0].factors:
        u = factor.basis.double()
        if isinstance(factor, MaskedFactor):
            expected = expected @ (u * factor.mask) @ (u * factor.mask).T
        else:
            expected = expected - expected @ u @ u.T
    with torch.no_grad():
        features = model.features(pixels).double()
    torch.testing.assert_close(features, expected, atol=1e-6 * raw.norm(dim=1).max(), rtol=0)


def test_the_order_of_requests_matters(resnet, after, forget):
    other = forget(forget(resnet, "esc-t", BAG), "esc", TROUSER)
    assert (matrix(after("esc, esc-t")[-1]) - matrix(other)).abs().max() > 1e-3


# What becomes of the classes.


def test_each_class_is_forgotten_and_stays_so_and_the_others_are_kept(sequence, after, resnet, pictures):
    before = accuracies(resnet, pictures)
    for number, model in enumerate(after(sequence), start=1):
        now = accuracies(model, pictures)
        kept = [label for label in range(10) if label not in CLASSES[:number]]
        assert all(before[label] > 95 and now[label] < 10 for label in CLASSES[:number])
        assert sum(now[label] for label in kept) > sum(before[label] for label in kept) - 3 * len(kept)


@pytest.mark.parametrize("requests", [name for name in SEQUENCES if "esc" in name.split(", ")])
def test_what_esc_projected_out_stays_out_behind_every_later_mask(requests, after, pictures):
    models, pixels = after(requests), pictures[0]["pixel_values"]
    for number, method in enumerate(requests.split(", ")):
        if method != "esc":
            continue
        out = added(models, number)
        assert out.shape[1] == 1
        for model in models[number:]:
            assert (out.T @ matrix(model)).abs().max() < 1e-6
            with torch.no_grad():
                features = model.features(pixels).double()
            assert (features @ out).abs().max() < 1e-6 * features.norm(dim=1).max()


def test_a_mask_alone_would_let_it_back_in(after):
    """Or the test before would say nothing."""
    low_rank, mask, _ = after("esc, esc-t")[-1].projections[0].factors
    assert (low_rank.basis.double().T @ product([low_rank, mask], 128)).abs().max() > 1e-3


# What is said of it, saved and switched off.


def test_the_ledger_has_a_record_of_each_request_in_order(sequence, after, train):
    methods, models = sequence.split(", "), after(sequence)
    names = ["Trouser", "Bag", "Sandal", "Sneaker"]
    records = models[-1].config.erasures
    assert [record["method"] for record in records] == methods
    assert [record["labels"] for record in records] == [[name] for name in names[: len(methods)]]
    assert [record["label_ids"] for record in records] == [[label] for label in CLASSES[: len(methods)]]
    counts = [train["label"][:].count(label) for label in CLASSES[: len(methods)]]
    assert [record["num_images"] for record in records] == counts
    assert all(record["unchanged"] <= 0.1 for record in records)
    for number, model in enumerate(models, start=1):
        assert model.config.erasures == records[:number]


def test_saved_and_loaded_it_gives_the_same_logits_and_without_projection_the_originals(
    sequence, after, resnet, pictures, tmp_path
):
    model, pixels = after(sequence)[-1], pictures[0]["pixel_values"]
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.factors == model.config.factors
    assert loaded.config.erasures == model.config.erasures
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels).logits)
        for one in (model, loaded):
            with one.disable_projection():
                assert torch.equal(one(pixels).logits, resnet(pixels).logits)


def test_the_model_that_is_given_is_not_touched(after, forget):
    first = after("esc-t")[-1]
    state, config = {name: tensor.clone() for name, tensor in first.state_dict().items()}, first.config.to_dict()
    for method in ("esc", "esc-t"):
        forget(first, method, SANDAL, number=100)
        assert first.state_dict().keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
        assert first.config.to_dict() == config


# ESC behind a mask.


@pytest.mark.parametrize("before", ["esc-t", "esc, esc-t", "esc-t, esc"])
def test_the_directions_of_esc_are_those_of_the_features_as_they_are_now(before, after, forget, fashion, train):
    rows, models = fashion.select(train, [SNEAKER]), after(before)
    z = features_of(models[-1], rows)
    new = added([*models, forget(models[-1], "esc", SNEAKER, rank=2)], len(models))
    torch.testing.assert_close(new @ new.T, leading(z, 2), rtol=0, atol=1e-5)
    with models[-1].disable_projection():
        assert (leading(features_of(models[-1], rows), 2) - leading(z, 2)).abs().max() > 1e-3


def test_auto_takes_the_smallest_rank_that_is_enough_behind_a_mask(after, forget):
    masked = after("esc-t")[-1]
    enough = forget(masked, "esc", BAG, SNEAKER, rank="auto")
    [_, rank] = ranks(enough)
    assert rank > 1
    assert max(enough.config.erasures[-1]["unchanged_by_label"]) <= 0.1
    with pytest.warns(IncompleteErasureWarning, match=rf"A rank of {rank} \(or "):
        forget(masked, "esc", BAG, SNEAKER, rank=rank - 1)


def test_the_ledger_compares_with_the_predictions_behind_the_mask(after, forget, fashion, train):
    models = after("esc-t, esc")
    columns = {"image_column": "image", "label_column": "label", "batch_size": 100}
    bags = list(image_batches(fashion.select(train, [BAG]), load_processor(models[0]), **columns))
    with torch.no_grad():
        before, now = (
            torch.cat([model(batch["pixel_values"]).logits.argmax(1) for batch in bags]) for model in models
        )
    record = models[-1].config.erasures[-1]
    assert record["right_before"] == pytest.approx((before == BAG).double().mean().item(), abs=0.005)
    assert record["unchanged"] == pytest.approx(((before == BAG) & (now == BAG)).double().mean().item(), abs=0.005)
    with pytest.warns(IncompleteErasureWarning, match=r"or cannot be seen: only [01]\.\d% of the forget images"):
        forget(models[0], "esc", TROUSER)


def test_classes_one_by_one_behind_a_mask_are_requests_in_turn(after, forget):
    masked = after("esc-t")[-1]
    together = forget(masked, "esc", SANDAL, SNEAKER, rank=2, per_class=True)
    in_turn = forget(forget(masked, "esc", SANDAL, rank=2), "esc", SNEAKER, rank=2)
    assert ranks(together) == ranks(in_turn) == [None, 4]
    torch.testing.assert_close(matrix(together), matrix(in_turn), rtol=0, atol=1e-5)


def with_mask(model, mask, seed=0):
    """`model` (d = 8, a low-rank factor) with a mask by hand in its place."""
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))).Q
    model.set_factors([[MaskedFactor.of(basis, mask)]], {"method": "esc-t"})
    return model


@pytest.mark.parametrize("left", [1, 3, 5])
def test_more_directions_than_a_mask_leaves_are_refused(left):
    """A mask of whole columns leaves no more than so many directions, whatever the images."""
    mask = torch.zeros(8, 8)
    mask[:, :left] = 1
    masked = with_mask(quietly(tiny(), batches(images(20)), rank=1), mask)
    assert ranks(quietly(masked, batches(images(20)), rank=left)) == [None, left]
    with pytest.raises(RankError, match=rf"Rank {left + 1} was asked for, .* span {left} directions"):
        quietly(masked, batches(images(20)), rank=left + 1)


def test_what_a_mask_has_cut_wholly_is_no_direction():
    """Three images span three directions; their rounding, which is all that is left of them, is none."""
    model, few = quietly(tiny(), batches(images(20)), rank=1), images(3)
    with torch.no_grad(), model.disable_projection():
        spanned = torch.linalg.svd(model.features(few).T).U
    mask = torch.ones(8, 8)
    mask[:, :3] = 0
    model.set_factors([[MaskedFactor.of(spanned, mask)]], {"method": "esc-t"})
    with pytest.raises(RankError, match="perhaps erased already"):
        quietly(model, batches(few), rank=1)


def test_more_directions_than_images_are_refused_behind_a_mask(after, fashion, train):
    few = fashion.select(train, [BAG]).select(range(3))
    masked = after("esc-t")[-1]
    erased = quietly(masked, few, rank=3)
    assert features_of(erased, few).abs().max() < 1e-4 * features_of(masked, few).norm(dim=1).max()
    with pytest.raises(RankError, match=r"Rank 4 was asked for, .* span 3 directions"):
        quietly(masked, few, rank=4)
    with pytest.raises(RankError, match="perhaps erased already"):
        quietly(erased, few, rank=1)


# What is refused.


def test_a_class_that_esc_t_made_forgotten_is_not_forgotten_by_it_again(after, forget):
    with pytest.raises(ForgetSetError, match="There is nothing to do"):
        forget(after("esc-t")[-1], "esc-t", TROUSER)


@pytest.mark.parametrize("method", ["esc", "esc-t"])
def test_the_last_class_is_not_forgotten(after, forget, method):
    rest = [label for label in range(10) if label not in (TROUSER, BAG)]
    with pytest.raises(LabelError, match="which leaves nothing to keep"):
        forget(after("esc, esc-t")[-1], method, *rest, number=100)
