"""Errors of an erased model, and text that is safe to show. Travels with checkpoints."""


def shown(text: object) -> str:
    r"""
    A text as one line that a terminal shows as it is.

    Class names, file names and answers of the Hub come from others. Escape sequences, marks that turn the direction of
    writing and line breaks among them could move, hide or forge what stands around them. White space becomes a space,
    and any other character that cannot be printed its escape, such as `\x1b`.
    """
    characters = (" " if c.isspace() else c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return "".join(characters)


class HfEscError(Exception):
    """Base of every error about a user's input: data, labels, models, ranks, folders. Its text is one line."""

    def __str__(self) -> str:
        return shown(super().__str__())


class SiteError(HfEscError, ValueError):
    """No classification head that reads features was found in a model, or it did not run."""


class CheckpointError(HfEscError, ValueError):
    """The projection of a checkpoint is missing or damaged, or does not fit the configuration."""
