"""The version, apart from everything else so that builds can read it without imports."""

__version__ = "0.1.0"
