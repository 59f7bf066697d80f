"""
Use an erased model like any other, through `pipeline`, and draw its predictions beside those of the original.

    hf-esc erase embedded --dataset embedded --forget Trouser --output demo
    python examples/use_erased_model.py --model demo --original embedded --dataset embedded --picture demo/pipeline.png
"""

from dataclasses import dataclass, field

import numpy as np
from transformers import HfArgumentParser, pipeline

import hf_esc  # noqa: F401 (registers the model type, so that no remote code is needed)
from hf_esc.data import load_images
from hf_esc.embedded import resolve_model
from hf_esc.visualization import prediction_figure


@dataclass
class Arguments:
    model: str = field(metadata={"help": "The erased model."})
    original: str = field(metadata={"help": "The model that the erased model was made from."})
    dataset: str = field(
        metadata={"help": "The data set to take images from: its test split, or else its training split."}
    )
    picture: str = field(metadata={"help": "Where to write the figure."})


def main() -> None:
    [arguments] = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    erased = pipeline("image-classification", model=arguments.model)
    original = pipeline("image-classification", model=resolve_model(arguments.original))

    data = load_images(arguments.dataset)
    split = data.test if data.test is not None else data.train
    labels = np.asarray(split[data.label_column][:])
    mapping = data.labels_in(erased.model.config)
    forgotten = {label for record in erased.model.config.erasures for label in record["label_ids"] or ()}
    is_forgotten = np.isin(np.asarray(mapping)[labels], list(forgotten))
    # Take three images of forgotten classes, and one image of each of the first three other classes.
    kept = [label for label in range(data.num_labels) if mapping[label] not in forgotten]
    others = [np.flatnonzero(labels == label)[0] for label in kept]
    chosen = [*np.flatnonzero(is_forgotten)[:3], *others[:3]]
    images = [split[int(index)][data.image_column] for index in chosen]
    names = [erased.model.config.id2label[mapping[labels[index]]] for index in chosen]

    answers = {}
    for name, classify in (("original", original), ("erased", erased)):
        scores = classify(images, top_k=data.num_labels)
        answers[name] = [{answer["label"]: answer["score"] for answer in row} for row in scores]
    for name, before, after in zip(names, answers["original"], answers["erased"], strict=True):
        print(f"a picture of {name}: original {max(before, key=before.get)}, erased {max(after, key=after.get)}")
    prediction_figure(images, names, answers).savefig(arguments.picture, dpi=130)
    print(f"The figure is in {arguments.picture}.")


if __name__ == "__main__":
    main()
