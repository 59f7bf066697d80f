"""What can go wrong, by name. Each error is also the builtin that fits, so callers can catch either."""

import inspect
import warnings

# Those that travel with checkpoints stand beside the code that raises them.
from .modeling.errors import CheckpointError as CheckpointError
from .modeling.errors import HfEscError as HfEscError
from .modeling.errors import SiteError as SiteError
from .modeling.errors import shown as shown


class RankError(HfEscError, ValueError):
    """The number of directions to project out is 0, or as large as the features, or beyond what the data supports."""


class LabelError(HfEscError, ValueError):
    """A label that is not there, that two classes share, or a set of labels that leaves nothing to keep."""


class ForgetSetError(HfEscError, ValueError):
    """The forget set is empty or holds something that is no image and no batch."""


class DataError(HfEscError, ValueError):
    """A data set that cannot be found or read, or whose columns or splits are not clear."""


class ImageError(DataError):
    """An image that cannot be read."""


class NonFiniteError(HfEscError, ValueError):
    """Features with NaN or infinite entries."""


class ModelError(HfEscError, ValueError):
    """A model that cannot be loaded, or is no image classifier, or comes without a trained head or image processor."""


class MaskError(HfEscError, ValueError):
    """A trained mask that erases nothing, or everything."""


class ProbeError(HfEscError, ValueError):
    """A probe that does not exist, or features and labels that none can be trained or tried on."""


class MetricError(HfEscError, ValueError):
    """Logits, losses, labels or numbers that a metric cannot be computed from."""


class DivergenceError(HfEscError, ArithmeticError):
    """A training whose loss or weights are no longer finite."""


class OptionError(HfEscError, ValueError):
    """Options of a command that do not go together, or a value that an option does not take."""


class HubError(HfEscError, RuntimeError):
    """A push that did not go through, or what should not be pushed as it is."""


class OutputError(HfEscError, FileExistsError):
    """An output folder that holds something already, or cannot be written."""


class IncompleteErasureWarning(UserWarning):
    """The projection leaves the head's prediction for many of the forget images as it was."""


# Warnings skip the frames of these: a Trainer of transformers may stand between the caller and the reason.
_PASSED_THROUGH = ("hf_esc", "transformers", "accelerate", "torch")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of whoever called into hf_esc, however deep in it the reason was found."""
    frame, level = inspect.currentframe(), 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _PASSED_THROUGH:
        frame, level = frame.f_back, level + 1
    warnings.warn(shown(message), category, stacklevel=level)
