"""Where the evaluate modules of hf_esc are: `kr_score`, `hm_score`, `mia_score`, `zrf_score`."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
# In the wheel, metrics are inside of the package, and in a checkout beside it.
METRICS = _PACKAGE / "metrics" if (_PACKAGE / "metrics").is_dir() else _PACKAGE.parent / "metrics"


def metric_folder(name: str) -> Path | None:
    """
    The folder of a metric of hf_esc.

    Args:
        name (`str`): Such as `"kr_score"`.

    Returns:
        `Path`, *optional*: None if hf_esc has no metric of that name.
    """
    folder = METRICS / name
    return folder if name.isidentifier() and (folder / f"{name}.py").is_file() else None
