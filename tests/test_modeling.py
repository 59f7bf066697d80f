"""ESCModel: the backbone is the original's, the projection stays what it is, and every way of running it agrees."""

import asyncio
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from hf_esc import ESCModel, erase
from hf_esc.erasure.wrapping import wrap
from hf_esc.errors import CheckpointError, ModelError, SiteError
from tests.tiny import ranks
from tests.zoo import ZOO

pytestmark = pytest.mark.filterwarnings("ignore:The erasure is incomplete")


@pytest.fixture(scope="module")
def inputs():
    return ZOO["vit"].inputs(batch_size=8)


@pytest.fixture
def erased(inputs):
    return erase(ZOO["vit"].build(), [inputs], rank=2)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def test_disabled_projection_is_the_base_bit_for_bit_and_comes_back(erased, inputs):
    projected = logits(erased, inputs)
    with erased.disable_projection():
        assert torch.equal(logits(erased, inputs), logits(ZOO["vit"].build(), inputs))
        with erased.disable_projection():
            pass
        assert torch.equal(logits(erased, inputs), logits(ZOO["vit"].build(), inputs))
    assert torch.equal(logits(erased, inputs), projected)


def test_disabled_projection_comes_back_after_an_error(erased, inputs):
    projected = logits(erased, inputs)
    with pytest.raises(RuntimeError, match="on purpose"), erased.disable_projection():
        raise RuntimeError("on purpose")
    assert torch.equal(logits(erased, inputs), projected)


def test_logits_are_the_head_of_the_projected_features(erased, inputs):
    with torch.no_grad():
        output = erased(**inputs)
        expected = erased.model.classifier.forward(output.pooler_output)
    torch.testing.assert_close(output.logits, expected)


def test_loss_is_the_cross_entropy_and_labels_do_not_touch_the_projection(erased, inputs):
    labels = torch.arange(8) % 5
    with torch.no_grad():
        output = erased(**inputs, labels=labels)
    assert torch.equal(output.logits, logits(erased, inputs))
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))


def test_return_dict_false_gives_the_tuple_and_hidden_states_pass_through(erased, inputs):
    with torch.no_grad():
        assert torch.equal(erased(**inputs, return_dict=False)[0], logits(erased, inputs))
        assert len(erased(**inputs, output_hidden_states=True).hidden_states) == 3  # the embedding and two layers


def test_what_the_configuration_asks_of_every_pass_is_given(inputs, tmp_path):
    base = ZOO["vit"].build()
    base.set_attn_implementation("eager")
    erased = erase(base, [inputs], rank=2)
    assert erased.config._attn_implementation == "eager"  # as it runs, and not the default of an unwrapped one
    erased.save_pretrained(tmp_path)
    erased.config.output_hidden_states = erased.config.output_attentions = True
    loaded = AutoModelForImageClassification.from_pretrained(
        tmp_path, output_hidden_states=True, output_attentions=True, attn_implementation="eager"
    )
    for model in (erased, loaded):
        with torch.no_grad():
            output = model(**inputs)
            assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
            assert model(**inputs, output_hidden_states=False).hidden_states is None  # the call comes first


def test_training_leaves_the_projection_bit_identical(erased, inputs, tmp_path):
    before = [projection.factors[0].basis.clone() for projection in erased.projections]
    weights = erased.model.classifier.weight.clone()
    rows = [{"pixel_values": x, "labels": i % 5} for i, x in enumerate(inputs["pixel_values"])]
    arguments = TrainingArguments(tmp_path, max_steps=3, learning_rate=0.1, weight_decay=0.1, use_cpu=True)
    trainer = Trainer(erased, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.predict(rows).predictions.shape == (8, 5)  # logits alone
    assert not torch.equal(erased.model.classifier.weight, weights)
    for projection, basis in zip(erased.projections, before, strict=True):
        assert torch.equal(projection.factors[0].basis, basis)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
def test_copies_have_a_projection_of_their_own(erased, inputs, copied):
    twin = copied(erased)
    expected = logits(erased, inputs)
    erased.projections[0].factors[0].basis.zero_()
    assert torch.equal(logits(twin, inputs), expected)
    assert not torch.equal(logits(erased, inputs), expected)


def test_half_precision_leaves_the_basis_in_float32(erased, inputs):
    expected = logits(erased, inputs)
    basis = erased.projections[0].factors[0].basis.clone()
    half = erased.to(torch.bfloat16)
    assert half.model.classifier.weight.dtype == torch.bfloat16
    assert torch.equal(half.projections[0].factors[0].basis, basis)
    halved = {"pixel_values": inputs["pixel_values"].bfloat16()}
    torch.testing.assert_close(logits(half, halved).float(), expected, atol=0.2, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_loading_in_another_dtype(erased, dtype, tmp_path):
    erased.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.model.classifier.weight.dtype == dtype
    assert loaded.projections[0].factors[0].basis.dtype == torch.float32
    torch.testing.assert_close(loaded.projections[0].factors[0].basis.float(), erased.projections[0].factors[0].basis)


def test_loading_passes_attention_and_device_map_through(erased, inputs, tmp_path):
    erased.save_pretrained(tmp_path)
    expected = logits(erased, inputs)
    eager = AutoModelForImageClassification.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.model.config._attn_implementation == "eager"
    mapped = AutoModelForImageClassification.from_pretrained(tmp_path, device_map="cpu")
    for model in (eager, mapped):
        torch.testing.assert_close(logits(model, inputs), expected, atol=1e-5, rtol=1e-4)


def test_offloaded_to_disk_it_is_checked_and_erases(erased, inputs, tmp_path):
    erased.save_pretrained(tmp_path / "model")
    device_map = {"model.vit": "cpu", "model.classifier": "cpu", "projections": "disk"}
    loaded = ESCModel.from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload", offload_buffers=True
    )
    torch.testing.assert_close(logits(loaded, inputs), logits(erased, inputs), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiles_and_exports_as_one_graph(erased, inputs):
    expected = logits(erased, inputs)
    erased = copy.deepcopy(erased)  # no context was entered yet
    compiled = torch.compile(erased, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits(compiled, inputs), expected)
    with erased.disable_projection():
        torch.testing.assert_close(logits(compiled, inputs), logits(erased.model, inputs))
    torch.testing.assert_close(logits(compiled, inputs), expected)
    exported = torch.export.export(erased, (inputs["pixel_values"],)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(inputs["pixel_values"]).logits, expected)


def test_a_model_that_erases_nothing_is_not_saved(tmp_path):
    model = wrap(ZOO["vit"].build(), [{"modules": ["classifier"], "dim": 32, "axis": -1}])
    with pytest.raises(CheckpointError, match="rank 0"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_built_from_its_configuration_alone_does_not_pass_for_erased(erased, inputs):
    assert logits(ESCModel(copy.deepcopy(erased.config)).eval(), inputs).isnan().all()


def test_load_state_dict_refuses_a_basis_that_is_none(erased):
    state = erased.state_dict()
    fresh = ESCModel(copy.deepcopy(erased.config))
    fresh.load_state_dict(state)
    for damage in (0.5, 0.0, float("nan")):
        with pytest.raises(RuntimeError, match=r"projections.0.factors.0.basis"):
            fresh.load_state_dict(
                state | {"projections.0.factors.0.basis": state["projections.0.factors.0.basis"] * damage}
            )


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ([{"modules": ["nowhere"], "dim": 32, "axis": -1}], "no module"),
        ([{"modules": ["vit.layers.0.attention.q_proj"], "dim": 32, "axis": -1}], "should map"),
        ([{"modules": ["classifier"], "dim": 31, "axis": -1}], "should map"),
        ([], "sites"),
    ],
)
def test_sites_that_are_no_head_are_refused(sites, message):
    with pytest.raises(CheckpointError, match=message):
        wrap(ZOO["vit"].build(), sites)


def test_a_model_in_half_precision_is_erased_from_a_data_set(resnet, fashion):
    forget_set = fashion.select(fashion.train, [1]).select(range(64))
    half = erase(copy.deepcopy(resnet).to(torch.bfloat16), forget_set, rank=1)
    full = erase(resnet, forget_set, rank=1)
    cosine = (half.projections[0].factors[0].basis * full.projections[0].factors[0].basis).sum().abs()
    assert half.model.dtype == torch.bfloat16
    assert cosine > 0.999


def test_threads_see_their_own_features(erased, inputs):
    rows = inputs["pixel_values"]
    with torch.no_grad():
        expected = [erased(rows[i : i + 1]).pooler_output for i in range(len(rows))]

    @torch.no_grad()
    def run(i):
        return all(torch.equal(erased(rows[i : i + 1]).pooler_output, expected[i]) for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(len(rows))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_the_erasure_of_the_cpu(resnet, fashion):
    forget_set = fashion.select(fashion.train, [1]).select(range(128))
    there = erase(copy.deepcopy(resnet).to("cuda"), forget_set, rank=1)
    here = erase(resnet, forget_set, rank=1)
    assert there.projections[0].factors[0].basis.is_cuda
    torch.testing.assert_close(
        there.projections[0].factors[0].basis.cpu(), here.projections[0].factors[0].basis, atol=1e-3, rtol=1e-3
    )


def test_a_replaced_head_does_not_slip_past_the_projection(erased, inputs):
    erased.model.classifier = new = nn.Linear(32, 5)
    torch.testing.assert_close(logits(erased, inputs), new(erased.features(**inputs)))
    assert (erased.features(**inputs) @ erased.projections[0].factors[0].basis).abs().max() < 1e-5
    del erased.model.classifier
    with pytest.raises(SiteError, match=r"The head 'classifier' .* is gone"):
        erased(**inputs)


def test_erasing_with_the_projection_switched_off_gives_a_model_with_it_on(erased, inputs):
    more = ZOO["vit"].inputs(batch_size=8, seed=5)
    with erased.disable_projection():
        again = erase(erased, [more], rank=1)
    assert all(projection.enabled for projection in again.projections)
    assert ranks(again) == [3]
    assert (again.features(**inputs) @ erased.projections[0].factors[0].basis).abs().max() < 1e-4


def test_contexts_that_overlap_and_copies_made_within_one_are_projected_after_it(erased, inputs):
    projected = logits(erased, inputs)
    first, second = erased.disable_projection(), erased.disable_projection()
    first.__enter__()
    second.__enter__()
    copies = [copy.deepcopy(erased), pickle.loads(pickle.dumps(erased))]
    first.__exit__(None, None, None)
    assert not torch.equal(logits(erased, inputs), projected)  # the second is still open
    second.__exit__(None, None, None)
    for model in (erased, *copies):
        assert torch.equal(logits(model, inputs), projected)


def test_what_one_thread_switches_off_stays_on_in_another(erased, inputs):
    projected = logits(erased, inputs)
    with erased.disable_projection(), ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(logits, erased, inputs).result(), projected)


def test_what_one_task_switches_off_stays_on_in_another(erased, inputs):
    """One task awaits while the projection is off for it; the others of the same thread answer meanwhile."""
    projected = logits(erased, inputs)
    with erased.disable_projection():
        original = logits(erased, inputs)

    async def looks(entered: asyncio.Event, answered: asyncio.Event):
        with erased.disable_projection():
            entered.set()
            await answered.wait()
            return logits(erased, inputs)

    async def serves(entered: asyncio.Event, answered: asyncio.Event):
        await entered.wait()
        found = logits(erased, inputs), await asyncio.to_thread(logits, erased, inputs)
        answered.set()
        return found

    async def both():
        events = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(looks(*events), serves(*events))

    own, others = asyncio.run(both())
    assert torch.equal(own, original)
    assert all(torch.equal(answer, projected) for answer in others)


def test_a_task_that_was_started_while_it_was_off_gets_erased_answers_afterwards(erased, inputs):
    """A task inherits what its creator had switched, and must not keep it."""
    projected = logits(erased, inputs)

    async def serves(until: asyncio.Event):
        await until.wait()
        return logits(erased, inputs)

    async def main():
        over = asyncio.Event()
        with erased.disable_projection():
            task = asyncio.create_task(serves(over))
            await asyncio.sleep(0)
        over.set()
        return await task

    assert torch.equal(asyncio.run(main()), projected)


def test_a_suspended_generator_shares_what_it_switched_off_with_its_caller(erased, inputs):
    def looking():
        with erased.disable_projection():
            yield

    projected = logits(erased, inputs)
    generator = looking()
    next(generator)
    assert not torch.equal(logits(erased, inputs), projected)
    generator.close()
    assert torch.equal(logits(erased, inputs), projected)


def test_autocast_does_not_leave_a_part_of_the_class(erased, inputs):
    z, projection = torch.randn(16, 32), erased.projections[0]
    exact = projection(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(projection(z), exact)
    assert (exact @ projection.factors[0].basis).abs().max() < 1e-5


def test_gradient_accumulation_reports_the_loss_of_one_batch(erased, inputs, tmp_path):
    rows = [{"pixel_values": x, "labels": i % 5} for i, x in enumerate(inputs["pixel_values"])]
    settings = {"max_steps": 1, "learning_rate": 0.0, "logging_steps": 1, "use_cpu": True, "save_strategy": "no"}
    losses = []
    for batch, accumulation in ((8, 1), (2, 4)):
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, **settings
        )
        trainer = Trainer(copy.deepcopy(erased), arguments, train_dataset=rows)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_inside_of_an_erased_model_is_not_erased_on_its_own(erased, inputs):
    with pytest.raises(ModelError, match="Pass the ESCModel"):
        erase(erased.base_model, [inputs], rank=1)
