"""What the whole suite shares: no network, a cache of its own, the embedded checkpoint and its data."""

import gc
import os
import sys
from collections import Counter

# Before anything imports the libraries that read them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("laws", deadline=None, derandomize=True, database=None, max_examples=20)
settings.load_profile("laws")
gc.disable()  # until all is imported
# Files of few tests that take long.
LONG = {
    "test_fresh_results",
    "test_distributed",
    "test_remote_code",
    "test_unlearning_runs",
    "test_benchmarks",
    "test_space",
}
# Seconds that a test without the mark `slow` may take on a busy machine before the summary names it.
LIMIT = 15


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """
    What needs a fresh process is slow. The longest files come first, so that no process of the run is left with one
    when the others have ended: those of `LONG`, and then those with the most slow tests.
    """
    for item in items:
        if {"client", "elsewhere"} & set(item.fixturenames):
            item.add_marker("slow")
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (item.path.stem not in LONG, -slow[item.path]))


def pytest_collection_finish():
    """
    What was imported stays. Else each collection of garbage looks at half a million objects, for a third of a second,
    and accelerate asks for one whenever training begins.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_terminal_summary(terminalreporter):
    """Name the tests that should be marked `slow`. It is no failure: another load of the machine is another time."""
    reports = [report for kind in ("", "passed") for report in terminalreporter.getreports(kind)]
    late = [report for report in reports if report.duration > LIMIT and "slow" not in report.keywords]
    if late:
        terminalreporter.section(f"not marked slow, and took more than {LIMIT} seconds")
    for report in sorted(late, key=lambda report: -report.duration):
        terminalreporter.line(f"{report.duration:.1f}s {report.when} {report.nodeid}")


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory):
    """What `load_dataset` prepares goes with the test run, not into the user's cache."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _faster():
    """
    What most tests do again and again, with the same results to the bit: an image is decoded once, and where the
    channels of maps come last, a CPU pools them in a quarter of the time.
    """
    from torch import channels_last, nn

    from hf_esc.data.batches import ImageCollator

    decoded, read, pool = {}, ImageCollator._read, nn.MaxPool2d.forward

    def read_once(self, number, value):
        file = value.get("bytes") if isinstance(value, dict) else None
        if file is None or len(file) > 2000:
            return read(self, number, value)
        key = (file, self.mode)
        if key not in decoded:
            decoded[key] = read(self, number, value)
        return decoded[key]

    def pool_channels_last(self, maps):
        if maps.ndim != 4 or maps.device.type != "cpu" or self.return_indices:
            return pool(self, maps)
        return pool(self, maps.contiguous(memory_format=channels_last)).contiguous()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageCollator, "_read", read_once)
        patch.setattr(nn.MaxPool2d, "forward", pool_channels_last)
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


@pytest.fixture(scope="session")
def clothes(tmp_path_factory, fashion) -> str:
    """A folder of real images: 600 to train, 200 to test, of ten classes."""
    folder = tmp_path_factory.mktemp("clothes")
    fashion.train.select(range(600)).to_parquet(folder / "train.parquet")
    fashion.test.select(range(200)).to_parquet(folder / "test.parquet")
    return str(folder)


@pytest.fixture
def hf_esc(capsys, monkeypatch):
    """The command line, as `hf_esc("erase", ...)`: its exit code, stdout and stderr."""
    from hf_esc.cli import main

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hf-esc", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return command


@pytest.fixture(scope="session")
def hub():
    """A stand-in for the Hub."""
    from .hub import stand_in_hub

    with stand_in_hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    """Runs a snippet in a fresh process whose Hub is `hub`; see `clients`."""
    from .pushing import clients

    with clients(hub, tmp_path_factory.mktemp("client")) as run:
        yield run


@pytest.fixture(scope="session")
def elsewhere(hub, tmp_path_factory):
    """Runs code in a fresh process that has imported what hf_esc imports, but not hf_esc; its Hub is `hub`."""
    from .processes import LIBRARIES, forks, outside

    home = tmp_path_factory.mktemp("elsewhere")
    with forks(LIBRARIES, home, outside(hub.environment(home / "hub"))) as run:
        yield run


@pytest.fixture(scope="session")
def without_hf_esc(elsewhere):
    """Runs code in a folder where hf_esc cannot be imported, and returns the `answer` that it sets."""
    from .processes import WITHOUT_HF_ESC

    return lambda code, cwd, /, **values: elsewhere(WITHOUT_HF_ESC + code, cwd, **values)["answer"]
