"""The progress of a training on stderr, and nothing of it on stdout."""

import sys

from tqdm import tqdm
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..errors import shown


class _OnStderr(ProgressCallback):
    """Bars, and logs where they are wanted; transformers prints logs on stdout."""

    def __init__(self, logs: bool):
        super().__init__()
        self.logs = logs

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.logs and state.is_world_process_zero:
            values = {name: round(value, 5) if isinstance(value, float) else value for name, value in logs.items()}
            tqdm.write(shown(values), file=sys.stderr)


def progress_on_stderr(trainer, *, logs: bool) -> None:
    """Let a Trainer show its bars and its logs there."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(_OnStderr(logs))
