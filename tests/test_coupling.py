"""
Names of other libraries that hf_esc relies on and that their documentation does not promise.

The tables say each once, with the parameters that hf_esc gives or takes. A release that drops one, or gives it another
signature, fails here and names it. What is in no table is found by the last three tests.
"""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest

import hf_esc

ROOT = Path(__file__).parents[1]
FOLDERS = ("hf_esc", "metrics", "examples", "benchmarks", "docs/_build")
LIBRARIES = ("accelerate", "datasets", "evaluate", "huggingface_hub", "peft", "timm", "transformers", "typer")

# Functions and methods with their parameters, `self` left out. Those after `*` are given by their names.
CALLED = {
    "accelerate.utils.align_module_device": "module execution_device",
    "datasets.IterableDataset._resolve_features": "",
    "datasets.arrow_writer.ArrowWriter": "* features path writer_batch_size",
    "datasets.arrow_writer.ArrowWriter.finalize": "",
    "datasets.arrow_writer.ArrowWriter.write_batch": "batch_examples",
    "evaluate.Metric._compute": "* predictions references",
    "evaluate.Metric._info": "",
    "evaluate.Metric._init_writer": "",
    "evaluate.Metric.add_batch": "* predictions references",
    "evaluate.loading.evaluation_module_factory": "path module_type",
    "evaluate.utils.file_utils.add_start_docstrings": "",
    "huggingface_hub.file_download.repo_folder_name": "* repo_id repo_type",
    "torch.nn.Module._apply": "fn recurse",
    "torch.nn.Module._load_from_state_dict": (
        "state_dict prefix local_metadata strict missing_keys unexpected_keys error_msgs"
    ),
    "transformers.HfArgumentParser.error": "message",
    "transformers.PreTrainedModel._from_config": "config",
    "transformers.PreTrainedModel._init_weights": "module",
    "transformers.Trainer._get_collator_with_removed_columns": "data_collator description",
    "transformers.Trainer._get_output_dir": "trial",
    "transformers.Trainer._init_training_state": (
        "max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial"
    ),
    "transformers.Trainer._load_best_model": "",
    "transformers.Trainer._load_from_checkpoint": "resume_from_checkpoint model",
    "transformers.Trainer._load_optimizer_and_scheduler": "checkpoint",
    "transformers.Trainer._load_rng_state": "checkpoint",
    "transformers.Trainer._load_scaler": "checkpoint",
    "transformers.Trainer._prepare_for_training": "max_steps train_dataloader resume_from_checkpoint",
    "transformers.Trainer._prepare_inputs": "inputs",
    "transformers.Trainer._run_epoch": (
        "model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial ignore_keys_for_eval start_time "
        "resume_from_checkpoint epochs_trained steps_trained_in_current_epoch"
    ),
    "transformers.Trainer._save": "output_dir state_dict",
    "transformers.Trainer._save_checkpoint": "model trial",
    "transformers.Trainer._save_optimizer_and_scheduler": "output_dir",
    "transformers.Trainer._save_rng_state": "output_dir",
    "transformers.Trainer._save_scaler": "output_dir",
    "transformers.Trainer.create_model_card": "language license tags model_name",
    "transformers.Trainer.evaluation_loop": (
        "dataloader description prediction_loss_only ignore_keys metric_key_prefix"
    ),
    "transformers.Trainer.get_batch_samples": "epoch_iterator num_batches device",
    "transformers.Trainer.set_initial_training_values": "args dataloader",
    "transformers.dynamic_module_utils.custom_object_save": "obj folder config",
    "transformers.dynamic_module_utils.get_relative_import_files": "module_file",
    "transformers.dynamic_module_utils.get_relative_imports": "module_file",
    "typer.core.TyperCommand.parse_args": "ctx args",
    "typer.main.get_command": "typer_instance",
}

# Classes, attributes of classes, and modules.
THERE = (
    "datasets.config.HF_DATASETS_CACHE",
    "datasets.packaged_modules.imagefolder.imagefolder.ImageFolder.EXTENSIONS",
    "evaluate.evaluation_suite.evaluation_module_factory",
    "evaluate.inspect.evaluation_module_factory",
    "huggingface_hub.constants.HF_HUB_CACHE",
    "torch.nn.modules.batchnorm._BatchNorm",
    "torch.nn.modules.conv._ConvNd",
    "transformers.PreTrainedConfig._auto_class",
    "transformers.PreTrainedModel._auto_class",
    "transformers.PreTrainedModel._keep_in_fp32_modules_strict",
    "transformers.PreTrainedModel._no_split_modules",
    "transformers.PreTrainedModel._supports_attention_backend",
    "transformers.PreTrainedModel._supports_flash_attn",
    "transformers.PreTrainedModel._supports_flex_attn",
    "transformers.PreTrainedModel._supports_sdpa",
    "transformers.PreTrainedModel.loss_function",
    "transformers.PreTrainedConfig.sub_configs_defaults",
    "transformers.Trainer.loss_is_scaled_for_ga",
    "transformers.configuration_utils.PretrainedConfig",
    "transformers.configuration_utils.SubConfigSpec",
    "transformers.modeling_outputs.ImageClassifierOutputWithNoAttention",
    "transformers.modeling_utils.PreTrainedModel",
    "transformers.models.auto.configuration_auto.CONFIG_MAPPING",
    "transformers.models.auto.modeling_auto",
    "transformers.trainer_callback.PrinterCallback",
    "transformers.trainer_callback.ProgressCallback",
    "transformers.trainer_utils.HubStrategy",
    "transformers.trainer_utils.TrainOutput",
)

# What an object has once it is made, by the library's class; `made` makes one.
ON_OBJECTS = (
    "accelerate.Accelerator().scaler",
    "datasets.Dataset()._fingerprint",
    "evaluate.Metric().selected_feature_format",
    "evaluate.Metric().writer",
    "evaluate.MetricInfo().format",
    "torch.autograd.Node().next_functions",
    "torch._dynamo.OptimizedModule()._orig_mod",
    "torch.nn.Module()._forward_hooks",
    "torch.nn.Module()._forward_pre_hooks",
    "transformers.HfArgumentParser()._option_string_actions",
    "transformers.PreTrainedConfig()._attn_implementation",
    "transformers.PreTrainedConfig()._name_or_path",
    "transformers.Trainer()._train_batch_size",
    "transformers.Trainer().optimizer_cls_and_kwargs",
    "transformers.TrainerState().best_global_step",
    "transformers.TrainingArguments()._n_gpu",
)

# Names that hf_esc sets and a library reads: its source has them.
READ = (
    "accelerate.Accelerator: _original_forward",
    "transformers.PreTrainedConfig: _commit_hash",
    "transformers.PreTrainedModel: _is_hf_initialized",
    "transformers.PreTrainedModel: loss_type",
    "transformers.Trainer: accepts_loss_kwargs",
)

# Modules whose names their documentation imports from them.
DOCUMENTED_MODULES = {
    "accelerate.utils",
    "datasets.features",
    "huggingface_hub.errors",
    "huggingface_hub.utils",
    "transformers.utils",
    "transformers.utils.logging",
}

# What the documentation of a library tells its users to override.
DOCUMENTED_HOOKS = {
    *("forward", "train", "extra_repr", "get_input_embeddings", "base_model"),
    *("config_class", "base_model_prefix", "main_input_name", "model_type", "supports_gradient_checkpointing"),
    *("from_pretrained", "save_pretrained", "push_to_hub"),
    *("get_train_dataloader", "get_eval_dataloader", "get_test_dataloader"),
    *("create_optimizer", "compute_loss", "prediction_step", "log"),
    *("on_train_begin", "on_step_end", "on_epoch_end", "on_log"),
}


# The tables hold.


@pytest.mark.parametrize("name", CALLED)
def test_a_function_is_there_with_its_parameters(name):
    listed = CALLED[name].removeprefix("*").split()
    parameters = parameters_of(found(name))
    names = [p.name for p in parameters]
    by_name = CALLED[name].startswith("*")
    there = set(listed) <= set(names) if by_name else names[: len(listed)] == listed
    assert there, changed(name, parameters)
    assert all(can_be_left_out(p) for p in parameters if p.name not in listed), changed(name, parameters)


@pytest.mark.parametrize("name", THERE)
def test_a_name_is_there(name):
    found(name)


@pytest.mark.parametrize("name", ON_OBJECTS)
def test_an_object_has_the_attribute(name, tmp_path):
    kind, attribute = name.split("().")
    assert hasattr(made(kind, tmp_path), attribute), f"{name} is gone; {users(attribute)}"


@pytest.mark.parametrize("name", READ)
def test_a_name_is_read(name):
    kind, attribute = name.split(": ")
    sources = [inspect.getsource(part) for part in found(kind).__mro__ if part.__module__.startswith(LIBRARIES)]
    assert any(attribute in source for source in sources), f"{kind} reads no {attribute!r}; {users(attribute)}"


@pytest.mark.parametrize("name", [*CALLED, *THERE, *ON_OBJECTS, *READ])
def test_a_row_is_of_use(name):
    assert users(last_part(name)), f"Nothing in {', '.join(FOLDERS)} names it. Take the row out of the table."


def test_every_override_takes_what_the_library_gives():
    for cls, name, overridden in overrides():
        ours = vars(cls).get(name)
        if not inspect.isfunction(ours) or not inspect.isfunction(overridden) or name == "forward":
            continue
        given = inspect.signature(overridden).parameters.values()
        given = [p for p in given if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        positional = [p.name for p in given if p.default is p.empty]
        keywords = {p.name: p.default for p in given if p.default is not p.empty}
        try:
            inspect.signature(ours).bind_partial(*positional, **keywords)
        except TypeError as error:
            pytest.fail(f"{cls.__module__}.{cls.__name__}.{name} does not take what {overridden} is given: {error}.")


# The tables are complete.


def test_every_override_is_in_a_table():
    for cls, name, _ in overrides():
        if name in DOCUMENTED_HOOKS:
            continue
        rows = [row for row in (*CALLED, *THERE) if row.endswith(f".{name}")]
        of_a_base = any(issubclass(cls, found(row.rpartition(".")[0])) for row in rows)
        assert of_a_base, f"{cls.__module__}.{cls.__name__} overrides {name!r} of a library: put it into a table."


def test_every_private_name_that_is_used_is_in_a_table():
    rows = {last_part(row) for row in (*CALLED, *THERE, *ON_OBJECTS, *READ)}
    own = {name for tree in trees().values() for name in names_made_in(tree)}
    for path, tree in trees().items():
        strange = private_names(tree) - own - rows
        assert not strange, f"{path} uses {sorted(strange)} of a library: put them into a table."


def test_every_undocumented_module_that_is_used_is_in_a_table():
    rows = (*CALLED, *THERE)
    for path, tree in trees().items():
        for name in library_names(tree):
            if module_of(name) in (*LIBRARIES, *DOCUMENTED_MODULES):
                continue
            listed = any(row == name or row.startswith(f"{name}.") for row in rows)
            assert listed, f"{path} uses {name!r}, which is not documented there: put it into a table."


# How names are looked up.


def module_of(name: str) -> str:
    """The module of a dotted name: the longest part of it that can be imported."""
    parts = name.split(".")
    for length in range(len(parts), 1, -1):
        module = ".".join(parts[:length])
        try:
            if importlib.util.find_spec(module) is not None:
                return module
        except ModuleNotFoundError:
            continue
    return parts[0]


def last_part(row: str) -> str:
    return re.split(r"[.: ]+", row)[-1]


def found(name: str):
    """What a dotted name stands for."""
    module = module_of(name)
    thing = importlib.import_module(module)
    for part in name.removeprefix(module).split(".")[1:]:
        assert hasattr(thing, part), f"{name} is gone; {users(last_part(name))}"
        thing = getattr(thing, part)
    return thing


def parameters_of(function) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.name != "self"]


def can_be_left_out(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty or parameter.kind in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def changed(name: str, parameters: list[inspect.Parameter]) -> str:
    return (
        f"{name} takes ({', '.join(map(str, parameters))}), and {CALLED[name]!r} stands in the table; "
        f"{users(last_part(name))}"
    )


def users(name: str) -> str:
    """Which files rely on a name, as the end of a message; empty where none does."""
    files = [path for path, tree in trees().items() if re.search(rf"\b{re.escape(name)}\b", (ROOT / path).read_text())]
    return f"who relies on it: {', '.join(files)}" if files else ""


def made(kind: str, folder: Path):
    """An object of a library's class, as small as it can be."""
    import accelerate
    import datasets
    import evaluate
    import torch
    import transformers

    class Metric(evaluate.Metric):
        def _info(self):
            return evaluate.MetricInfo("", "", datasets.Features({"predictions": datasets.Value("int64")}))

    class Two(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

    arguments = transformers.TrainingArguments(output_dir=str(folder), use_cpu=True)
    makers = {
        "accelerate.Accelerator": lambda: accelerate.Accelerator(cpu=True),
        "datasets.Dataset": lambda: datasets.Dataset.from_dict({"a": [1]}),
        "evaluate.Metric": lambda: Metric(cache_dir=str(folder)),
        "evaluate.MetricInfo": lambda: Metric(cache_dir=str(folder)).info,
        "torch._dynamo.OptimizedModule": lambda: torch.compile(torch.nn.Linear(1, 1), backend="eager"),
        "torch.autograd.Node": lambda: torch.ones(1, requires_grad=True).exp().grad_fn,
        "torch.nn.Module": torch.nn.Module,
        "transformers.HfArgumentParser": lambda: transformers.HfArgumentParser(transformers.TrainingArguments),
        "transformers.PreTrainedConfig": transformers.PreTrainedConfig,
        "transformers.Trainer": lambda: transformers.Trainer(model=Two(), args=arguments),
        "transformers.TrainerState": transformers.TrainerState,
        "transformers.TrainingArguments": lambda: arguments,
    }
    return makers[kind]()


# What stands in hf_esc.


@cache
def trees() -> dict[str, ast.Module]:
    """The source of each of our files."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def names_made_in(tree: ast.Module) -> set[str]:
    """Names that a file gives to something of its own."""
    made = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                made.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                made.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                made.add(name)
    return made


def private_names(tree: ast.Module) -> set[str]:
    """Names with one underscore before them that are read of an object, set on one, or imported."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                names.add(name)
            case ast.Call(func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=name), *_]):
                names.add(str(name))
            case ast.ImportFrom(level=0, names=aliases):
                names |= {alias.name for alias in aliases}
    documented = {"_exit"}  # of os
    return {name for name in names - documented if re.match(r"_[a-zA-Z]", name)}


def library_names(tree: ast.Module) -> set[str]:
    """Dotted names of the libraries: imported, written out, or in quotes."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(level=0, module=str(module), names=aliases):
                names |= {f"{module}.{alias.name}" for alias in aliases}
            case ast.Import(names=aliases):
                names |= {alias.name for alias in aliases}
            case ast.Attribute():
                names.add(ast.unparse(node))
            case ast.Constant(value=str(text)):
                names.add(text)
    dotted = rf"({'|'.join(LIBRARIES)})(\.\w+)+"
    return {name for name in names if re.fullmatch(dotted, name)}


@cache
def own_classes() -> list[type]:
    """Every class of the package and of the metrics."""
    skipped = ("hf_esc.embedded.", "hf_esc.metrics", "hf_esc.space", "hf_esc.cli.__main__")
    names = [part.name for part in pkgutil.walk_packages(hf_esc.__path__, "hf_esc.")]
    modules = [importlib.import_module(name) for name in names if not name.startswith(skipped)]
    for path in sorted((ROOT / "metrics").glob("*/*_score.py")):
        spec = importlib.util.spec_from_file_location(f"hf_esc.metrics.{path.stem}", path)
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    there = [thing for module in modules for thing in vars(module).values() if inspect.isclass(thing)]
    return [cls for cls in dict.fromkeys(there) if cls.__module__.startswith("hf_esc.")]


@cache
def overrides() -> list[tuple[type, str, object]]:
    """Names that a class of ours has, or sets on itself, and a class of a library before it: and what that one has."""
    result = []
    for cls in own_classes():
        bases = [base for base in cls.__mro__ if base.__module__.startswith((*LIBRARIES, "torch.nn."))]
        own = {name for name in vars(cls) if not name.startswith(("__", "_abc_"))} - fields_of(bases)
        for name in sorted(own | set_on_self().get(cls.__name__, set())) if bases else ():
            if base := next((base for base in bases if name in vars(base)), None):
                result.append((cls, name, vars(base)[name]))
    return [(cls, name, base) for cls, name, base in result if name in vars(cls) or name.startswith("_")]


def fields_of(bases: list[type]) -> set[str]:
    """The fields of dataclasses, which users set: those of TrainingArguments."""
    return {name for base in bases for name in getattr(base, "__dataclass_fields__", ())}


@cache
def set_on_self() -> dict[str, set[str]]:
    """By the name of each class, what its methods give to `self`."""
    result: dict[str, set[str]] = {}
    for tree in trees().values():
        for cls in ast.walk(tree):
            for node in ast.walk(cls) if isinstance(cls, ast.ClassDef) else ():
                match node:
                    case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                        result.setdefault(cls.name, set()).add(name)
    return result
