"""The same against a real endpoint, for those who have a token: HF_HUB_OFFLINE=0 HF_TOKEN=... pytest -m hub"""

import os
import uuid
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForImageClassification

from hf_esc import erase
from hf_esc.hub.verification import verify

from .tiny import batches, images, quietly, tiny

pytestmark = [
    pytest.mark.hub,
    pytest.mark.skipif(
        not os.environ.get("HF_TOKEN") or os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"),
        reason="needs HF_TOKEN and HF_HUB_OFFLINE=0",
    ),
]


def test_what_is_pushed_is_what_is_pulled_and_is_verified():
    api = HfApi()
    repo_id = f"{api.whoami()['name']}/hf_esc-test-{uuid.uuid4().hex[:8]}"
    erased = quietly(erase, tiny(), batches(images(20)), rank=1)
    try:
        erased.push_to_hub(repo_id, private=True)
        loaded = AutoModelForImageClassification.from_pretrained(repo_id)
        with torch.no_grad():
            torch.testing.assert_close(loaded(images(3)).logits, erased(images(3)).logits, atol=1e-6, rtol=0)
        assert all(check.passed is not False for check in verify(repo_id))
        assert "Not evaluated" in Path(api.hf_hub_download(repo_id, "README.md")).read_text(encoding="utf-8")
    finally:
        api.delete_repo(repo_id, missing_ok=True)
