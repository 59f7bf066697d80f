"""
The embedded images and three small checkpoints, with which everything can be tried without a network.

`examples/train_embedded.py` made the files in this folder. The `training.json` of each checkpoint has its command and
settings.
"""

from pathlib import Path

from ..errors import DataError

FOLDER = Path(__file__).parent
NAME = "embedded"
DATASET = FOLDER / "fashion_mnist"
DEFAULT_MODEL = "vit"


def embedded_models() -> list[str]:
    """The names of the embedded checkpoints: `["embedded/all-cnn", "embedded/resnet", "embedded/vit"]`."""
    return sorted(f"{NAME}/{folder.name}" for folder in FOLDER.iterdir() if (folder / "config.json").is_file())


def resolve_model(name: str | Path) -> str:
    """
    Turn `embedded` or `embedded/<name>` into the folder of that checkpoint. Any other name is returned unchanged.

    If a user has a folder of that name, `./embedded` names it.

    Raises:
        DataError: If there is no such embedded checkpoint.
    """
    name = str(name)
    if name.split("/")[0] != NAME:
        return name
    name = f"{NAME}/{DEFAULT_MODEL}" if name == NAME else name
    if name not in embedded_models():
        raise DataError(f"There is no embedded model {name!r}. There are: {', '.join(embedded_models())}.")
    return str(FOLDER / name.removeprefix(f"{NAME}/"))
