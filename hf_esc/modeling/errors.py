"""Errors of an erased model. Travels with checkpoints."""


class HfEscError(Exception):
    """Base of every error about a user's input: data, labels, models, ranks, folders."""


class SiteError(HfEscError, ValueError):
    """No classification head that reads features was found in a model, or it did not run."""


class CheckpointError(HfEscError, ValueError):
    """The projection of a checkpoint is missing or damaged, or does not fit the configuration."""
