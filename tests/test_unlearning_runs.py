"""On a real model and real images: what was tuned for it forgets a class and keeps the others."""

import json
from pathlib import Path

import pytest
import torch

from hf_esc.evaluation.accuracy import evaluate_accuracies, model_classifier
from hf_esc.loading import load_processor

from .unlearning import trained

pytestmark = pytest.mark.slow

TROUSER = 1
RATES = Path(__file__).parents[1] / "benchmarks" / "results" / "tuning" / "resnet.json"


@pytest.mark.parametrize("method", ["delete", "lau", "boundary-shrink"])
def test_the_embedded_resnet_forgets_trousers_and_nothing_else(resnet, fashion, method):
    rate = json.loads(RATES.read_text())[method]["best"]
    trainer = trained(
        method, resnet, fashion.forget_set([TROUSER]), learning_rate=rate, per_device_train_batch_size=128
    )
    found = evaluate_accuracies(
        {"before": model_classifier(resnet), "after": model_classifier(trainer.model)},
        fashion,
        [TROUSER],
        mapping=fashion.labels_in(resnet.config),
        processor=load_processor(resnet),
        batch_size=250,
    )
    before, after = found["before"], found["after"]
    assert before.forget_test > 90
    assert after.forget_train <= 10
    assert after.forget_test <= 10
    assert after.retain_test >= before.retain_test - 5
    assert trainer.model.config.erasures[-1]["unchanged"] == pytest.approx(after.forget_train / 100, abs=0.01)
    for name, buffer in resnet.named_buffers():
        assert torch.equal(buffer, trainer.model.get_buffer(name)), f"{name} has learnt the forget set"
