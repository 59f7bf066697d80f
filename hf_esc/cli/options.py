"""Arguments and options that several commands share."""

from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder, an id on the Hub, or `embedded` (`embedded/vit`, `embedded/all-cnn`, `embedded/resnet`).",
        show_default=False,
    ),
]
Dataset = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="An id on the Hub, a folder of parquet files or with one folder of images per class, or `embedded`.",
        show_default=False,
    ),
]
DatasetConfig = Annotated[
    str | None, typer.Option(metavar="NAME", help="The configuration of --dataset, if it has several.")
]
ForgetFraction = Annotated[
    float | None,
    typer.Option(
        metavar="FRACTION",
        help="Instead of classes: a fraction of the training images, drawn at random from all classes.",
        show_default=False,
    ),
]
ForgetSeed = Annotated[int | None, typer.Option(help="Seed of the draw of --forget-fraction, by default 0.")]
ForgetIndices = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|ROW,ROW",
        help="Instead of classes: rows of the training split, counted from 0, or a file with one row number a line "
        "or a JSON list.",
        show_default=False,
    ),
]
ImageColumn = Annotated[str | None, typer.Option(help="The column with the images, if several could hold them.")]
LabelColumn = Annotated[str | None, typer.Option(help="The column with the labels, if several could hold them.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images in a batch.")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Processes that read and preprocess images.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, …; by default an accelerator, if there is one.")]
Revision = Annotated[str | None, typer.Option(help="Revision of the model on the Hub.")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run the code that a model brings along.")]
AllowIncomplete = Annotated[
    bool, typer.Option("--allow-incomplete", help="Do not fail (exit code 3) if what was to be forgotten is not gone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, and nothing else.")]
