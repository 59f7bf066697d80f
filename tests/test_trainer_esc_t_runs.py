"""ESC-T as a run of the Trainer: logs, evaluations, checkpoints without pickle, resuming, pushing."""

import json
import pickle
import signal
import warnings
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import HfArgumentParser, TrainerCallback

from hf_esc import ESCModel, ESCTTrainingArguments
from hf_esc.errors import IncompleteErasureWarning, ModelError

from .esc_t import BAG, OF_A_RUN, TROUSER, Watch, factor, made, record, right, rows, soft, trained

KEEP_ALL = {"save_strategy": "steps", "save_total_limit": None}
ADAM = {"optim": "adamw_torch", "learning_rate": 0.02, "lr_scheduler_type": "cosine"}
CHECKPOINT = ["mask.safetensors", "optimizer.safetensors", "rng_state_0.safetensors", "trainer_state.json"]


@pytest.fixture(scope="module")
def few(resnet, fashion):
    """The features of 200 images of a class, as a batch."""
    return rows(made(resnet, fashion.select(fashion.train, [TROUSER]).select(range(200))).train_dataset)


@pytest.fixture(scope="module")
def run(resnet, few, tmp_path_factory):
    """A run to its end, with a checkpoint after each tenth step."""
    return trained(resnet, [few], output_dir=str(tmp_path_factory.mktemp("run")), save_steps=10, **KEEP_ALL)


def last_step(folder) -> Path:
    return max(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


# Checkpoints.


def test_a_checkpoint_holds_no_pickle(run):
    checkpoints = sorted(Path(run.args.output_dir).iterdir())
    assert [path.name for path in checkpoints] == ["checkpoint-10", "checkpoint-20"]
    for checkpoint in checkpoints:
        assert sorted(path.name for path in checkpoint.iterdir()) == CHECKPOINT
        for path in checkpoint.iterdir():
            start = path.read_bytes()[8:9] if path.suffix == ".safetensors" else path.read_bytes()[:1]
            assert start == b"{"  # the header of safetensors is JSON


class _Bomb:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_what_lies_beside_a_checkpoint_is_not_unpickled(resnet, few, run, tmp_path):
    folder = tmp_path / "checkpoint-10"
    folder.mkdir()
    for path in Path(run.args.output_dir, "checkpoint-10").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    names = ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth", "training_args.bin"]
    for name in [*names, "pytorch_model.bin", "optimizer.bin"]:
        (folder / name).write_bytes(pickle.dumps(_Bomb(tmp_path / "exploded")))
    assert torch.equal(soft(trained(resnet, [few], resume=str(folder))), soft(run))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "settings", [{"optim_args": "momentum=0.9"}, ADAM, {"gradient_accumulation_steps": 3}], ids=str
)
def test_a_resumed_run_comes_to_the_very_same_mask(resnet, few, settings, tmp_path):
    settings = {"per_device_train_batch_size": 32} | settings
    whole = trained(resnet, [few], output_dir=str(tmp_path), save_steps=4, **KEEP_ALL, **settings)
    resumed = trained(resnet, [few], resume=str(tmp_path / "checkpoint-4"), **settings)
    assert 4 < record(whole)["steps"] != 8
    assert torch.equal(soft(resumed), soft(whole))
    assert {**record(resumed), **OF_A_RUN} == {**record(whole), **OF_A_RUN}


KILLED = """
import signal
sys.path.insert(0, root)

def train():
    from transformers import TrainerCallback
    from hf_esc.data import load_images
    from hf_esc.loading import load_classifier
    from tests.esc_t import TROUSER, made

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 17:
                os.kill(os.getpid(), signal.SIGKILL)

    fashion = load_images("embedded")
    forget = fashion.select(fashion.train, [TROUSER]).select(range(200))
    settings = {"output_dir": output, "save_strategy": "steps", "save_steps": 5, "save_total_limit": None}
    made(load_classifier("embedded/resnet", device="cpu"), forget, callbacks=[Kill()], **settings).train()

if (child := os.fork()) == 0:
    try:
        train()
    finally:
        os._exit(1)
answer = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def test_a_run_that_was_killed_goes_on_to_the_very_same_mask(resnet, few, run, elsewhere, tmp_path):
    killed = elsewhere(KILLED, root=Path(__file__).parents[1], output=tmp_path)
    assert killed["answer"] == -signal.SIGKILL
    assert last_step(tmp_path).name == "checkpoint-15"
    resumed = trained(resnet, [few], output_dir=str(tmp_path), resume=True)
    assert torch.equal(soft(resumed), soft(run))
    assert record(resumed)["steps"] == record(run)["steps"] > 17


@pytest.mark.parametrize("settings", [{}, {"optim_args": "momentum=0.9"}, ADAM], ids=str)
def test_a_finished_run_that_is_resumed_takes_nothing_more_away(resnet, few, settings, tmp_path):
    whole = trained(resnet, [few], output_dir=str(tmp_path), save_steps=1, **KEEP_ALL, **settings)
    resumed = trained(resnet, [few], resume=str(last_step(tmp_path)), **settings)
    assert torch.equal(soft(resumed), soft(whole))
    assert torch.equal(factor(resumed).mask, factor(whole).mask)


def test_nothing_is_saved_before_anything_is_erased(resnet, few, tmp_path):
    trainer = made(resnet, [few], output_dir=str(tmp_path))
    with pytest.raises(ModelError, match=r"Nothing is erased yet, .* `train\(\)` has to end first"):
        trainer.save_model()
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_what_is_saved_is_the_erased_model(run, few, fashion, tmp_path):
    run.save_model(tmp_path / "erased")
    names = {path.name for path in (tmp_path / "erased").iterdir()}
    assert {"config.json", "model.safetensors", "modeling_esc.py", "preprocessor_config.json"} <= names
    assert not [name for name in names if Path(name).suffix not in (".json", ".safetensors", ".py")]
    loaded = ESCModel.from_pretrained(tmp_path / "erased")
    assert torch.equal(loaded.projections[0].factors[0].mask, factor(run).mask)
    assert loaded.config.erasures == [record(run)]
    picture = run.erased_model.image_processor(images=[fashion.test[0]["image"].convert("RGB")], return_tensors="pt")
    torch.testing.assert_close(loaded(**picture).logits, run.erased_model(**picture).logits, rtol=1e-5, atol=1e-5)


# Logs and evaluations.


def test_what_is_logged_is_what_happened(resnet, few):
    watch, seen = Watch(few), []

    class Report(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append(dict(logs))

    settings = {"logging_strategy": "steps", "logging_steps": 1, "per_device_train_batch_size": 200}
    trainer = trained(resnet, [few], callbacks=[watch, Report()], **settings)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == len(watch.masks) == record(trainer)["steps"]
    # The loss and what is right are of the mask before the step, the share of cut entries of the one after it.
    right = [record(trainer)["right_before"], *(binarised / 200 for _, binarised in watch.right)]
    for number, (entry, mask) in enumerate(zip(logs, watch.masks, strict=True)):
        assert entry["step"] == number + 1
        assert entry["forget_right"] == pytest.approx(right[number])
        assert entry["mask_cut"] == pytest.approx((mask <= 0.7).float().mean().item())
    logits = trainer.model.logits(few["features"])
    there = logits.argmax(1) == few["labels"]
    entropy = functional.cross_entropy(logits[there], few["labels"][there]).item()
    assert logs[0]["loss"] == pytest.approx(-entropy, rel=1e-3)
    assert logs[-1]["loss"] < 10 * logs[0]["loss"] < 0
    assert [entry["mask_cut"] for entry in seen if "loss" in entry] == [entry["mask_cut"] for entry in logs]


def test_the_logged_loss_does_not_depend_on_how_a_batch_is_accumulated(resnet, few):
    losses = [
        trained(
            resnet,
            [few],
            logging_strategy="steps",
            logging_steps=1,
            per_device_train_batch_size=200 // parts,
            gradient_accumulation_steps=parts,
        ).state.log_history[0]["loss"]
        for parts in (1, 4)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_evaluation_is_of_the_mask_as_it_will_be_used(resnet, few, fashion):
    test = fashion.select(fashion.test, [TROUSER, BAG])
    single = trained(resnet, [few], eval_dataset=test)
    assert single.evaluate()["eval_accuracy"] == pytest.approx(right(single.erased_model, test))
    # Before anything is cut, at a threshold that nothing has reached.
    before = made(resnet, [few], eval_dataset=test)
    assert before.evaluate()["eval_accuracy"] > 95


def test_several_data_sets_are_evaluated_by_name_during_the_run(resnet, few, fashion):
    splits = {"forget": [few], "retain": fashion.select(fashion.test, [BAG])}
    settings = {"eval_strategy": "steps", "eval_steps": 5, "tau": 0.05, "feature_cache": "disk"}
    watch = Watch(few)
    trainer = trained(resnet, [few], eval_dataset=splits, callbacks=[watch], **settings)
    forget = [entry for entry in trainer.state.log_history if "eval_forget_accuracy" in entry]
    assert len(forget) > 3
    for entry in forget:
        assert entry["eval_forget_accuracy"] == pytest.approx(watch.right[entry["step"] - 1][1] / 2)
    assert trainer.evaluate()["eval_forget_accuracy"] == 0
    assert trainer.evaluate()["eval_retain_accuracy"] > 90


def test_the_best_mask_can_be_taken_at_the_end(resnet, few, tmp_path):
    count = iter(range(100))
    settings = {"eval_strategy": "steps", "eval_steps": 5, "save_steps": 5, "load_best_model_at_end": True}
    settings |= {"metric_for_best_model": "order", "greater_is_better": False}
    watch = Watch()
    trainer = trained(
        resnet,
        [few],
        output_dir=str(tmp_path),
        eval_dataset=[few],
        callbacks=[watch],
        compute_metrics=lambda _: {"order": next(count) if watch.masks[-1].min() < 0.7 else 100},
        **KEEP_ALL,
        **settings,
    )
    best = int(trainer.state.best_model_checkpoint.split("-")[-1])
    assert best < len(watch.masks)
    assert torch.equal(soft(trainer), watch.masks[best - 1])
    assert torch.equal(factor(trainer).mask.bool(), watch.masks[best - 1] > 0.7)


# Arguments and the Hub.


def test_the_arguments_are_parsed_from_a_command_line(tmp_path):
    def parsed(line):
        [args] = HfArgumentParser(ESCTTrainingArguments).parse_args_into_dataclasses(line.split())
        return args

    given = parsed(
        f"--output_dir {tmp_path} --tau 0.8 --threshold False --learning_rate 1.0 --clip no --tolerance 0.01 "
        "--loss_normalization batch --feature_cache disk --max_steps 7"
    )
    assert (given.tau, given.threshold, given.learning_rate, given.clip, given.tolerance) == (
        0.8,
        False,
        1,
        False,
        0.01,
    )
    assert (given.loss_normalization, given.feature_cache, given.max_steps) == ("batch", "disk", 7)
    default = parsed(f"--output_dir {tmp_path}")
    assert (default.tau, default.threshold, default.learning_rate, default.clip, default.tolerance) == (
        (0.7, True, None, True, 0)
    )
    assert (default.num_train_epochs, default.per_device_train_batch_size, default.max_grad_norm) == (50, 64, 0)
    assert (default.optim, default.lr_scheduler_type, default.weight_decay) == ("sgd", "constant", 0)
    assert json.loads(given.to_json_string())["learning_rate"] == 1


PUSH = """
from hf_esc.data import load_images
from tests.esc_t import TROUSER, made

fashion = load_images("embedded")
forget = fashion.select(fashion.train, [TROUSER]).select(range(100))
settings = {"output_dir": output, "push_to_hub": True, "hub_model_id": repo_id, "save_strategy": "steps"}
trainer = made(hf_esc.loading.load_classifier("embedded/resnet", device="cpu"), forget, save_steps=5, **settings)
trainer.train()
trainer.push_to_hub(commit_message="erased")
loaded = AutoModelForImageClassification.from_pretrained(repo_id)
assert isinstance(loaded, ESCModel)
state = trainer.erased_model.state_dict()
assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
"""


TRAIN = """
import sys
sys.path.insert(0, root)
import hf_esc.loading
from hf_esc.data import load_images
from tests.esc_t import TROUSER, made

fashion = load_images("embedded")
forget = fashion.select(fashion.train, [TROUSER]).select(range(100))
trainer = made(hf_esc.loading.load_classifier("embedded/resnet", device="cpu"), forget, output_dir=output)
trainer.train()
answer = ["hf_esc.hub.card" in sys.modules]
trainer.create_model_card()
answer.append("hf_esc.hub.card" in sys.modules)
"""


def test_the_files_of_the_card_are_imported_when_it_is_written(elsewhere, tmp_path):
    root = Path(__file__).parents[1]
    assert elsewhere(TRAIN, tmp_path, root=root, output=tmp_path / "output")["answer"] == [False, True]


def test_what_is_pushed_is_the_erased_model_and_its_card(hub, client, tmp_path):
    client(PUSH, output=tmp_path / "output", repo_id="me/erased-by-esc-t")
    files = hub.repo("me/erased-by-esc-t").files
    assert {"model.safetensors", "config.json", "README.md", "preprocessor_config.json", "modeling_esc.py"} <= set(
        files
    )
    kinds = {Path(name).suffix for name in files if name != ".gitattributes"}
    assert kinds == {".safetensors", ".json", ".md", ".py"}
    assert not [name for name in files if "checkpoint" in name or "mask" in name]
    card = files["README.md"].decode()
    assert "machine-unlearning" in card
    assert "Trouser" in card
    assert str(tmp_path) not in card + files["config.json"].decode()


def test_a_second_run_of_one_trainer_is_the_first_again(resnet, few):
    trainer = trained(resnet, [few], num_train_epochs=5)
    mask, steps = soft(trainer), trainer.erased_model.config.erasures[0]["steps"]
    before = {name: value.clone() for name, value in trainer.erased_model.state_dict().items()}
    first = trainer.erased_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IncompleteErasureWarning)
        trainer.train()
    assert torch.equal(soft(trainer), mask)
    assert trainer.erased_model.config.erasures[0]["steps"] == steps
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_images_can_be_evaluated_after_the_training(resnet, few, fashion):
    """And features where images were forgotten; the ledger says which the forget set was."""
    trainer = trained(resnet, [few], num_train_epochs=50)
    kept = fashion.select(fashion.test, [TROUSER], keep=False).select(range(64))
    assert trainer.evaluate(kept)["eval_accuracy"] > 80
    assert trainer.evaluate(fashion.select(fashion.test, [TROUSER]).select(range(64)))["eval_accuracy"] < 10
    assert record(trainer)["features"] == "given"
    pictures = fashion.select(fashion.train, [TROUSER]).select(range(100))
    assert record(trained(resnet, pictures, eval_dataset=[few], num_train_epochs=30))["features"] == "images"
