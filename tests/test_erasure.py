"""erase(): the class goes, the rest stays, the given model is not touched, and what cannot be erased is refused."""

import copy

import datasets
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from hf_esc import ESCModel, erase
from hf_esc.data import image_batches
from hf_esc.errors import IncompleteErasureWarning, LabelError, RankError
from hf_esc.features.sites import SiteGroup
from hf_esc.loading import load_processor

from .pictures import NAMES, labelled
from .tiny import batches, images, quietly, ranks, tiny

PROCESSOR = ViTImageProcessor(size={"height": 16, "width": 16})
TROUSER, BAG = 1, 8


def projection(model: ESCModel) -> torch.Tensor:
    basis = model.projections[0].factors[0].basis.double()
    return torch.eye(len(basis), dtype=torch.float64) - basis @ basis.T


@pytest.fixture(scope="module")
def trousers(fashion):
    return fashion.select(fashion.train, [TROUSER])


@pytest.fixture(scope="module")
def bags(fashion):
    return fashion.select(fashion.train, [BAG])


@pytest.fixture(scope="module")
def erased(resnet, trousers):
    return erase(resnet, trousers)


# It erases.


@torch.no_grad()
def accuracy(model, dataset) -> float:
    processed = image_batches(dataset, load_processor(model), image_column="image", label_column="label")
    hits = [model(pixel_values=batch["pixel_values"]).logits.argmax(1) == batch["labels"] for batch in processed]
    return 100 * torch.cat(hits).double().mean().item()


def test_the_class_goes_and_the_rest_stays(resnet, erased, fashion):
    forget = fashion.select(fashion.test, [TROUSER])
    retain = fashion.select(fashion.test, [TROUSER], keep=False).select(range(600))
    assert accuracy(resnet, forget) > 95
    assert accuracy(erased, forget) < 5
    assert accuracy(erased, retain) > accuracy(resnet, retain) - 2


@torch.no_grad()
def test_the_projection_is_the_definition(resnet, erased, trousers):
    seen = []
    handle = resnet.classifier[1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for batch in image_batches(trousers, load_processor(resnet), image_column="image", batch_size=128):
        resnet(**batch)
    handle.remove()
    z = torch.cat(seen).double()
    u = torch.linalg.svd(z.T, full_matrices=False).U[:, :1]  # 1.5 % of 128 is 1
    torch.testing.assert_close(projection(erased), torch.eye(128).double() - u @ u.T, rtol=0, atol=1e-6)


def test_it_says_what_it_did(erased):
    assert isinstance(erased, ESCModel)
    assert not erased.training
    assert ranks(erased) == [1]
    (record,) = erased.config.erasures
    expected = {"method": "esc", "p": 1.5, "rank": 1, "per_class": False, "num_images": 700}
    expected |= {"labels": ["Trouser"], "label_ids": [TROUSER]}
    assert record | expected == record
    assert 0 <= record["unchanged"] < 0.1
    assert record["unchanged_of"] == 700
    assert set(record["versions"]) == {"hf_esc", "torch", "transformers"}
    assert erased.image_processor is not None


@pytest.mark.parametrize(("p", "rank", "expected"), [(5, None, 6), (5, 2, 2), (0, 3, 3), (0.79, None, 1)])
def test_rank_overrides_p(resnet, trousers, p, rank, expected):
    erased = erase(resnet, trousers.select(range(60)), p=p, rank=rank)
    assert ranks(erased) == [expected]
    assert erased.config.erasures[0]["p"] == (p if rank is None else None)


# The given model is not touched.


@pytest.mark.parametrize("architecture", ["all_cnn", "vit"])
def test_the_given_model_is_left_bit_for_bit_as_it_was(architecture):
    model = tiny()
    if architecture == "vit":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        model = ViTForImageClassification(ViTConfig(image_size=16, patch_size=8, num_labels=4, **sizes))
    # Training mode in part, a frozen parameter and a hook: nothing of it is normalised away.
    model.train()
    next(model.children()).eval()
    next(model.parameters()).requires_grad_(False)
    calls = []
    model.classifier.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model)
    erased = quietly(model, batches(images(12), images(8, 1)), rank=2)
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in [*before.named_parameters(), *before.named_buffers()]:
        assert torch.equal(after[name], value), name
        assert after[name].requires_grad == value.requires_grad, name
    for (name, module), (_, old) in zip(model.named_modules(), before.named_modules(), strict=True):
        assert module.training == old.training, name
        assert len(module._forward_hooks) == len(old._forward_hooks), name
        assert len(module._forward_pre_hooks) == len(old._forward_pre_hooks) == 0, name
    assert model.config.to_dict() == before.config.to_dict()
    # The result has the same weights, in memory of its own.
    for (name, value), (_, mine) in zip(erased.model.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(value, mine), name
        assert value.data_ptr() != mine.data_ptr(), name
    for (name, value), (_, mine) in zip(erased.model.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(value, mine), name


def test_an_erased_model_is_not_touched_either(erased, bags):
    basis, erasures = erased.projections[0].factors[0].basis.clone(), copy.deepcopy(erased.config.erasures)
    erase(erased, bags.select(range(50)), rank=1)
    assert torch.equal(erased.projections[0].factors[0].basis, basis)
    assert (erased.config.erasures, ranks(erased)) == (erasures, [1])


# In turn.


def test_two_requests_compose_in_their_order(resnet, erased, trousers, bags, fashion):
    both = erase(erased, bags)
    assert ranks(both) == [2]
    assert [record["labels"] for record in both.config.erasures] == [["Trouser"], ["Bag"]]
    assert torch.equal(both.projections[0].factors[0].basis[:, :1], erased.projections[0].factors[0].basis)
    second = both.projections[0].factors[0].basis[:, 1:].double()
    p2 = torch.eye(128).double() - second @ second.T
    torch.testing.assert_close(projection(both), p2 @ projection(erased), rtol=0, atol=1e-6)
    for label in (TROUSER, BAG):
        assert accuracy(both, fashion.select(fashion.test, [label])) < 10
    # The order matters: each request's direction is what the ones before have left.
    other = erase(erase(resnet, bags), trousers)
    assert (projection(both) - projection(other)).abs().max() > 1e-4


def test_classes_one_by_one_are_requests_in_turn(resnet, erased, bags, fashion):
    together = erase(resnet, fashion.select(fashion.train, [TROUSER, BAG]), per_class=True)
    assert ranks(together) == [2]
    assert together.config.erasures[0]["labels"] == ["Trouser", "Bag"]
    torch.testing.assert_close(projection(together), projection(erase(erased, bags)), rtol=0, atol=1e-5)


# Enough, or a warning.


def test_auto_is_the_smallest_rank_and_less_is_called_incomplete(resnet, fashion):
    two = fashion.select(fashion.train, [TROUSER, BAG])
    with pytest.warns(IncompleteErasureWarning, match=r"rank 1, the head still gives 9\d.\d% .* A rank of 2 \(or "):
        incomplete = erase(resnet, two, rank=1)
    assert incomplete.config.erasures[0]["unchanged"] > 0.9
    enough = erase(resnet, two, rank="auto")
    assert ranks(enough) == [2]
    assert enough.config.erasures[0]["unchanged"] <= 0.1
    assert enough.config.erasures[0]["unchanged_of"] == 1024


def test_where_no_rank_is_enough_that_is_said():
    model = tiny()
    with torch.no_grad():
        model.classifier.bias[0] = 1000  # whatever the features
    with pytest.raises(RankError, match="No rank changes the head's prediction for 90%"):
        erase(model, batches(images(20)), rank="auto")
    with pytest.warns(
        IncompleteErasureWarning, match=r"still gives 100.0% .* No rank that was tried brings that to 10% or less"
    ):
        assert erase(model, batches(images(20)), rank=1).config.erasures[0]["unchanged"] == 1


# One result, however the images come.


def test_a_stream_and_ready_batches_and_another_batch_size_are_the_same(resnet, trousers):
    few = trousers.select(range(50))
    expected = erase(resnet, few)
    ready = image_batches(few, load_processor(resnet), image_column="image", label_column="label", batch_size=20)
    for erased in (
        erase(resnet, few.to_iterable_dataset(num_shards=3)),
        erase(resnet, ready),
        erase(resnet, few, batch_size=7),
        erase(resnet, few.rename_columns({"image": "img", "label": "fine_label"})),
        erase(resnet, few.add_column("shop", few["label"]), label_column="label"),
    ):
        torch.testing.assert_close(projection(erased), projection(expected), rtol=0, atol=1e-6)
        assert erased.config.erasures[0]["labels"] == ["Trouser"]


def test_sites_that_are_given_are_taken():
    sites = [SiteGroup(("classifier",), 8)]
    found, given = (quietly(tiny(), batches(images(9)), rank=2, sites=choice) for choice in (None, sites))
    assert torch.equal(found.projections[0].factors[0].basis, given.projections[0].factors[0].basis)
    with pytest.raises(ValueError, match="`sites` are those of the ESCModel already"):
        erase(found, batches(images(9)), rank=1, sites=sites)


def test_a_grey_model_takes_pictures_of_any_mode():
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5], image_std=[0.5])
    erased = quietly(tiny(num_channels=1), labelled([0] * 12, NAMES), rank=1, processing_class=processor)
    assert erased(images(2)[:, :1]).logits.shape == (2, len(NAMES))


def test_labels_are_matched_to_the_models_by_name():
    reverse = NAMES[::-1]
    forget_set = labelled([0] * 6 + [1] * 6, NAMES)
    erased = quietly(tiny(reverse), forget_set, rank=1, processing_class=PROCESSOR)
    assert sorted(erased.config.erasures[0]["labels"]) == sorted(NAMES[:2])
    numbers = quietly(tiny(reverse), labelled([0] * 6 + [1] * 6), rank=1, processing_class=PROCESSOR)
    assert numbers.config.erasures[0]["labels"] == reverse[:2]
    with pytest.raises(LabelError, match="labels are not the model's"):
        erase(tiny(), labelled([0, 1], ["cat", "unicorn"]), rank=1, processing_class=PROCESSOR)


def test_without_labels_none_are_recorded():
    erased = quietly(tiny(), labelled([0] * 6).remove_columns("label"), rank=1, processing_class=PROCESSOR)
    assert erased.config.erasures[0]["labels"] is None


def test_a_class_that_stays_does_not_hide_behind_a_larger_one_that_goes(resnet, fashion):
    trousers, bags = (fashion.select(fashion.train, [label]) for label in (TROUSER, BAG))
    both = datasets.concatenate_datasets([trousers.select(range(140)), bags.select(range(10))])
    with pytest.warns(IncompleteErasureWarning, match=r"gives 100.0% of those of class 'Bag'"):
        record = erase(resnet, both, rank=1).config.erasures[0]
    assert record["unchanged"] < 0.1
    assert record["unchanged_by_label"][1] == 1
    record = erase(resnet, both, rank="auto").config.erasures[0]
    assert max(record["unchanged_by_label"]) <= 0.1
    assert record["rank"] > 1


def test_labels_that_are_not_the_models_are_suspected(resnet, fashion):
    forget_set = fashion.select(fashion.train, [TROUSER]).select(range(64))
    shifted = forget_set.cast_column("label", datasets.Value("int64")).map(lambda row: {"label": row["label"] + 1})
    with pytest.warns(IncompleteErasureWarning, match="or are the labels not the model's class indices"):
        record = erase(resnet, shifted, rank=1).config.erasures[0]
    assert record["right_before"] < 0.1


def test_all_classes_are_not_erased():
    forget_set = [{"pixel_values": images(8), "labels": torch.arange(8) % len(NAMES)}]
    with pytest.raises(LabelError, match="which leaves nothing to keep"):
        quietly(tiny(), forget_set, rank=1)


def test_a_users_transform_or_format_does_not_change_what_is_erased(resnet, fashion):
    forget_set = fashion.select(fashion.train, [TROUSER]).select(range(64))
    plain = erase(resnet, forget_set, rank=1).projections[0].factors[0].basis
    for other in (forget_set.with_transform(lambda rows: {"x": [0] * 64}), forget_set.with_format("torch", ["label"])):
        assert torch.equal(erase(resnet, other, rank=1).projections[0].factors[0].basis, plain)
