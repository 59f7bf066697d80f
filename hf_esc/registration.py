"""
Registers ESC and the All-CNN with the Auto classes of transformers, the metrics with evaluate, and the writer of cards
with the Trainers.

evaluate has no entry points. It looks for a plain name in the working directory and then on the Hub. This module makes
it look in the package in between, so that `evaluate.load("kr_score")` gives the metric of the installed hf_esc, with
or without a network.

`import transformers.models.auto` takes seconds, and so does `import evaluate`, so `import hf_esc` does neither. If
they are imported already, it registers at once. Otherwise it registers as soon as somebody imports them. This keeps
`hf-esc --help` under half a second.
"""

import os
import sys
from collections.abc import Callable
from functools import wraps
from importlib.abc import Loader, MetaPathFinder

# The modules of evaluate that hold a reference to `evaluation_module_factory`.
_PLACES = ("evaluate.loading", "evaluate.inspect", "evaluate.evaluation_suite")


def register() -> None:
    """Register now with every library that is imported, and with the others on their import. Safe to call twice."""
    for module, action in _ACTIONS.items():
        if module in sys.modules:
            action()
        elif not any(isinstance(finder, _Watcher) and finder.module == module for finder in sys.meta_path):
            sys.meta_path.insert(0, _Watcher(module, action))


def _register_configs() -> None:
    from transformers import AutoConfig

    from .all_cnn.configuration_all_cnn import AllCNNConfig
    from .modeling.configuration_esc import ESCConfig

    for config in (ESCConfig, AllCNNConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)


def _register_models() -> None:
    from transformers import AutoModel, AutoModelForImageClassification

    from .all_cnn import AllCNNConfig, AllCNNForImageClassification
    from .modeling.configuration_esc import ESCConfig
    from .modeling.modeling_esc import ESCFeatureModel, ESCModel

    _register_configs()
    AutoModel.register(ESCConfig, ESCFeatureModel, exist_ok=True)
    AutoModelForImageClassification.register(ESCConfig, ESCModel, exist_ok=True)
    AutoModelForImageClassification.register(AllCNNConfig, AllCNNForImageClassification, exist_ok=True)


def add_metrics() -> None:
    """Make evaluate find the metrics of hf_esc. evaluate must be imported already. Safe to call twice."""
    find = getattr(sys.modules["evaluate.loading"], "evaluation_module_factory", None)
    if find is None or hasattr(find, "finds_metrics_of_hf_esc"):  # None: the user's own module has this name
        return
    ours = _with_ours(find)
    for place in _PLACES:
        if getattr(sys.modules.get(place), "evaluation_module_factory", None) is find:
            sys.modules[place].evaluation_module_factory = ours  # type: ignore[attr-defined]


def _with_ours(find: Callable) -> Callable:
    @wraps(find)
    def evaluation_module_factory(path, module_type=None, *args, **kwargs):
        if module_type in (None, "metric") and not os.path.isfile(os.path.join(path, f"{path}.py")):
            from .evaluation.metric_folders import metric_folder

            path = str(metric_folder(path) or path)
        return find(path, module_type, *args, **kwargs)

    evaluation_module_factory.finds_metrics_of_hf_esc = True  # type: ignore[attr-defined]
    return evaluation_module_factory


def _register_card() -> None:
    """
    Give the Trainers the writer of their cards.

    Cards belong to the Hub's files, which import the training and not the other way round. So a Trainer leaves a place
    for the writer. It is filled here, as this module stands above all rooms, and a user need not import any of them.
    """
    from .training.forgetting_trainer import ForgettingTrainer

    ForgettingTrainer.write_card = staticmethod(_write_card)


def _write_card(*args, **options) -> None:
    from .hub.card import write_card  # it takes a second, and few runs write a card

    write_card(*args, **options)


_ACTIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "evaluate.loading": add_metrics,
    "hf_esc.training.forgetting_trainer": _register_card,
}


class _Watcher(MetaPathFinder):
    """Runs an action right after a module has been imported, and then removes itself."""

    def __init__(self, module: str, action: Callable[[], None]):
        self.module = module
        self.action = action

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(name, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _ActingLoader(spec.loader, self)
                return spec
        return None


class _ActingLoader(Loader):
    def __init__(self, loader: Loader, watcher: _Watcher):
        self.loader = loader
        self.watcher = watcher

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        if self.watcher in sys.meta_path:
            sys.meta_path.remove(self.watcher)
            self.watcher.action()
