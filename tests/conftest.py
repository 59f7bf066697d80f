"""What the whole suite shares: no network, a cache of its own, the embedded checkpoint and its data."""

import os

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("laws")


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory):
    """What `load_dataset` prepares goes with the test run, not into the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="session")
def resnet():
    """The embedded ResNet (d = 128), trained on Fashion-MNIST. Nothing may change it."""
    from hf_esc.loading import load_classifier

    return load_classifier("embedded/resnet", device="cpu")


@pytest.fixture(scope="session")
def fashion():
    """The embedded part of Fashion-MNIST: 7,000 training and 2,000 test images of ten classes."""
    from hf_esc.data import load_images

    return load_images("embedded")
