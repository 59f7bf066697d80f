"""Two processes train the mask of one: the same batches, no image twice, and none of them waits for ever."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from itertools import chain
from pathlib import Path

import datasets
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_esc import ESCModel, ESCTTrainer, ESCTTrainingArguments
from hf_esc.data import image_batches
from hf_esc.loading import load_classifier, load_processor
from hf_esc.training.feature_store import ForgetFeatures, SharesLoader

from .unlearning_process import SETTINGS as PROCESSES
from .unlearning_process import run as unlearn

TROUSER = 1
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "run_esc_t.py"
# A process needs some ten seconds to import all that it needs; one that waits for another waits for half an hour.
LIMIT = 240

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(fashion, tmp_path_factory):
    """A folder with so many training images of the class to forget, and a few others."""

    def make(number, change=None):
        path = tmp_path_factory.mktemp("images") / "data"
        forget = fashion.select(fashion.train, [TROUSER]).select(range(number))
        if change is not None:
            forget = change(forget)
        others = fashion.select(fashion.train, [TROUSER], keep=False).select(range(10))
        train = datasets.concatenate_datasets([forget, others])
        datasets.DatasetDict({"train": train, "test": fashion.test.select(range(20))}).save_to_disk(path)
        return path

    return make


def arguments(data, output, epochs, **more):
    """Checkpoints after every fifth step, and all of them stay."""
    given = {"model": "embedded/resnet", "dataset": data, "forget": "Trouser", "output_dir": output}
    given |= {"num_train_epochs": epochs, "save_steps": 5, "save_total_limit": 100, "report_to": "none"}
    return [word for name, value in (given | more).items() for word in (f"--{name}", str(value))]


def finish(command, **environment):
    """Run a command to its end, with all that it starts; one that hangs is ended and fails."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(list(map(str, command)), env=os.environ | environment, **settings)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"It hangs: {process.communicate()[0][-3000:]}")
    return process.returncode, output


def one_process(data, output, epochs, **more):
    """The same in this process, with the batches of two."""
    train = datasets.load_from_disk(data)["train"]
    settings = {"save_steps": 5, "save_total_limit": 100, "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    settings |= {"num_train_epochs": epochs, "per_device_train_batch_size": 64}
    training = ESCTTrainingArguments(output, **settings, **more)
    model = load_classifier("embedded/resnet", device="cpu")
    trainer = ESCTTrainer(model, training, train.filter(lambda label: label == TROUSER, input_columns="label"))
    trainer.train()
    trainer.save_model()
    return trainer.erased_model


# Two forks of a process that has imported the libraries, with the environment that torchrun gives to its processes.
# They need a few seconds less than those of torchrun. One that hangs is ended by its alarm.
TWO_FORKS = """
import runpy, signal

def work(rank):
    signal.alarm(limit)
    sys.stderr = open(f"stderr-{rank}", "w", buffering=1)
    sys.path.insert(0, root)
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    for name, value in (ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items():
        os.environ[name] = str(value)
    exec(code, globals() | {"words": words})

children = []
for rank in range(2):
    if (child := os.fork()) == 0:
        try:
            work(rank)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(1)
    children.append(child)
answer = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
"""


@pytest.fixture
def two_forks(elsewhere, tmp_path):
    """Runs code in two processes, and returns their exit codes and what they wrote to stderr."""

    def run(code: str, *words) -> tuple[list[int], list[str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        values = {"code": code, "words": [str(word) for word in words], "root": ROOT, "port": port, "limit": LIMIT}
        codes = elsewhere(TWO_FORKS, folder, **values)["answer"]
        return codes, [(folder / f"stderr-{rank}").read_text() for rank in range(2)]

    return run


# A launcher as it is, but for the last thing it does: its two processes are forks of this one, which has imported the
# libraries, and not fresh ones that would import them again.
LAUNCH = """
import runpy, signal
import torch.distributed.run
import accelerate.commands.launch

def forked(args, real=torch.distributed.run.config_from_args):
    config, _, (unbuffered, *words) = real(args)
    assert unbuffered == "-u"
    config.start_method = "fork"
    return config, work, words

def work(*words):
    signal.alarm(limit)
    sys.stdout = sys.stderr = open("output-" + os.environ["RANK"], "w", buffering=1)
    sys.path.insert(0, root)
    sys.argv = list(words)
    runpy.run_path(words[0], run_name="__main__")

signal.alarm(limit)
torch.distributed.run.config_from_args = forked
os.environ.update(environment)
sys.argv = [launcher, *words]
{"torchrun": torch.distributed.run, "accelerate": accelerate.commands.launch}[launcher].main()
answer = sorted(name for name in os.listdir() if name.startswith("output-"))
"""


@pytest.fixture
def launch(elsewhere, tmp_path):
    """Runs the example in two processes of `torchrun` or of `accelerate launch`, and returns what they wrote."""

    def run(launcher: str, *words, **environment) -> str:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        values = {"words": [str(word) for word in words], "root": ROOT, "environment": environment, "limit": LIMIT}
        names = elsewhere(LAUNCH, folder, launcher=launcher, **values)["answer"]
        assert names == ["output-0", "output-1"]
        return "".join((folder / name).read_text() for name in names)

    return run


@pytest.fixture
def torchrun(launch):
    """Two processes on a free port, on CPUs."""
    run = ["--standalone", "--nproc_per_node", 2, EXAMPLE, "--use_cpu", True, "--per_device_train_batch_size", 32]
    return lambda *words: launch("torchrun", *run, *words)


@pytest.fixture
def accelerate(launch):
    run = ["--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    run += [EXAMPLE, "--per_device_train_batch_size", 32]
    return lambda *words: launch("accelerate", *run, *words, ACCELERATE_USE_CPU="true")


@pytest.fixture
def examples(two_forks):
    """Runs the example in two processes, as `torchrun` does."""
    code = f"sys.argv = [{str(EXAMPLE)!r}, *words]\nrunpy.run_path({str(EXAMPLE)!r}, run_name='__main__')"
    return lambda *words: two_forks(code, "--use_cpu", True, "--per_device_train_batch_size", 32, *words)


def masks(output):
    """What is being trained, at each checkpoint."""
    return {path.parent.name: load_file(path) for path in sorted(Path(output).glob("checkpoint-*/mask.safetensors"))}


def check_same(output, other):
    """The masks in training up to rounding, and the erased models in every bit of their projections."""
    ours, others = masks(output), masks(other)
    assert ours.keys() == others.keys() != set()
    for name, tensors in others.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(ours[name][key], tensor, atol=1e-6, rtol=0)
        assert not torch.equal(tensors["mask.0"], torch.ones(128, 128))
    ours, others = (ESCModel.from_pretrained(path) for path in (output, other))
    for name, tensor in others.projections.state_dict().items():
        assert torch.equal(ours.projections.state_dict()[name], tensor), name
    records = [{**model.config.erasures[-1], "date": None, "record_sha256": None} for model in (ours, others)]
    assert records[0] == records[1]
    assert records[0]["steps"] > 10
    return records[0]


# Laws, without processes.


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_the_shares_of_a_batch_are_the_batch_of_one_process(rows, size, processes, epoch):
    features = ForgetFeatures(torch.zeros(rows, dtype=torch.long), torch.arange(rows)[:, None].float(), 1)

    def drawn(size, index, processes):
        loader = SharesLoader(features, size, index, processes, seed=3)
        loader.set_epoch(epoch)
        return [batch["features"].flatten().tolist() for batch in loader]

    shares = [drawn(size, index, processes) for index in range(processes)]
    together = [sorted(chain(*parts)) for parts in zip(*shares, strict=True)]  # equally many for each
    assert together == [sorted(batch) for batch in drawn(size * processes, 0, 1)]
    assert sorted(chain(*together)) == list(range(rows))  # each image once
    assert max(map(len, shares[0]), default=0) <= size


# Real processes.


@slow
def test_torchrun_where_shares_are_empty_and_a_run_that_goes_on(folder, torchrun, examples, tmp_path):
    """129 images: the last batch of an epoch has one image for two processes, and the features come in one batch."""
    data = folder(129)
    one_process(data, tmp_path / "one", epochs=50, feature_batch_size=256)
    words = ["--feature_batch_size", 256]
    torchrun(*arguments(data, tmp_path / "two", 50), *words)
    record = check_same(tmp_path / "two", tmp_path / "one")
    assert (record["num_images"], record["batch_size"], record["max_steps"]) == (129, 64, 150)

    # Cut off after five steps, two processes go on to the same mask.
    shutil.copytree(tmp_path / "two" / "checkpoint-5", tmp_path / "again" / "checkpoint-5")
    resumed = arguments(data, tmp_path / "again", 50, resume_from_checkpoint=tmp_path / "again" / "checkpoint-5")
    codes, errors = examples(*resumed, *words)
    assert codes == [0, 0], errors[0][-3000:]
    check_same(tmp_path / "again", tmp_path / "one")


@slow
def test_accelerate_launch_with_an_odd_number_of_images(folder, accelerate, tmp_path):
    """
    131 images: five batches of features for two processes, and a last batch of two images and one. In plain gradient
    descent, for which the size of the gradient matters; in larger steps than these, the last ones amplify the rounding
    of a sum in another order, in one process as in two.
    """
    data = folder(131)
    one_process(data, tmp_path / "one", epochs=50, learning_rate=1)
    output = accelerate(*arguments(data, tmp_path / "two", 50), "--learning_rate", 1)
    record = check_same(tmp_path / "two", tmp_path / "one")
    assert (record["num_images"], record["batch_size"], record["max_steps"]) == (131, 64, 150)
    assert f"{record['steps']} steps; " in output


@slow
def test_an_image_that_one_process_cannot_read_ends_both_with_an_error(folder, examples, tmp_path):
    """Image 40 is in the second batch, and so in the part of the second process."""

    def damaged(images):
        images = images.cast_column("image", datasets.Image(decode=False))
        images = images.map(
            lambda row, i: {"image": row["image"] | ({"bytes": b"no image"} if i == 40 else {})}, with_indices=True
        )
        return images.cast_column("image", datasets.Image())

    codes, errors = examples(*arguments(folder(70, damaged), tmp_path / "out", 50))
    assert 0 not in codes
    for text in errors:
        assert "ImageError: Image 40 " in text, text[-3000:]
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("words", [[], ["--bf16", True]], ids=["float32", "bfloat16"])
def test_on_a_gpu_it_is_the_mask_of_the_cpu(folder, fashion, words, tmp_path):
    data = folder(200)
    here = one_process(data, tmp_path / "cpu", epochs=20)
    there = ["--per_device_train_batch_size", 64, *arguments(data, tmp_path / "gpu", 20), *words]
    code, output = finish([sys.executable, EXAMPLE, *there])
    assert code == 0, output[-3000:]
    erased = load_classifier(tmp_path / "gpu", device="cpu")
    cut, other = (model.projections[0].factors[0].mask == 0 for model in (erased, here))
    assert (cut & other).sum() > 0.7 * (cut | other).sum()  # nearly all entries are 1 in both
    assert erased.config.erasures[-1]["stopped"] == "forgotten"
    rows = fashion.select(fashion.test, [TROUSER])
    with torch.no_grad():
        for batch in image_batches(rows, load_processor(erased), image_column="image", batch_size=200):
            assert (erased(**batch).logits.argmax(dim=1) == TROUSER).float().mean() < 0.1


@slow
def test_unlearning_trainers_of_two_processes_leave_the_weights_of_one(two_forks, tmp_path):
    """
    Steps are divided, and weights stay the same on both. That of an odd number of images repeats one, so there is none
    here.
    """
    code = "from tests.unlearning_process import train\ntrain(words[0], words[1:])"
    codes, errors = two_forks(code, tmp_path, *PROCESSES)
    assert codes == [0, 0], errors[0][-3000:]
    for method in PROCESSES:
        one, other = (load_file(tmp_path / f"{method}-{rank}") for rank in (0, 1))
        assert one["steps"] == other["steps"]
        if PROCESSES[method].get("batch_norm") == "train":
            assert 3 < one["steps"] < 90  # both have stopped, and at once
            continue
        alone = unlearn(method, 1)
        for name, value in alone.items():
            assert torch.equal(one[name], other[name]), (method, name)
            if value.is_floating_point():
                torch.testing.assert_close(one[name], value, rtol=1e-4, atol=1e-5)


COMMAND = """
from hf_esc.cli import main
sys.argv = ["hf-esc", *words]
try:
    main()
except SystemExit as end:
    os._exit(end.code)
"""


@slow
def test_a_command_in_two_processes_writes_once_and_ends_both_alike(folder, two_forks, tmp_path):
    """A training of `erase`, which the first process does alone, and one of `train`, which both divide."""
    common = ["--forget", "Trouser", "--method", "delete", "--num_train_epochs", 1]  # which forgets too little
    data = folder(64)
    erase = ["embedded/resnet", "--dataset", data, "--output", tmp_path / "one", "--no-evaluate", "--device", "cpu"]
    train = ["--model", "embedded/resnet", "--dataset", data, "--output_dir", tmp_path / "two", "--use_cpu", True]
    train += ["--evaluate", False, "--save_strategy", "no", "--per_device_train_batch_size", 16]
    codes, errors = two_forks(COMMAND, "erase", *erase, *common, "--per_device_train_batch_size", 32)
    assert codes == [3, 3], errors
    assert "2 processes were started. The first does the work" in errors[0]
    assert errors[1] == "Waiting for the other process.\n"
    codes, errors = two_forks(COMMAND, "train", *train, *common)
    assert codes == [3, 3], errors
    assert not list(tmp_path.glob(".*"))  # nothing unfinished
    records = [load_classifier(tmp_path / name, device="cpu").config.erasures[-1] for name in ("one", "two")]
    told = [[record[name] for name in ("steps", "batch_size", "processes")] for record in records]
    assert told == [[2, 32, 1], [2, 32, 2]]
