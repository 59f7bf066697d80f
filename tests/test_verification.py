"""`verify`: an erased model is what its ledger says, down to the bit, or the first thing that is not so is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_esc import ESCModel
from hf_esc.errors import CheckpointError, ModelError
from hf_esc.hub.verification import verify
from hf_esc.ledger.fingerprints import sealed
from hf_esc.loading import load_classifier
from hf_esc.modeling.fingerprints import projections_sha256, tensors_sha256, weights_sha256
from hf_esc.modeling.projection import LowRankFactor, MaskedFactor, Projection

from .pushing import erased_vit, forget_set, put, tiny_vit
from .test_checkpoints import with_factors
from .tiny import quietly, tiny

CHECKS = ["erased model", "projection", "ledger", "weights", "base", "ledger's text"]
CHECKS += ["settings", "labels", "image processor", "code", "evaluation", "other files"]
# There is no base model on a Hub, and no evaluation in the folder.
WHOLE = [True, True, True, True, None, True, True, True, True, True, None, True]
CODE_AT = CHECKS.index("code")


def masked():
    """A mask made by hand before the head of the tiny ViT."""
    erased = erased_vit()
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    mask = torch.rand(8, 8, generator=generator) > 0.2
    record = erased.config.erasures.pop()
    erased.set_factors([[MaskedFactor.of(basis, mask)]], {**record, "method": "esc-t"})
    erased.config.erasures = sealed(erased.config.erasures)
    return erased


def twice():
    erased = erased_vit()
    again = quietly(erased, forget_set(2), rank=1)
    again.image_processor = erased.image_processor
    return again


def all_cnn():
    model = tiny()
    model.image_processor = tiny_vit().image_processor
    return quietly(model, forget_set(), rank=1)


def in_dtype(dtype):
    model = tiny_vit()
    erased = quietly(
        model.to(dtype), [{**b, "pixel_values": b["pixel_values"].to(dtype)} for b in forget_set()], rank=1
    )
    erased.image_processor = model.image_processor
    return erased


KINDS = {
    "ESC": erased_vit,
    "a mask": masked,
    "erased twice": twice,
    "code of its own": all_cnn,
    "bfloat16": lambda: in_dtype(torch.bfloat16),
    "float16": lambda: in_dtype(torch.float16),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder of each kind, made once. Copies are altered."""
    made = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("whole") / "model"
            KINDS[kind]().save_pretrained(made[kind])
        return made[kind]

    return of


@pytest.fixture
def copied(checkpoint, tmp_path):
    def of(kind: str = "ESC") -> Path:
        return Path(shutil.copytree(checkpoint(kind), tmp_path / kind))

    return of


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def outcome(source) -> list:
    """The verdicts, and the name of the last check."""
    checks = verify(source)
    assert [check.name for check in checks] == CHECKS[: len(checks)]
    assert all(check.passed is not False for check in checks[:-1])
    assert all(check.detail for check in checks)
    return [check.passed for check in checks]


# What is whole.


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_erased_passes_every_check(checkpoint, kind):
    assert outcome(checkpoint(kind)) == WHOLE


@pytest.mark.parametrize("kind", ["ESC", "a mask", "bfloat16", "code of its own"])
def test_what_is_loaded_and_saved_again_passes(checkpoint, kind, tmp_path):
    model = load_classifier(checkpoint(kind), device="cpu")
    model.save_pretrained(tmp_path / "again", max_shard_size="1KB")
    assert (tmp_path / "again" / "model.safetensors.index.json").exists()
    assert outcome(tmp_path / "again") == WHOLE


def test_the_embedded_resnet_passes(resnet, tmp_path):
    with_factors(resnet, ["low_rank", "masked"]).save_pretrained(tmp_path / "model")
    assert [check.passed for check in verify(tmp_path / "model")][:4] == [True] * 4


def test_each_check_is_a_line(hf_esc, checkpoint):
    code, out, _ = hf_esc("verify", checkpoint("erased twice"))
    assert code == 0
    lines = out.splitlines()
    assert [line[12:].split(":")[0] for line in lines] == CHECKS
    marks = {True: "ok", None: "not checked"}
    assert [line[:12].strip() for line in lines] == [marks[passed] for passed in WHOLE]
    assert lines[0].endswith("ViTForImageClassification, 2 erased: esc, esc")


def test_json_is_the_checks_and_nothing_else(hf_esc, checkpoint, copied):
    code, out, _ = hf_esc("verify", checkpoint("ESC"), "--json")
    found = json.loads(out)
    assert (code, found["passed"], [check["passed"] for check in found["checks"]]) == (0, True, WHOLE)
    assert found["source"] == str(checkpoint("ESC"))
    broken = copied()
    (broken / "outputs.py").unlink()
    code, out, _ = hf_esc("verify", broken, "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["checks"][-1]["name"]) == (1, False, "code")


# What was altered.


def flip_bit(name: str, place: int = 0, bit: int = 0):
    """One bit of one entry: the least of it."""

    def change(weights):
        weights[name] = weights[name].clone()
        weights[name].view(-1)[place : place + 1].view(torch.uint8)[0] ^= 1 << bit

    return change


BASIS, MASK = "projections.0.factors.0.basis", "projections.0.factors.0.mask"
ALTERED = {
    "a bit of the basis": ("ESC", flip_bit(BASIS), None),
    "the sign of the basis": ("ESC", lambda w: w.update({BASIS: -w[BASIS]}), None),
    "a bit of a masked basis": ("a mask", flip_bit(BASIS, 7), None),
    "an entry of a mask": ("a mask", flip_bit(MASK, 5), None),
    "a column of a mask": ("a mask", lambda w: w.update({MASK: w[MASK].roll(1, 1)}), None),
    "no projection": ("ESC", lambda w: w.pop(BASIS), None),
    "another rank": ("ESC", lambda w: w.update({BASIS: torch.eye(8)[:, :2]}), None),
    "another rank in both": (
        "ESC",
        lambda w: w.update({BASIS: torch.eye(8)[:, :2]}),
        lambda c: c.update(factors=[[{"type": "low_rank", "rank": 2}]]),
    ),
    "another valid projection": ("ESC", lambda w: w.update({BASIS: torch.eye(8)[:, 3:4]}), None),
    "the last erasure taken out": (
        "erased twice",
        None,
        lambda c: c["erasures"].pop(),
    ),
    "before another module": ("ESC", None, lambda c: c["sites"][0].update(modules=["vit.layernorm"])),
    "before a module without a weight": (
        "ESC",
        None,
        lambda c: c["sites"][0].update(modules=["vit.embeddings.dropout"]),
    ),
    "before a whole layer": ("ESC", None, lambda c: c["sites"][0].update(modules=["vit.layers.0"])),
    "before no module": ("ESC", None, lambda c: c["sites"][0].update(modules=[])),
    "along another axis": ("ESC", None, lambda c: c["sites"][0].update(axis=1)),
    "at another position": ("ESC", None, lambda c: c["sites"][0].update(position=0)),
    "sites that are none": ("ESC", None, lambda c: c.update(sites=[1])),
    "a width that is text": ("ESC", None, lambda c: c["sites"][0].update(dim="8")),
    "factors that are none": ("ESC", None, lambda c: c.update(factors=[[1]])),
    "a ledger that is text": ("ESC", None, lambda c: c.update(erasures="x")),
    "no factor": ("ESC", None, lambda c: c.update(factors=[[]])),
    "no fingerprint": ("ESC", None, lambda c: c["erasures"][-1].pop("projection_sha256")),
    "no ledger": ("ESC", None, lambda c: c.pop("erasures")),
}


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_projection_neither_loads_nor_verifies(copied, hf_esc, name):
    kind, weights, config = ALTERED[name]
    folder = copied(kind)
    if weights is not None:
        change_weights(folder, weights)
    if config is not None:
        change_config(folder, config)
    with pytest.raises(CheckpointError):
        ESCModel.from_pretrained(folder)
    assert outcome(folder) == [False]
    code, out, err = hf_esc("verify", folder)
    assert (code, len(out.splitlines())) == (1, 1)
    assert "Traceback" not in err
    assert out.startswith("MISMATCH    erased model: ")


def test_the_projection_of_another_erasure_is_not_taken(copied, tmp_path):
    """It is a projection, of the same shape, and came from this package."""
    erased_vit(label=2, names=["a", "b", "c", "d"]).save_pretrained(tmp_path / "other")
    other = load_file(tmp_path / "other" / "model.safetensors")[BASIS]
    other = other if not torch.equal(other, load_file(copied() / "model.safetensors")[BASIS]) else torch.eye(8)[:, :1]
    change_weights(tmp_path / "ESC", lambda weights: weights.update({BASIS: other}))
    assert outcome(tmp_path / "ESC") == [False]


@pytest.mark.parametrize("kind", ["ESC", "bfloat16", "code of its own"])
def test_an_altered_weight_loads_and_does_not_verify(copied, hf_esc, kind):
    folder = copied(kind)
    name = next(name for name in load_file(folder / "model.safetensors") if name.endswith("weight"))
    change_weights(folder, flip_bit(name))
    load_classifier(folder, device="cpu")
    assert outcome(folder) == [True, True, True, False]
    code, out, _ = hf_esc("verify", folder)
    assert code == 1
    assert out.splitlines()[-1].startswith("MISMATCH    weights: their fingerprint is ")


def test_a_trained_head_does_not_verify(checkpoint, tmp_path):
    model = ESCModel.from_pretrained(checkpoint("ESC"))
    with torch.no_grad():
        model.model.classifier.bias[0] += 1
    model.save_pretrained(tmp_path / "trained")
    assert outcome(tmp_path / "trained") == [True, True, True, False]


def test_another_precision_does_not_verify(checkpoint, tmp_path):
    ESCModel.from_pretrained(checkpoint("ESC"), dtype=torch.bfloat16).save_pretrained(tmp_path / "cast")
    assert outcome(tmp_path / "cast") == [True, True, True, False]


LEDGERS = {
    "no fingerprint of the weights": lambda ledger: ledger[0].pop("base_sha256"),
    "an empty one": lambda ledger: ledger[1].update(base_sha256=""),
    "weights that changed between records": lambda ledger: ledger[0].update(base_sha256="0" * 64),
}


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_that_is_not_whole(copied, name):
    folder = copied("erased twice")
    change_config(folder, lambda config: LEDGERS[name](config["erasures"]))
    assert outcome(folder) == [True, True, False]


CODE = {
    "changed": lambda folder: (folder / "modeling_esc.py").write_text((folder / "modeling_esc.py").read_text() + "\n"),
    "missing": lambda folder: (folder / "projection.py").unlink(),
    "empty": lambda folder: (folder / "errors.py").write_bytes(b""),
}


@pytest.mark.parametrize("name", CODE)
@pytest.mark.parametrize("kind", ["ESC", "code of its own"])
def test_other_code(copied, hf_esc, name, kind):
    folder = copied(kind)
    CODE[name](folder)
    assert outcome(folder) == [*WHOLE[:CODE_AT], False]
    code, out, _ = hf_esc("verify", folder)
    assert (code, out.splitlines()[-1][:16]) == (1, "MISMATCH    code")


def made_with(folder: Path, version: str) -> None:
    """As if another version had erased."""

    def change(config):
        config["erasures"][0]["versions"]["hf_esc"] = version
        config["erasures"] = sealed(config["erasures"])

    change_config(folder, change)


def test_code_of_another_version_is_not_compared(copied):
    folder = copied()
    made_with(folder, "0.0.1")
    assert outcome(folder) == WHOLE
    CODE["changed"](folder)
    assert outcome(folder) == [*WHOLE[:CODE_AT], None, *WHOLE[CODE_AT + 1 :]]


def test_a_plain_model_is_no_erased_one(hf_esc, tmp_path):
    tiny_vit().save_pretrained(tmp_path / "plain")
    code, out, _ = hf_esc("verify", tmp_path / "plain")
    assert code == 1
    assert out.startswith("MISMATCH    erased model: ")
    assert "'vit' model without a projection" in out


def test_what_is_not_there_is_said_with_exit_code_2(hf_esc, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "nowhere", tmp_path / "empty"):
        code, out, err = hf_esc("verify", source)
        assert (code, out) == (2, "")
        assert err.startswith(f"Error: There is no checkpoint to verify at '{source}'")
        with pytest.raises(ModelError):
            verify(source)


def test_weights_that_were_cut_off_do_not_verify(copied):
    folder = copied()
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert outcome(folder) == [False]


# Where it came from.


ERASE = """
from hf_esc.ledger.fingerprints import sealed
base = AutoModelForImageClassification.from_pretrained("me/base", revision=first)
data = [{**batch, "labels": torch.ones(16, dtype=torch.long)} for batch in batches(images(16))]
quietly(base, data, rank=1).save_pretrained(folder)
config = json.load(open(folder + "/config.json"))
config["erasures"][0]["base_revision"] = revision or first
config["erasures"][0]["base"] = name
config["erasures"] = sealed(config["erasures"])
json.dump(config, open(folder + "/config.json", "w"))
answer = command("verify", folder)
"""


def test_the_base_on_the_hub_is_compared(hub, client, tmp_path):
    """At the commit of the ledger; other weights there are a mismatch, and a base that is not there is not checked."""
    tiny_vit().save_pretrained(tmp_path / "base")
    tiny_vit(seed=1).save_pretrained(tmp_path / "later")
    repo = put(hub, "me/base", tmp_path / "base")
    first = repo.commits[-1].sha
    later = {path.name: path.read_bytes() for path in (tmp_path / "later").iterdir()}
    second = repo.commit("main", "other weights", later).sha

    def verified(folder, name="me/base", revision=None):
        code, out, _ = client(ERASE, folder=tmp_path / folder, name=name, revision=revision, first=first)
        assert len(out.splitlines()) in (5, len(CHECKS)), out
        return code, out.splitlines()[4]

    assert verified("same") == (0, f"ok          base: the weights are those of me/base at {first}")
    code, line = verified("other", revision=second)
    assert (code, line) == (1, f"MISMATCH    base: the weights are not those of me/base at {second}")
    code, line = verified("gone", name="me/gone")
    assert code == 0
    assert line.startswith(f"not checked base: not compared: me/gone at {first} is not at hand: ")


def test_without_a_network_the_base_is_not_checked(hub, client, hf_esc, tmp_path):
    folder = tmp_path / "model"
    erased = erased_vit()
    erased.config.erasures[0] |= {"base": "me/base", "base_revision": "1" * 40}
    erased.config.erasures = sealed(erased.config.erasures)
    erased.save_pretrained(folder)
    code, out, _ = hf_esc("verify", folder)
    assert (code, out.splitlines()[4][:16]) == (0, "not checked base")


def test_a_repository_is_verified_at_a_revision(hub, client, checkpoint):
    repo = put(hub, "me/erased", checkpoint("ESC"))
    head = repo.commits[-1]
    repo.commit("main", "altered", {**head.files, "errors.py": b""})
    answer = client(
        """
        answer = [command("verify", "me/erased")[0], command("verify", "me/erased", "--revision", sha)[0],
                  command("verify", "me/nothing")]
        """,
        sha=head.sha,
    )
    assert answer[:2] == [1, 0]
    assert answer[2][0] == 2
    assert answer[2][2].startswith("Error: There is no checkpoint to verify at 'me/nothing'")


# Fingerprints.

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool]
shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
names = st.text("abc.0", max_size=6)


@st.composite
def tensors(draw):
    seed = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    made = torch.randint(0, 2, draw(shapes), generator=seed)
    return made.to(draw(st.sampled_from(DTYPES)))


named = st.dictionaries(names, tensors(), min_size=1, max_size=4)


SITE = {"modules": ["a"], "dim": 8, "axis": -1, "position": None}


def fingerprint(projections) -> str:
    return projections_sha256(projections, [SITE | {"modules": [str(place)]} for place in range(len(projections))])


@given(named, st.randoms())
def test_the_order_of_tensors_does_not_matter(group, random):
    pairs = list(group.items())
    random.shuffle(pairs)
    assert tensors_sha256(pairs) == tensors_sha256(group.items())
    copies = {name: tensor.clone() for name, tensor in group.items()}
    assert tensors_sha256(copies.items()) == tensors_sha256(group.items())


@given(named, st.data())
def test_every_name_type_shape_and_byte_matters(group, data):
    before = tensors_sha256(group.items())
    name = data.draw(st.sampled_from(sorted(group)))
    tensor = group[name]
    others = [{**{key: value for key, value in group.items() if key != name}, name + "x": tensor}]
    others += [{**group, name: tensor.to(dtype)} for dtype in DTYPES if dtype != tensor.dtype]
    others += [{**group, name: tensor[None]}, {**group, name + "y": tensor}]
    if tensor.numel():
        flipped = tensor.clone().contiguous().view(-1)
        flipped.view(torch.uint8)[data.draw(st.integers(0, flipped.view(torch.uint8).numel() - 1))] ^= 1
        others.append({**group, name: flipped.view(tensor.shape)})
    found = [tensors_sha256(other.items()) for other in others]
    assert before not in found
    assert len(set(found)) == len(found)


def test_how_a_tensor_lies_in_memory_does_not_matter():
    tensor = torch.arange(12.0).reshape(3, 4)
    assert tensors_sha256([("a", tensor.T.contiguous().T)]) == tensors_sha256([("a", tensor)])
    assert tensors_sha256([("a", tensor[:, ::2])]) == tensors_sha256([("a", tensor[:, ::2].clone())])


@given(st.integers(1, 6), st.integers(0, 100))
def test_the_fingerprint_of_a_projection_is_of_its_values(dim, seed):
    """Not of its type; of every entry, and of the order of the factors."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q
    mask = torch.rand(dim, dim, generator=generator) > 0.5
    factors = [LowRankFactor.of(basis[:, :1].clone()), MaskedFactor.of(basis.clone(), mask)]
    projection = Projection(dim, factors)
    before = fingerprint([projection])
    assert fingerprint([projection, Projection(dim)]) == before
    assert fingerprint([Projection(dim, factors[::-1])]) != before
    assert fingerprint([Projection(dim), projection]) != before
    assert fingerprint([Projection(dim, factors[:1])]) != before
    assert fingerprint([projection.to(torch.float64)]) == before
    assert fingerprint([projection.to(torch.float32).to(torch.bfloat16)]) == before
    factors[1].mask[0, 0] = 1 - factors[1].mask[0, 0]
    assert fingerprint([projection]) != before
    for other in ({"modules": ["b"]}, {"dim": 9}, {"axis": 1}, {"position": 0}):
        assert projections_sha256([projection], [SITE | other]) != projections_sha256([projection], [SITE])


@pytest.mark.parametrize("kind", ["ESC", "a mask", "erased twice", "bfloat16"])
def test_the_ledger_has_the_fingerprints_of_what_is_loaded(checkpoint, kind):
    model = ESCModel.from_pretrained(checkpoint(kind))
    last = model.config.erasures[-1]
    assert last["projection_sha256"] == projections_sha256(model.projections, model.config.sites)
    assert last["base_sha256"] == weights_sha256(model.model)
    assert projections_sha256(model.to(torch.float64).projections, model.config.sites) == last["projection_sha256"]


AUTO_MAPS = {
    "of another repository": ("config.json", {"AutoModelForImageClassification": "evil/repo--modeling_evil.Evil"}),
    "of another file": ("config.json", {"AutoModelForImageClassification": "sub/evil.Evil"}),
    "of the processor": ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}),
}


@pytest.mark.parametrize("what", AUTO_MAPS)
def test_a_configuration_that_names_other_code_does_not_verify(copied, what):
    folder = copied()
    name, entries = AUTO_MAPS[what]
    values = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(values | {"auto_map": values.get("auto_map", {}) | entries}))
    last = verify(folder)[-1]
    assert (last.name, last.passed) == ("code", False)
    assert "evil" in last.detail.lower()
