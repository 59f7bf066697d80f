"""Features come out of a frozen model as its head reads them; a sample of them is bounded, uniform, repeatable."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc.all_cnn import AllCNNConfig, AllCNNForImageClassification
from hf_esc.errors import ForgetSetError, SiteError
from hf_esc.features.head import head_weights, site_outputs
from hf_esc.features.sample import FeatureSample
from hf_esc.features.sites import SiteGroup, find_sites
from hf_esc.features.stream import FeatureBatch, stream_features
from hf_esc.modeling.outputs import logits_of, pooled


def stream(n: int, batch_sizes: list[int], labels: bool = True):
    """Image i has the features (i, -i) and the label i mod 3, and is taken for class i mod 5."""
    rows = torch.arange(n)
    for part in rows.split([*batch_sizes, n - sum(batch_sizes)]):
        features = torch.stack([part, -part], dim=1).double()
        logits = torch.nn.functional.one_hot(part % 5, 5).float()
        yield FeatureBatch([features, features[:, :1]], logits, part % 3 if labels else None)


def sampled(n: int, batch_sizes: list[int], size: int, seed: int = 0) -> FeatureSample:
    sample = FeatureSample(size, seed)
    for batch in stream(n, batch_sizes):
        sample.update(batch)
    return sample


@st.composite
def cuts(draw) -> tuple[int, list[int]]:
    """The length of a stream and the sizes of its batches but the last."""
    n = draw(st.integers(1, 60))
    bounds = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return n, np.diff([0, *bounds]).tolist()


@given(cuts(), st.integers(1, 80), st.integers(0, 99))
def test_a_sample_holds_whole_rows_of_the_stream_no_more_than_its_size_and_none_twice(stream_of, size, seed):
    n, batch_sizes = stream_of
    sample = sampled(n, batch_sizes, size, seed)
    chosen = sample.features[0][:, 0].long()
    assert len(chosen) == min(n, size) == len(chosen.unique())
    assert sample.n == n
    assert torch.equal(sample.features[1][:, 0].long(), chosen)
    assert torch.equal(sample.features[0][:, 1].long(), -chosen)
    assert torch.equal(sample.predictions, chosen % 5)
    assert torch.equal(sample.labels, chosen % 3)
    if n <= size:
        assert chosen.tolist() == list(range(n))


@given(cuts(), st.integers(1, 20), st.integers(0, 99))
def test_it_depends_on_the_seed_and_the_stream_and_not_on_the_batches(stream_of, size, seed):
    n, batch_sizes = stream_of
    assert torch.equal(sampled(n, batch_sizes, size, seed).features[0], sampled(n, [], size, seed).features[0])


def test_another_seed_is_another_sample():
    assert not torch.equal(sampled(200, [], 20, seed=0).features[0], sampled(200, [], 20, seed=1).features[0])


def test_each_image_has_the_same_chance():
    n, size, repeats = 24, 6, 2000
    counts = torch.zeros(n)
    for seed in range(repeats):
        counts += torch.bincount(sampled(n, [10], size, seed).features[0][:, 0].long(), minlength=n)
    # Binomial(2000, 1/4): mean 500, standard deviation 19.4.
    assert counts.sum() == repeats * size
    assert (counts - 500).abs().max() < 4.5 * 19.4


def test_a_stream_without_labels_has_a_sample_without():
    sample = FeatureSample(5)
    for batch in stream(12, [6], labels=False):
        sample.update(batch)
    assert sample.labels is None
    assert len(sample.predictions) == 5


# Out of a model.


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AllCNNForImageClassification(AllCNNConfig(hidden_sizes=(4, 8), num_labels=3)).eval()


GROUPS = [SiteGroup(("classifier",), 8)]
IMAGES = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_features_are_what_the_head_reads(model):
    labels = torch.tensor([0, 1, 2, 1, 0])
    batches = [{"pixel_values": IMAGES[:3], "labels": labels[:3]}, {"pixel_values": IMAGES[3:]}]
    first, second = stream_features(model, GROUPS, batches)
    z = torch.cat([first.features[0], second.features[0]])
    assert z.shape == (5, 8)
    torch.testing.assert_close(z, model.layers(IMAGES).mean((2, 3)))
    assert torch.equal(torch.cat([first.logits, second.logits]), torch.cat([model(x).logits for x in IMAGES.split(3)]))
    assert torch.equal(first.labels, labels[:3])
    assert second.labels is None
    assert not z.requires_grad


def test_labels_never_reach_the_model(model):
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    list(stream_features(model, GROUPS, [{"pixel_values": IMAGES, "labels": torch.zeros(5).long()}]))
    handle.remove()
    assert seen == [{"pixel_values"}]


def test_training_mode_is_refused_before_batchnorm_learns_the_forget_set(model):
    model = copy.deepcopy(model).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="in training mode BatchNorm would learn the forget set"):
        next(stream_features(model, GROUPS, [{"pixel_values": IMAGES}]))
    list(stream_features(model.eval(), GROUPS, [{"pixel_values": IMAGES}]))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_no_hook_stays_whether_it_ends_well_or_not(model):
    list(stream_features(model, GROUPS, [{"pixel_values": IMAGES}]))
    with pytest.raises(
        ForgetSetError, match=r"Batch 1 of the images \(pixel_values \(5, 1, 16, 16\)\) does not go through"
    ):
        list(stream_features(model, GROUPS, [{"pixel_values": IMAGES}, {"pixel_values": IMAGES[:, :1]}]))
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())


def test_a_site_of_another_width_is_an_error(model):
    with pytest.raises(SiteError, match="'classifier' reads 8 features, not 9"):
        list(stream_features(model, [SiteGroup(("classifier",), 9)], [{"pixel_values": IMAGES}]))


def test_a_site_that_does_not_run_is_an_error(model):
    model = copy.deepcopy(model)
    model.auxiliary = torch.nn.Linear(8, 3)
    with pytest.raises(SiteError, match="1 of the 2 heads did not run"):
        list(stream_features(model, [*GROUPS, SiteGroup(("auxiliary",), 8)], [{"pixel_values": IMAGES}]))


def test_the_head_alone_gives_the_logits_back(model, resnet, fashion):
    grey = np.stack([np.asarray(image, dtype=np.float32) for image in fashion.test["image"][:4]])
    for classifier, batch in ((model, IMAGES), (resnet, torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1) / 255)):
        groups = find_sites(classifier, {"pixel_values": batch})
        (read,) = stream_features(classifier, groups, [{"pixel_values": batch}])
        torch.testing.assert_close(site_outputs(classifier, groups, read.features), read.logits[None])
        assert head_weights(classifier, groups, read).tolist() == [pytest.approx(1)]


def test_a_head_that_does_more_than_its_sites_is_not_tried_alone(model):
    (read,) = stream_features(model, GROUPS, [{"pixel_values": IMAGES}])
    for logits in (read.logits.square() + 1, read.logits[:, :2]):
        assert head_weights(model, GROUPS, FeatureBatch(read.features, logits, None)) is None


# What a model returns.


def test_of_several_positions_it_is_the_one_that_counts_or_their_mean():
    sequence = torch.arange(12.0).reshape(1, 3, 4)
    assert pooled(sequence, -1).tolist() == [[4.0, 5.0, 6.0, 7.0]]
    assert pooled(sequence[..., None], 1).tolist() == [[1.5, 5.5, 9.5]]
    assert pooled(sequence, -1, position=0).tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert pooled(sequence, -1, position=-1).tolist() == [[8.0, 9.0, 10.0, 11.0]]
    flat = torch.ones(2, 3)
    assert pooled(flat, 1) is flat


def test_logits_are_found_by_name_or_by_their_width():
    logits, features = torch.zeros(2, 3), torch.zeros(2, 7)
    assert logits_of({"last_hidden_state": features, "head": logits}, 3) is logits
    assert logits_of((features, logits), 3) is logits
    for output in ({"last_hidden_state": features}, (logits, logits), None):
        with pytest.raises(SiteError, match="holds no logits for 3 classes"):
            logits_of(output, 3)
