"""A new head on an erased backbone: what was erased stays projected out, and an untrained head is nothing to erase."""

import pytest
import torch
from transformers import AutoModelForImageClassification

from hf_esc import ESCModel, load_classifier
from hf_esc.data.labels import erased_labels
from hf_esc.errors import CheckpointError, ModelError
from hf_esc.hub.verification import verify
from hf_esc.ledger.fingerprints import sealed
from hf_esc.methods import edited_fingerprint

from .tiny import batches, quietly
from .zoo import ZOO

ARCHITECTURES = ["vit", "resnet", "swiftformer", "timm-wrapper"]
NEW = {0: "bench", 1: "bird", 2: "boat"}


def erased(name: str) -> ESCModel:
    model = ZOO[name]
    return quietly(model.build(), batches(model.inputs(8)[model.main_input]), rank=2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_new_head_reads_projected_features_and_the_backbone_stays(name, tmp_path):
    before = erased(name)
    model = before.replace_head(NEW)
    inputs = ZOO[name].inputs(4)
    with torch.no_grad():
        one, other = before(**inputs), model(**inputs)
        assert torch.equal(one.pooler_output, other.pooler_output)
    assert other.logits.shape == (4, 3)
    own, there = model.model.state_dict(), before.model.state_dict()
    new = {name for name in own if own[name].shape != there[name].shape or not torch.equal(own[name], there[name])}
    heads = tuple(f"{path}." for site in model.config.sites for path in site["modules"])
    assert new
    assert all(name.startswith(heads) for name in new)
    assert before.config.num_labels == 5
    # Trained, saved and loaded, the projection is what it was.
    optimizer = torch.optim.SGD([p for n, p in model.model.named_parameters() if n.startswith(heads)], lr=0.1)
    model(**inputs, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path, device="cpu")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
        assert torch.equal(loaded(**inputs).pooler_output, one.pooler_output)
    assert loaded.config.id2label == NEW


def test_the_ledger_keeps_its_labels_as_those_of_an_earlier_head():
    before = erased("vit")
    before.config.erasures[-1] |= {"labels": ["cat"], "label_ids": [3]}
    model = before.replace_head(NEW)
    (record,) = model.config.erasures
    assert (record["labels"], record["label_ids"], record["earlier_label_ids"]) == (["cat"], None, [3])
    assert erased_labels(model.config) == set()
    assert before.config.erasures[-1]["label_ids"] == [3]
    again = model.replace_head({0: "a", 1: "b"})
    assert again.config.erasures[-1]["earlier_label_ids"] == [3]


def test_what_is_erased_behind_a_new_head_verifies(tmp_path):
    images = batches(ZOO["vit"].inputs(8, seed=7)["pixel_values"])
    before = erased("vit")
    before.config.erasures = sealed([before.config.erasures[-1] | {"labels": ["cat"], "label_ids": [3]}])
    model = before.replace_head(NEW)
    with torch.no_grad():
        model.model.classifier.weight.add_(1)
    model.save_pretrained(tmp_path)
    last = verify(tmp_path)[-1]
    assert (last.name, last.passed) == ("ledger", False)
    assert "head was replaced" in last.detail
    again = quietly(model, images, rank=1)
    assert sealed(again.config.erasures) == again.config.erasures
    again.save_pretrained(tmp_path)
    checks = {check.name: check for check in verify(tmp_path)}
    assert [name for name, check in checks.items() if check.passed is False] == []
    assert [name for name in ("weights", "base", "ledger's text") if checks[name].passed is None] == [
        "base",
        "ledger's text",
    ]
    with torch.no_grad():
        again.model.classifier.weight.add_(1)
    again.save_pretrained(tmp_path)
    assert verify(tmp_path)[-1].name == "weights"


def test_an_edit_of_an_earlier_head_says_nothing_of_the_weights():
    edit = {"kind": "weights", "method": "delete", "weights_sha256": "a"}
    assert edited_fingerprint([edit]) == "a"
    assert edited_fingerprint([edit | {"earlier_label_ids": None}]) is None


@pytest.mark.parametrize("names", [{}, {1: "a", 2: "b"}, {0: "a", 2: "b"}], ids=str)
def test_class_i_of_a_new_head_is_its_i_th_logit_or_it_is_an_error(names):
    model = erased("vit")
    with pytest.raises(CheckpointError, match="numbered from 0 on"):
        model.replace_head(names)
    eleven = model.replace_head({str(number): f"class {number}" for number in reversed(range(11))})
    assert list(eleven.config.id2label.items()) == [(number, f"class {number}") for number in range(11)]
    assert eleven.config.base_config.id2label == eleven.config.id2label


def test_nothing_is_erased_from_a_head_that_was_never_trained():
    images = batches(ZOO["vit"].inputs(8, seed=7)["pixel_values"])
    model = erased("vit").replace_head(NEW)
    with pytest.raises(ModelError, match="never trained"):
        quietly(model, images, rank=1)
    with torch.no_grad():
        model.model.classifier.weight.add_(1)
    again = quietly(model, images, rank=1)
    assert [len(group) for group in again.config.factors] == [1]
    assert again.config.factors[0][0]["rank"] == 3


def test_from_pretrained_with_other_classes_is_a_new_head_where_that_is_said(tmp_path):
    before = erased("vit")
    before.save_pretrained(tmp_path)
    inputs = ZOO["vit"].inputs(4)
    for auto in (ESCModel, AutoModelForImageClassification):
        for labels in ({"num_labels": 3}, {"id2label": NEW}):
            model, info = auto.from_pretrained(
                tmp_path, **labels, ignore_mismatched_sizes=True, output_loading_info=True
            )
            with torch.no_grad():
                found = model(**inputs)
                assert torch.equal(found.pooler_output, before(**inputs).pooler_output)
            assert found.logits.shape == (4, 3)
            assert set(info["missing_keys"]) == {"model.classifier.weight", "model.classifier.bias"}
            assert model.config.erasures[-1]["untrained_head_sha256"]
            with pytest.raises(CheckpointError, match="ignore_mismatched_sizes=True"):
                auto.from_pretrained(tmp_path, **labels)
        # As many classes under other names are no new head.
        renamed = {str(number): f"class {number}" for number in range(5)}
        for labels in ({"num_labels": 5}, {"id2label": renamed}, {"config": str(tmp_path)}):
            kept = auto.from_pretrained(tmp_path, **labels)
            assert kept.config.erasures == before.config.erasures
            with torch.no_grad():
                assert torch.equal(kept(**inputs).logits, before(**inputs).logits)
        with pytest.raises(CheckpointError, match="numbered from 0 on"):
            auto.from_pretrained(tmp_path, id2label={1: "a", 2: "b", 3: "c"}, ignore_mismatched_sizes=True)
    with pytest.raises(ModelError, match="has no weights for"):
        load_classifier(tmp_path, device="cpu", num_labels=3, ignore_mismatched_sizes=True)
