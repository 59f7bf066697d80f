"""What can go wrong with an erased model. Travels with checkpoints."""


class HfEscError(Exception):
    """Base of every error about what a user brings: data, labels, models, ranks, folders."""


class SiteError(HfEscError, ValueError):
    """A model in which no classification head that reads features was found."""


class CheckpointError(HfEscError, ValueError):
    """A checkpoint whose projection is missing, damaged, or does not fit its configuration."""
