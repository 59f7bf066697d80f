"""What the gate does not find passes bit for bit, what it finds becomes one of a bank, and damage is refused."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from hf_esc import ESCModel
from hf_esc.data import image_batches
from hf_esc.erasure.remap import _separators, remap
from hf_esc.errors import CheckpointError
from hf_esc.loading import load_processor
from hf_esc.modeling.fingerprints import projections_sha256
from hf_esc.modeling.projection import Projection, build_factor
from hf_esc.modeling.remap_factor import RemapFactor

TROUSER, BAG = 1, 8
# Images of the classes to forget, and vectors in the bank.
NUMBER, SIZE = 330, 200
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def erased(resnet, fashion):
    """The embedded ResNet (d = 128) without Trouser."""
    retain = fashion.select(fashion.train, [TROUSER], keep=False).select(range(400))
    return remap(resnet, fashion.select(fashion.train, [TROUSER]).select(range(NUMBER)), retain, bank_size=SIZE)


@pytest.fixture(scope="module")
def factor(erased) -> RemapFactor:
    return erased.projections[0].factors[0]


@pytest.fixture(scope="module")
def of_two(resnet, fashion) -> RemapFactor:
    """The factor of two classes."""
    retain = fashion.select(fashion.train, [TROUSER, BAG], keep=False).select(range(100))
    forget = fashion.select(fashion.train, [TROUSER, BAG]).select(range(200))
    return remap(resnet, forget, retain, bank_size=50).projections[0].factors[0]


@pytest.fixture(scope="module")
def pixels(resnet, fashion):
    """400 test images."""
    return batch_of(resnet, fashion.test.select(range(400)))


@pytest.fixture(scope="module")
def z(erased, pixels):
    """Their features `(400, d)` as the original has them."""
    with torch.no_grad(), erased.disable_projection():
        return erased.features(pixels)


@pytest.fixture(scope="module")
def forgotten(erased, fashion):
    """The features that the factor was made of."""
    with torch.no_grad(), erased.disable_projection():
        return erased.features(batch_of(erased, fashion.select(fashion.train, [TROUSER]).select(range(NUMBER))))


def batch_of(model, rows):
    [batch] = image_batches(rows, load_processor(model), image_column="image", batch_size=len(rows))
    return batch["pixel_values"]


def with_threshold(factor, threshold):
    other = copy.deepcopy(factor)
    other.threshold = threshold
    return other


def gated(factor, z):
    return factor.gate(factor.logits(z))


def rank(factor, z):
    labels = torch.tensor(factor.labels)
    return factor.rank(z, factor.logits(z)[..., labels].argmax(dim=-1))


# What passes and what does not.


def test_what_the_gate_does_not_find_passes_bit_for_bit(factor, of_two, z):
    for one in (factor, of_two):
        found = gated(one, z)
        assert 20 < found.sum() < 200
        assert torch.equal(one(z)[~found], z[~found])
        assert not (one(z) == z).all(dim=1)[found].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_a_whole_model_what_passes_has_the_originals_features_and_logits(erased, resnet, pixels, dtype):
    model, original = copy.deepcopy(erased).to(dtype), copy.deepcopy(resnet).to(dtype)
    few = pixels[:100].to(dtype)
    with torch.no_grad():
        on, expected = model(few), original(few).logits
        with model.disable_projection():
            off = model(few)
    found = gated(model.projections[0].factors[0], off.pooler_output.float())
    assert 5 < found.sum() < 20
    assert torch.equal(off.logits, expected)
    assert torch.equal(on.pooler_output[~found], off.pooler_output[~found])
    assert torch.equal(on.logits[~found], expected[~found])
    assert not (on.logits == expected).all(dim=1)[found].any()
    assert not (on.logits.argmax(dim=1) == TROUSER).any()


def test_the_argmax_gate_is_the_heads_prediction(erased, of_two, resnet, pixels, z):
    with torch.no_grad():
        said = resnet(pixels).logits.argmax(dim=1)
    assert torch.equal(gated(erased.projections[0].factors[0], z), said == TROUSER)
    assert torch.equal(gated(of_two, z), (said == TROUSER) | (said == BAG))


def test_what_the_gate_finds_becomes_the_vector_of_its_rank(factor, of_two, z):
    for one in (factor, of_two):
        found = gated(one, z)
        bank = one.bank.float()[rank(one, z)[found]]
        became = one(z)[found]
        torch.testing.assert_close(became, bank, rtol=1e-3, atol=0)
        assert torch.equal(became == 0, bank == 0)


def test_no_vector_can_be_told_by_zeros_in_its_last_digits(factor, z):
    """A bank of half precision would be known by that; and of one vector, two images make two."""
    found = gated(factor, z)
    became = factor(z)[found]
    assert (became.half().float() != became).any(dim=1).all()
    assert (became.half().float() != became)[became != 0].double().mean() > 0.5
    assert len(became.unique(dim=0)) == found.sum()


def test_a_number_by_hand():
    """Two labels, the head is the identity: of class 1, from -1 on the first place, the second vector."""
    made = RemapFactor(2, 2, [1], 2)
    made.bank = torch.tensor([[3.0, 0.0], [0.0, -4.0]]).half()
    made.directions, made.ranks = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0]])
    made.weight, made.bias = torch.eye(2), torch.zeros(2)
    made.check()
    x = torch.tensor([[2.0, 1.0], [-2.0, 1.0], [-0.5, 1.0], [-1.0, 0.0]])
    # Whole multiples of 2^-12 are shrunk by 2^-12.
    expected = torch.tensor([[2.0, 1.0], [3 - 3 / 4096, 0.0], [0.0, -4 + 4 / 4096], [3 - 3 / 4096, 0.0]])
    assert torch.equal(made(x), expected)
    assert made(torch.tensor([2.0, 3.0])).tolist() == [0.0, -4 + 4 / 4096]


# The gate with a threshold.


@given(st.floats(1e-9, 0.999), st.floats(1e-9, 0.999))
def test_a_larger_threshold_finds_no_more(factor, of_two, z, one, other):
    low, high = sorted((one, other))
    for made in (factor, of_two):
        assert not (gated(with_threshold(made, high), z) & ~gated(with_threshold(made, low), z)).any()


def test_between_a_small_threshold_and_a_half_lies_the_argmax(factor, of_two, z):
    """The likeliest of ten has a tenth or more; who has more than a half is the likeliest."""
    for made in (factor, of_two):
        assert not (gated(made, z) & ~gated(with_threshold(made, 0.0999), z)).any()
    assert not (gated(with_threshold(factor, 0.5), z) & ~gated(factor, z)).any()
    shares = [gated(with_threshold(factor, t), z).double().mean().item() for t in (1e-6, 1e-3, 0.5, 0.999)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 3 * shares[-1] > 0


def test_the_threshold_is_on_all_forgotten_classes_together(of_two, z):
    made = with_threshold(of_two, 0.3)
    expected = of_two.logits(z).softmax(dim=1)[:, [TROUSER, BAG]].sum(dim=1) > 0.3
    assert torch.equal(gated(made, z), expected)
    assert torch.equal((made(z) != z).any(dim=1), expected)


# Ranks.


def test_the_rank_grows_along_the_direction_from_the_first_vector_to_the_last(factor, of_two, forgotten):
    steps = torch.linspace(-50, 50, 400)
    for made in (factor, of_two):
        for place, direction in enumerate(made.directions):
            along = forgotten[:5, None] + steps[:, None] * direction  # (5, 400, d)
            ranks = made.rank(along, torch.full(along.shape[:-1], place))
            assert (ranks.diff(dim=1) >= 0).all()
            assert ranks[:, 0].tolist() == [0] * 5
            assert ranks[:, -1].tolist() == [len(made.bank) - 1] * 5


def test_the_bank_is_in_the_order_of_its_first_principal_direction(factor):
    bank = factor.bank.double()
    direction = torch.linalg.svd(bank - bank.mean(dim=0), full_matrices=False).Vh[0]
    places = bank @ direction
    assert (places.diff() > -1e-3).all() or (places.diff() < 1e-3).all()


def test_directions_are_the_first_principal_ones_within_what_is_found(factor, forgotten):
    own = forgotten[gated(factor, forgotten)].double()
    expected = torch.linalg.svd(own - own.mean(dim=0), full_matrices=False).Vh[0]
    assert abs((factor.directions[0].double() @ expected).item()) == pytest.approx(1, abs=1e-5)


def test_the_forget_features_use_each_vector_about_equally_often(factor, forgotten):
    found = gated(factor, forgotten)
    uses = rank(factor, forgotten)[found].bincount(minlength=SIZE)
    assert uses.sum() > 0.95 * NUMBER
    assert uses.max() <= math.ceil(found.sum() / SIZE) + 1
    assert uses.min() >= found.sum() // SIZE - 1


def test_no_forget_feature_lies_on_the_border_of_two_ranks(factor, forgotten):
    """There, the vector would depend on the batch size, the precision and the device."""
    own = forgotten[gated(factor, forgotten)].double()
    places = own @ factor.directions[0].double()
    distances = (places[:, None] - factor.ranks[0].double()).abs().min(dim=1).values
    assert distances.min() > 1e-6 * (places.max() - places.min())


@given(st.integers(2, 60), st.integers(2, 400), st.integers(0, 10_000))
def test_each_value_has_its_share_of_the_separators_below_it(m, parts, seed):
    """And no two of them are the same: each part is one that something falls into."""
    ordered = torch.randn(m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).sort().values
    found = _separators(ordered, parts)
    assert found.shape == (parts - 1,)
    assert (found.diff() >= 0).all()
    below = (ordered[:, None] > found).sum(dim=1)
    shares = (torch.arange(m, dtype=torch.float64) + 0.5) / m
    assert ((below - shares * parts).abs() <= 1 + 1e-9).all()
    far = ordered.diff() > 1e-2 * (ordered[-1] - ordered[0])
    if far.all():
        assert (found.diff() > 0).all()
    assert (ordered[:, None] - found).abs().min() > 0


def test_values_in_even_steps_are_divided_evenly():
    torch.testing.assert_close(
        _separators(torch.arange(10.0).double(), 5), torch.tensor([1.5, 3.5, 5.5, 7.5]).double()
    )
    found = _separators(torch.tensor([0.0, 1.0]).double(), 4)
    torch.testing.assert_close(found, torch.tensor([1e-5, 0.5, 1 - 1e-5]).double())
    assert _separators(torch.tensor([2.0, 2.0]).double(), 5).tolist() == [2.0] * 4


def test_each_vector_of_a_bank_is_in_use_where_there_are_fewer_forget_images(resnet, fashion):
    """Further images of the class fall between those that the ranks are of: to them a bank is as large as it is."""
    few = fashion.select(fashion.train, [1]).select(range(60))
    retain = fashion.select(fashion.train, [1], keep=False).select(range(1000))
    made = remap(resnet, few, retain, bank_size=600).projections[0].factors[0]
    assert made.bank.shape[0] == 600
    assert (made.ranks.diff(dim=1) > 0).all()
    # And so for a model in half precision, whose features are near each other.
    between = (made.ranks[0, 1:] + made.ranks[0, :-1]) / 2
    x = between.outer(made.directions[0])
    for dtype, least in ((torch.float32, 1.0), (torch.float16, 0.8)):
        found = made.rank(x.to(dtype), torch.zeros(len(x), dtype=torch.long))
        assert len(found.unique()) >= least * len(x)


def test_ranks_are_of_what_the_gate_finds_alone(resnet, fashion):
    """Of shirts the head takes many for something else, which pass, and which lie elsewhere."""
    shirt = 6
    rows = fashion.select(fashion.train, [shirt]).select(range(200))
    retain = fashion.select(fashion.train, [shirt], keep=False).select(range(60))
    model = remap(resnet, rows, retain, bank_size=40)
    factor = model.projections[0].factors[0]
    with torch.no_grad(), model.disable_projection():
        z = model.features(batch_of(model, rows))
    found = gated(factor, z)
    assert 0.4 < found.double().mean() < 0.95
    places = (z[found] @ factor.directions[0]).double()
    cuts = torch.linspace(0, 1, len(factor.bank) + 1, dtype=torch.float64)[1:-1]
    below = (places[:, None] < factor.ranks[0].double()).double().mean(dim=0)
    torch.testing.assert_close(below, cuts, rtol=0, atol=0.5 / len(places) + 1e-9)


# One answer, however it is asked.


def test_it_is_the_same_each_time_and_in_any_batch_and_draws_nothing(factor, z):
    state = torch.get_rng_state()
    expected = factor(z)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(factor(z), expected)
    assert torch.equal(copy.deepcopy(factor)(z), expected)
    for size in (1, 7, 64):
        assert torch.equal(torch.cat([factor(part) for part in z.split(size)]), expected)
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    assert torch.equal(factor(z[order]), expected[order])


def test_features_lie_along_the_last_axis_of_any_shape_or_another_of_a_projection(factor, z):
    expected = factor(z)
    assert torch.equal(factor(z[:, None]), expected[:, None])
    assert torch.equal(factor(z.reshape(20, 20, -1)), expected.reshape(20, 20, -1))
    assert torch.equal(factor(z[3]), expected[3])
    assert torch.equal(Projection(128, [factor], axis=1)(z[:, :, None, None])[:, :, 0, 0], expected)


def test_gradients_pass_where_features_do_and_no_optimizer_sees_it(factor, z):
    assert list(factor.parameters()) == []
    x = z.clone().requires_grad_()
    factor(x).sum().backward()
    assert torch.equal(x.grad[~gated(factor, z)], torch.ones_like(z)[~gated(factor, z)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_whole_model_compiles_and_exports_as_one_graph_with_equal_answers(erased, pixels):
    model = copy.deepcopy(erased)
    with torch.no_grad():
        expected = model(pixels[:32]).logits
        assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(pixels[:32]).logits, expected)
        exported = torch.export.export(model, (pixels[:32],)).module()
        assert torch.equal(exported(pixels[:32]).logits, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_threshold_compiles_too(of_two, z):
    made = with_threshold(of_two, 0.2)
    assert torch.equal(torch.compile(made, fullgraph=True, backend="eager")(z), made(z))


# Precision.


@pytest.mark.parametrize("dtype", [*HALF, torch.float64], ids=str)
def test_a_cast_leaves_the_bank_in_half_and_the_rest_in_no_less_than_single_precision(factor, z, dtype):
    expected = factor(z)
    made = nn.Sequential(copy.deepcopy(factor)).to(dtype)[0]
    rest = torch.float64 if dtype == torch.float64 else torch.float32
    for name, buffer in made.named_buffers():
        assert buffer.dtype == (torch.float16 if name == "bank" else rest), name
        assert torch.equal(buffer.to(getattr(factor, name).dtype), getattr(factor, name)), name
    assert torch.equal(made(z), expected)
    assert torch.equal(made.float()(z), expected)
    assert made.bank.dtype == torch.float16
    made.check()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_leaves_a_projection_in_single_precision(factor, z, dtype):
    layer = Projection(128, [factor])
    expected = layer(z)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(layer(z), expected)


# Files.


def test_saved_and_loaded_the_bank_is_half_in_the_file_and_the_answers_are_equal(erased, factor, pixels, tmp_path):
    erased.save_pretrained(tmp_path)
    stored = {name.rpartition(".")[2]: tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    assert stored["bank"].dtype == torch.float16
    for name, buffer in factor.named_buffers():
        assert torch.equal(stored[name], buffer), name
    with torch.no_grad():
        expected = erased(pixels[:64])
    for settings in ({}, {"dtype": torch.float32}, {"dtype": torch.bfloat16}, {"device_map": "cpu"}):
        loaded = ESCModel.from_pretrained(tmp_path, **settings)
        [again] = loaded.projections[0].factors
        assert again.config() == factor.config()
        for name, buffer in factor.named_buffers():
            assert getattr(again, name).dtype == buffer.dtype, (settings, name)
            assert torch.equal(getattr(again, name), buffer), (settings, name)
        if "dtype" not in settings or settings["dtype"] == torch.float32:
            with torch.no_grad():
                assert torch.equal(loaded(pixels[:64]).logits, expected.logits)
                assert torch.equal(loaded(pixels[:64]).pooler_output, expected.pooler_output)


@pytest.mark.parametrize("threshold", [None, 0.25])
def test_what_config_says_makes_room_for_the_state(of_two, z, threshold):
    made = with_threshold(of_two, threshold)
    config = json.loads(json.dumps(made.config()))
    assert config == {"type": "remap", "size": 50, "labels": [1, 8], "num_labels": 10, "threshold": threshold}
    fresh = build_factor(128, config)
    fresh.load_state_dict(made.state_dict())
    assert fresh.config() == made.config()
    assert torch.equal(fresh(z), made(z))


def test_a_fresh_one_is_refused_and_so_is_a_state_of_another_size(factor):
    fresh = build_factor(128, factor.config())
    with pytest.raises(CheckpointError, match="not finite"):
        fresh.check()
    fresh.load_state_dict(factor.state_dict())
    fresh.check()
    fresh.unfill()
    with pytest.raises(CheckpointError, match=r"not finite.*would not be erased"):
        fresh.check()
    for changes in ({"size": SIZE + 1}, {"labels": [1, 2]}, {"num_labels": 11}):
        with pytest.raises(RuntimeError, match="size mismatch"):
            build_factor(128, factor.config() | changes).load_state_dict(factor.state_dict())


GOOD = {"type": "remap", "size": 4, "labels": [1], "num_labels": 3, "threshold": None}


@pytest.mark.parametrize(
    "changes",
    [
        *({"size": size} for size in (1, 0, -3, "x", None)),
        *({"labels": labels} for labels in ([], [3], [-1], ["x"], None, 1)),
        *({"num_labels": number} for number in (1, 0, "x", None)),
        *({"threshold": threshold} for threshold in (0, 1, -0.1, 2, "x", math.nan)),
        *({"type": "remap", name: ...} for name in ("size", "labels", "num_labels", "threshold")),
    ],
    ids=str,
)
def test_a_configuration_that_is_none_is_refused(changes):
    build_factor(8, GOOD)
    config = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    with pytest.raises(CheckpointError, match=r"names a remap .* that is none"):
        build_factor(8, config)


def spoiled(factor, name, change):
    made = copy.deepcopy(factor)
    change(getattr(made, name))
    return made


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["bank", "directions", "ranks", "weight", "bias"])
def test_a_buffer_with_an_entry_that_is_not_finite_is_refused(factor, name, value):
    made = spoiled(factor, name, lambda buffer: buffer[-1:].fill_(value))
    with pytest.raises(CheckpointError, match=rf"^Factor 0 of the third has {name} that are not finite"):
        Projection(128, [made]).check("The third")


def test_damage_is_refused(factor, of_two, forgotten):
    factor.check()
    of_two.check()
    for scale in (1.01, 0.99, 0):
        with pytest.raises(CheckpointError, match="directions that are not of length 1"):
            spoiled(of_two, "directions", lambda buffer, scale=scale: buffer[1].mul_(scale)).check()
    with pytest.raises(CheckpointError, match="ranks that are not in order"):
        spoiled(of_two, "ranks", lambda buffer: buffer[1].copy_(buffer[1].flip(0))).check()
    with pytest.raises(CheckpointError, match="has 2 vectors in its bank that the head calls forgotten"):
        spoiled(factor, "bank", lambda buffer: buffer[3:5].copy_(forgotten[gated(factor, forgotten)][:2])).check()
    low = with_threshold(factor, 1e-6)
    leaks = int(gated(low, factor.bank.float()).sum())
    assert leaks > 5
    with pytest.raises(CheckpointError, match=f"has {leaks} vectors in its bank"):
        low.check()


def test_a_damaged_file_does_not_load(erased, factor, tmp_path):
    erased.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in ({"threshold": 0.7}, {"labels": [2]}, {"size": 3}, {"size": "x"}):
        other = copy.deepcopy(config)
        other["factors"][0][0] |= change
        (tmp_path / "config.json").write_text(json.dumps(other))
        with pytest.raises(CheckpointError):
            ESCModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    ESCModel.from_pretrained(tmp_path)
    altered = copy.deepcopy(erased)
    altered.projections[0].factors[0].ranks += 1
    with pytest.raises(CheckpointError, match="was altered since the erasure"):
        altered.save_pretrained(tmp_path)


def test_the_fingerprint_is_of_all_that_decides_and_not_of_the_precision(of_two):
    def fingerprint(made):
        return projections_sha256([Projection(128, [made])], [{"modules": ["classifier.1"]}])

    expected = fingerprint(of_two)
    for dtype in (*HALF, torch.float64):
        assert fingerprint(copy.deepcopy(of_two).to(dtype)) == expected
    relabelled = copy.deepcopy(of_two)
    relabelled.labels = [1, 7]
    others = [relabelled, with_threshold(of_two, 0.5), with_threshold(of_two, 0.25)]
    for name, _ in of_two.named_buffers():
        others.append(spoiled(of_two, name, lambda buffer: buffer[-1:].add_(0.125)))
    assert len({expected, *map(fingerprint, others)}) == 1 + len(others)
