"""Speed of ESC-T: training on features that are kept, over the same steps with the backbone in the loop."""

import tempfile
import warnings
from collections.abc import Callable

import datasets
import torch
import transformers

from hf_esc import ESCTTrainer, ESCTTrainingArguments
from hf_esc.data import image_batches, load_images
from hf_esc.errors import IncompleteErasureWarning
from hf_esc.loading import load_classifier, load_processor
from hf_esc.training.feature_store import ForgetFeatures

# No checkpoints, logs or bars, and no accelerator.
QUIET = {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_strategy": "no"}
FORGET, IMAGES_EACH, EPOCHS = ["Trouser", "Bag"], 500, 20


class BackboneFeatures(ForgetFeatures):
    """Features that are computed whenever they are asked for, from preprocessed images in memory."""

    def __init__(self, kept: ForgetFeatures, model, images: torch.Tensor):
        super().__init__(kept.labels, images, kept.dim)
        self.model = model
        self.images = images

    @torch.no_grad()
    def __getitems__(self, rows: list[int]):
        return {"features": self.model.features(self.images[rows]), "labels": self.labels[rows]}


def cached_over_backbone(compare: Callable, runs: int) -> dict:
    """
    20 epochs over 1,000 forget images, with the pass for the features and the basis on both sides. The stop test,
    which would end both early, is off.
    """
    data = load_images("embedded")
    model = load_classifier("embedded/vit", device="cpu")
    processor = load_processor(model)
    forget_set = datasets.concatenate_datasets(
        [data.forget_set([data.label_names.index(name)]).select(range(IMAGES_EACH)) for name in FORGET]
    )
    pixels = torch.cat(
        [batch["pixel_values"] for batch in image_batches(forget_set, processor, image_column=data.image_column)]
    )
    masks = {}

    def train(*, cached: bool) -> None:
        with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore", IncompleteErasureWarning)
            args = ESCTTrainingArguments(scratch, num_train_epochs=EPOCHS, **QUIET)
            trainer = ESCTTrainer(model, args, forget_set, processing_class=processor)
            trainer.remove_callback(transformers.PrinterCallback)
            trainer._stop.is_forgotten = lambda: False
            if not cached:
                kept = trainer.train_dataset
                trainer.train_dataset = BackboneFeatures(kept, trainer._source.erased, pixels)
            output = trainer.train()
            assert output.global_step == EPOCHS * -(-len(forget_set) // 64)
            masks[cached] = (trainer.model.masks[0].detach().clone(), trainer.model.masks_in_force()[0])

    result = compare(lambda: train(cached=True), lambda: train(cached=False), runs)
    (ours, ours_binary), (theirs, theirs_binary) = masks[True], masks[False]
    return result | {
        "times_faster": 1 / result["ratio"],
        "mask_difference": (ours - theirs).abs().max().item(),
        "entries_cut": int((ours_binary == 0).sum()),
        "entries_that_differ": int((ours_binary != theirs_binary).sum()),
    }
