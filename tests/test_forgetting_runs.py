"""A run that goes on: from which checkpoint, and with which settings, all of which the ledger tells."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from hf_esc import ESCTTrainingArguments
from hf_esc.errors import CheckpointError, OptionError
from hf_esc.training.checkpoints import last_checkpoint, refuse_another_run
from hf_esc.training.forgetting_args import ForgettingArguments
from hf_esc.training.settings import DECIDING
from hf_esc.unlearning import DELETEArguments

from .forgetting import made, quietly_trained, state
from .unlearning import retain_set, same, trained

BOTH = ["esc-t", "delete"]
RUN = {"per_device_train_batch_size": 8, "num_train_epochs": 4}
KEPT = RUN | {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}


# Checkpoints

# What a kill leaves of a checkpoint, by the file that was being written: how much of it is there, None if none.
CUT_OFF = {
    "the weights": ("mask.safetensors", "model.safetensors", 0.5),
    "the optimizer": ("optimizer.safetensors", "optimizer.safetensors", 0.9),
    "the last file": ("trainer_state.json", "trainer_state.json", 0.5),
    "before the last file": ("trainer_state.json", "trainer_state.json", None),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each method, and the folder with its second and fourth checkpoint."""
    found = {}
    for method in BOTH:
        folder = tmp_path_factory.mktemp(method)
        trainer = quietly_trained(made(method, output_dir=str(folder), **KEPT))
        for checkpoint in folder.glob("checkpoint-*"):
            if checkpoint.name not in ("checkpoint-2", "checkpoint-4"):
                shutil.rmtree(checkpoint)
        found[method] = trainer, folder
    return found


@pytest.mark.parametrize("what", CUT_OFF)
@pytest.mark.parametrize("method", BOTH)
def test_a_run_goes_on_from_the_newest_checkpoint_that_is_whole(method, what, tmp_path, runs):
    whole, folder = runs[method]
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    mask, model, share = CUT_OFF[what]
    file = tmp_path / "checkpoint-4" / (mask if method == "esc-t" else model)
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    again = made(method, output_dir=str(tmp_path), **KEPT)
    with pytest.raises(CheckpointError, match=re.escape(file.name)):
        again.train(str(file.parent))
    skipped = rf"goes on from .*checkpoint-2\. .* not whole: checkpoint-4 \(.*{re.escape(file.name)}"
    with pytest.warns(UserWarning, match=skipped):
        quietly_trained(again, True)
    assert same(state(again), state(whole))


def test_where_no_checkpoint_is_whole_each_is_said_to_lack_something(tmp_path):
    for step in (5, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text("{")
    (tmp_path / "checkpoint-best").mkdir()
    with pytest.raises(CheckpointError, match=r"none is whole: checkpoint-20 \(trainer_state.json .* checkpoint-5 \("):
        last_checkpoint(tmp_path)
    (tmp_path / "checkpoint-5" / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-5" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1"}}')
    with pytest.raises(CheckpointError, match=r"checkpoint-5 \(it has no part-1\)"):
        last_checkpoint(tmp_path)


def test_every_difference_between_two_runs_is_named():
    stored, own = {"tau": 0.7, "seed": 1, "gone": 2, "pair": [1, 2]}, {"tau": 0.8, "seed": 1, "new": 3, "pair": (1, 2)}
    with pytest.raises(CheckpointError) as raised:
        refuse_another_run(Path("checkpoint-5"), stored, own)
    assert "checkpoint-5 is of another run: tau was 0.7 and is 0.8, " in str(raised.value)
    assert "new was None and is 3" in str(raised.value)
    assert "gone was 2 and is None" in str(raised.value)
    assert "seed" not in str(raised.value)
    assert "pair" not in str(raised.value)
    refuse_another_run(Path("checkpoint-5"), {"pair": [1, 2]}, {"pair": (1, 2)})


# Other settings


# What does not change a result, by the name of the argument: how a run is logged, saved, evaluated, pushed or sped up.
_BESIDE = """
    output_dir use_cpu full_determinism activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
    gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode liger_kernel_config use_cache
    torch_empty_cache_steps average_tokens_across_devices logging_strategy logging_steps logging_first_step
    log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
    eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches
    eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy
    save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
    hub_model_id hub_strategy hub_always_push hub_revision restore_callback_states_from_checkpoint accelerator_config
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order remove_unused_columns label_names length_column_name
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_static_graph ddp_backend ddp_timeout fsdp_config debug
    skip_memory_metrics do_train do_eval do_predict resume_from_checkpoint local_rank
"""
# What the list says in other words: the optimizer with its settings, and the images of a step.
OTHERWISE = ["optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "per_device_train_batch_size"]
OTHERWISE += ["gradient_accumulation_steps"]


def test_every_argument_of_transformers_is_told_refused_or_changes_no_result():
    """One that a later release adds is looked at here before it can change a run in silence."""
    kinds = [set(DECIDING), set(ForgettingArguments.refused), set(_BESIDE.split()), set(OTHERWISE)]
    assert sum(map(len, kinds)) == len(set().union(*kinds))
    assert set(TrainingArguments.__dataclass_fields__) <= set().union(*kinds)


CHANGES = {
    "lr_scheduler_type": ("cosine", "'constant' and is 'cosine'"),
    "lr_scheduler_kwargs": ({"x": 1}, "None and is {'x': 1}"),
    "warmup_steps": (3, "0 and is 3"),
    "weight_decay": (0.1, "0.0 and is 0.1"),
    "max_grad_norm": (0.5, r"[\d.]+ and is 0.5"),
    "bf16": (True, "False and is True"),
    "seed": (1, "42 and is 1"),
    "data_seed": (1, "None and is 1"),
    "optim": ("adamw_torch", "'sgd' and is 'adamw_torch'"),
    "optim_args": ("momentum=0.5", r"\S+ and is 'momentum=0.5'"),
    "scenario": ("images", "'classes' and is 'images'"),
    "per_device_train_batch_size": (4, "8 and is 4"),
    "gradient_accumulation_steps": (2, "1 and is 2"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("method", BOTH)
def test_a_run_does_not_go_on_with_another_setting(method, name, runs):
    value, message = CHANGES[name]
    told = "batch_size" if name == "per_device_train_batch_size" else name
    if method == "esc-t" and name == "data_seed":
        told, message = "seed", "42 and is 1"
    # As many images in a step, divided otherwise: that makes no other mask.
    more = {"per_device_train_batch_size": 4} if name == "gradient_accumulation_steps" else {}
    if method == "esc-t" and more:
        return
    checkpoint = runs[method][1] / "checkpoint-4"
    with pytest.raises(CheckpointError, match=rf"of another run: .*{told} was {message}"):
        made(method, **RUN | more | {name: value}).train(str(checkpoint))


@pytest.mark.parametrize("method", BOTH)
def test_settings_of_another_optimizer_are_other_settings(method):
    adam = {"optim": "adamw_torch", "learning_rate": 0.01}
    told = [
        made(method, **adam, **more).settings() for more in ({}, {"adam_beta2": 0.9}, {"optim_args": "momentum=0.9"})
    ]
    assert [found["optim"] for found in told] == ["adamw_torch"] * 3
    assert told[0]["optim_args"] == told[2]["optim_args"] == "betas=(0.9, 0.999),eps=1e-08"  # it has no momentum
    assert told[1]["optim_args"] == "betas=(0.9, 0.9),eps=1e-08"


@pytest.mark.parametrize("method", BOTH)
def test_the_ledger_says_what_trained(method):
    given = {"optim": "adamw_torch", "learning_rate": 0.5, "warmup_steps": 1, "bf16": True, "max_steps": 9}
    trainer = quietly_trained(made(method, per_device_train_batch_size=8, lr_scheduler_type="linear", **given))
    record = trainer.result.config.erasures[-1]
    expected = given | {"lr_scheduler_type": "linear", "optim_args": "betas=(0.9, 0.999),eps=1e-08"}
    expected |= {"num_train_epochs": None, "weight_decay": 0.0, "max_grad_norm": trainer.args.max_grad_norm}
    assert record | expected == record
    assert 0 < record["steps"] <= record["max_steps"] == 9
    assert json.loads(json.dumps(record)) == record


@pytest.mark.parametrize(
    ("method", "steps", "data"),
    [
        ("scrub", 3, "forget"),
        ("scrub", 4, "both"),
        ("finetune", 1, "retain"),
        ("salun", 2, "both"),
    ],
)
def test_images_that_no_step_took_are_not_said_to_be_trained_on(method, steps, data):
    record = trained(method, max_steps=steps, learning_rate=1e-4).result.config.erasures[-1]
    assert record["data"] == {"both": "forget + retain"}.get(data, data)
    assert record.get("num_retain_images") == (None if data == "forget" else 48)


@pytest.mark.parametrize("method", BOTH)
def test_more_time_is_given_to_a_mask_alone_and_where_no_schedule_depends_on_it(method, runs):
    checkpoint = str(runs[method][1] / "checkpoint-4")
    longer = RUN | {"num_train_epochs": 5}
    if method == "esc-t":
        assert quietly_trained(made(method, **longer), checkpoint).result is not None
        assert made(method, lr_scheduler_type="linear").may_change == {"tolerance"}
    else:
        with pytest.raises(CheckpointError, match="num_train_epochs was 4 and is 5"):
            made(method, **longer).train(checkpoint)


@pytest.mark.parametrize("kind", [ESCTTrainingArguments, DELETEArguments])
@pytest.mark.parametrize(
    "given",
    [
        {"dataloader_drop_last": True},
        {"train_sampling_strategy": "sequential"},
        {"ignore_data_skip": True},
        {"auto_find_batch_size": True},
        {"accelerator_config": {"split_batches": True}},
        {"accelerator_config": {"dispatch_batches": True}},
        {"accelerator_config": {"use_seedable_sampler": False}},
        {"per_device_train_batch_size": 0},
        {"per_device_eval_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"dataloader_num_workers": -1},
        {"max_steps": 0},
    ],
    ids=str,
)
def test_what_a_run_would_ignore_or_fail_on_is_refused(kind, given):
    [name] = given
    with pytest.raises(OptionError, match=f"`{name}"):
        kind("x", use_cpu=True, **given)
    kind("x", use_cpu=True, accelerator_config={"split_batches": False, "dispatch_batches": False})


@pytest.mark.parametrize("method", BOTH)
def test_what_is_set_on_a_trainer_by_hand_is_refused(method):
    trainer = made(method, **RUN)
    if method != "esc-t":  # which reads it
        trainer.train_dataset, given = retain_set(), trainer.train_dataset
        with pytest.raises(OptionError, match=r"`trainer.train_dataset` was set, .* `forget_set`"):
            trainer.train()
        trainer.train_dataset = given
    for name, instead in (("optimizer", "optimizer_cls_and_kwargs"), ("lr_scheduler", "args.lr_scheduler_type")):
        setattr(trainer, name, torch.optim.SGD(trainer.model.parameters(), lr=1.0))
        with pytest.raises(OptionError, match=f"`trainer.{name}` was set, .* `{instead}`"):
            trainer.train()
        setattr(trainer, name, None)
    first = state(quietly_trained(trainer))
    first = {key: value.clone() for key, value in first.items()}
    assert same(state(quietly_trained(trainer)), first)  # those of an earlier run are its own
