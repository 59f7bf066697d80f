"""
The table of all methods. The public face, the command line, cards, the benchmark and the documentation read it.

It imports nothing heavy: a row says where its class or function is, and [`Method.load`] imports that.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import CheckpointError

# The two kinds: something stands in front of the head and the weights stay, or the weights themselves are edited.
IN_FRONT, WEIGHTS = "in_front", "weights"
KINDS = (IN_FRONT, WEIGHTS)


@dataclass(frozen=True)
class Method:
    """
    A row of the table.

    Args:
        name (`str`): Its name on the command line and in the ledger.
        title (`str`): Its name in the field, as cards and tables write it.
        kind (`str`): `"in_front"` (of the head; the weights stay as they are) or `"weights"` (they are edited).
        where (`str`): Its Trainer or its function, as `module:name` within hf_esc.
        arguments (`str`, *optional*): The arguments of a Trainer, likewise; None where it is a function.
        images (`tuple[str, ...]`): What it computes from or trains on: `"forget"` images, `"retain"` images, or both.
        summary (`str`): What it does, in one line.
        promise (`str`): Who does not find the class afterwards, and who still does.
        source (`str`): Where it is from, in Markdown.
        settings (`Mapping[str, Any]`): Reference settings: those of its paper or its authors' code.
        options (`Mapping[str, str]`): Options of `hf-esc erase` that are its own, each with the argument that it sets.
        shown (`tuple[str, ...]`): The settings in a record that a card tells; all of them where it is empty.
        told (`str`): What the command line says was done, a format string over the record; of a training, how many
            steps it took on which images, where it is empty.
        forgets_images (`bool`): Whether it can forget single images, and not only classes.
    """

    name: str
    title: str
    kind: str
    where: str
    arguments: str | None
    images: tuple[str, ...]
    summary: str
    promise: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    told: str = ""
    forgets_images: bool = True

    @property
    def trained(self) -> bool:
        """Whether it is a Trainer, and not a function."""
        return self.arguments is not None

    @property
    def uses_retain(self) -> bool:
        """Whether it needs retain images."""
        return "retain" in self.images

    @property
    def edits_weights(self) -> bool:
        """Whether it leaves a plain checkpoint with other weights."""
        return self.kind == WEIGHTS

    @property
    def public(self) -> dict[str, str]:
        """What users import of it, by name: the module, within hf_esc."""
        places = [self.where] if self.arguments is None else [self.where, self.arguments]
        return {name: module for module, name in (place.split(":") for place in places)}

    def load(self) -> Any:
        """Its Trainer or its function, imported now."""
        return _load(self.where)

    def load_arguments(self) -> Any:
        """The class of its arguments, imported now; only a Trainer has one."""
        return _load(str(self.arguments))


def _load(place: str) -> Any:
    module, name = place.split(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)


# What a complete erasure promises. No method here leaves what a retrained model would have.
_LINEAR = (
    "Who sees predictions no longer gets the class. A probe that is trained to convergence on the features still "
    "reads it, and who holds the file takes the projection off."
)
_EDITED = (
    "Who sees predictions no longer gets the class. A probe that is trained to convergence on the features still "
    "reads it, and who holds the file can train it on until the class is back."
)
_GOLATKAR = "Golatkar et al., [arXiv 1911.04933](https://arxiv.org/abs/1911.04933)"
_KURMANJI = "Kurmanji et al., [arXiv 2302.09880](https://arxiv.org/abs/2302.09880) (NeurIPS 2023)"
_ESC = "[ESC](https://huggingface.co/papers/2504.02199)"
# The references do not clip gradients.
_UNCLIPPED = {"max_grad_norm": 0.0}

_ROWS = (
    Method(
        "esc",
        "ESC",
        IN_FRONT,
        "erasure.esc:erase",
        None,
        ("forget",),
        "projects the principal directions of the forget features out in front of the head, in closed form",
        _LINEAR,
        f"{_ESC}, Eq. 1 and 2 (CVPR 2025)",
        settings={"p": 1.5},
        options={"p": "p", "rank": "rank", "per-class": "per_class"},
        shown=("p", "rank", "per_class"),
        told="rank {rank}{each} of {dims} feature directions",
    ),
    Method(
        "esc-t",
        "ESC-T",
        IN_FRONT,
        "training.trainer_esc_t:ESCTTrainer",
        "training.training_args_esc_t:ESCTTrainingArguments",
        ("forget",),
        "trains a binary mask over the basis of the forget features",
        _LINEAR,
        f"{_ESC}, Eq. 3 to 6 (CVPR 2025)",
        settings={
            "num_train_epochs": 50,
            "per_device_train_batch_size": 64,
            "learning_rate": 1e-3,
            **_UNCLIPPED,
            "tau": 0.7,
        },
        options={"tau": "tau"},
        shown=("tau", "tolerance", "steps"),
        told="a mask that cuts {entries} entries, after {steps} steps",
    ),
    Method(
        "remap",
        "Remap",
        IN_FRONT,
        "erasure.remap:remap",
        None,
        ("forget", "retain"),
        "replaces features of the forgotten classes by features of other classes",
        "Who sees predictions no longer gets the class, and neither does a probe that is trained to convergence on "
        "the features, but for what the gate misses. Who holds the file takes the map off.",
        "hf_esc's own",
        options={"bank-size": "bank_size", "gate-threshold": "threshold", "seed": "seed"},
        shown=("bank_size", "gate", "threshold"),
        told="features replaced by {bank_size} of other classes; the gate finds {gate_recall:.1%} of the forget "
        "images and takes {false_alarms:.2%} of the others for them",
        forgets_images=False,
    ),
    Method(
        "delete",
        "DELETE",
        WEIGHTS,
        "unlearning.delete:DELETETrainer",
        "unlearning.delete:DELETEArguments",
        ("forget",),
        "learns the original's answers without the forgotten class",
        _EDITED,
        "[arXiv 2503.23751](https://arxiv.org/abs/2503.23751) (CVPR 2025)",
        settings={
            "num_train_epochs": 20,
            "per_device_train_batch_size": 128,
            "learning_rate": 1e-3,
            "optim": "sgd",
            "optim_args": "momentum=0.9",
            "weight_decay": 0.0,
            "temperature": 1.0,
            **_UNCLIPPED,
        },
    ),
    Method(
        "neg-grad",
        "NegGrad",
        WEIGHTS,
        "unlearning.neg_grad:NegGradTrainer",
        "unlearning.neg_grad:NegGradArguments",
        ("forget",),
        "goes up the loss, until no forget image is right",
        _EDITED,
        _GOLATKAR,
        settings={"num_train_epochs": 5, "learning_rate": 1e-4, "tolerance": None, **_UNCLIPPED},
    ),
    Method(
        "random-label",
        "Random labels",
        WEIGHTS,
        "unlearning.random_label:RandomLabelTrainer",
        "unlearning.random_label:RandomLabelArguments",
        ("forget",),
        "learns random other labels",
        _EDITED,
        _GOLATKAR,
        settings={"num_train_epochs": 20, "learning_rate": 3e-4, "redraw": False, **_UNCLIPPED},
    ),
    Method(
        "boundary-shrink",
        "Boundary Shrink",
        WEIGHTS,
        "unlearning.boundary_shrink:BoundaryShrinkTrainer",
        "unlearning.boundary_shrink:BoundaryShrinkArguments",
        ("forget",),
        "learns the class on the other side of the nearest boundary",
        _EDITED,
        "Chen et al., [arXiv 2303.11570](https://arxiv.org/abs/2303.11570) (CVPR 2023)",
        settings={"num_train_epochs": 10, "learning_rate": 1e-5, "epsilon": 0.1, **_UNCLIPPED},
    ),
    Method(
        "lau",
        "LAU",
        WEIGHTS,
        "unlearning.layer_attack:LayerAttackTrainer",
        "unlearning.layer_attack:LayerAttackArguments",
        ("forget",),
        "teaches the head alone what it says of attacked features",
        "Who sees predictions no longer gets the class. The features are the original's: every probe reads what it "
        "read before, and who holds the file trains a head on them.",
        "Kim et al., layer attack unlearning (AAAI 2024)",
        settings={"alpha": 0.5, "temperature": 4.0, "attack_step": 0.5, **_UNCLIPPED},
    ),
    Method(
        "finetune",
        "Finetune",
        WEIGHTS,
        "unlearning.finetune:FinetuneTrainer",
        "unlearning.finetune:FinetuneArguments",
        ("retain",),
        "goes on training without the forget images",
        _EDITED,
        _GOLATKAR,
        settings={"num_train_epochs": 10, "learning_rate": 0.01, **_UNCLIPPED},
    ),
    Method(
        "l1-sparse",
        "ℓ1-sparse",
        WEIGHTS,
        "unlearning.finetune:L1SparseTrainer",
        "unlearning.finetune:L1SparseArguments",
        ("retain",),
        "goes on training without the forget images, and drives weights to zero",
        _EDITED,
        "Jia et al., [arXiv 2304.04934](https://arxiv.org/abs/2304.04934) (NeurIPS 2023)",
        settings={"num_train_epochs": 10, "learning_rate": 0.01, "gamma": 1e-4, **_UNCLIPPED},
    ),
    Method(
        "scrub",
        "SCRUB",
        WEIGHTS,
        "unlearning.scrub:SCRUBTrainer",
        "unlearning.scrub:SCRUBArguments",
        ("forget", "retain"),
        "leaves its teacher on forget images and stays with it on retain images, in turn",
        _EDITED,
        _KURMANJI,
        settings={
            "num_train_epochs": 3,
            "forget_epochs": 2,
            "per_device_train_batch_size": 512,
            "retain_batch_size": 256,
            "learning_rate": 5e-4,
            "optim": "sgd",
            "gamma": 0.99,
            "alpha": 0.001,
            "temperature": 4.0,
            **_UNCLIPPED,
        },
    ),
    Method(
        "salun",
        "SalUn",
        WEIGHTS,
        "unlearning.random_label:SalUnTrainer",
        "unlearning.random_label:SalUnArguments",
        ("forget", "retain"),
        "learns random labels, on the weights that matter for the forget images alone",
        _EDITED,
        "Fan et al., [arXiv 2310.12508](https://arxiv.org/abs/2310.12508) (ICLR 2024)",
        settings={"num_train_epochs": 10, "learning_rate": 0.013, "saliency": 0.5, **_UNCLIPPED},
    ),
    Method(
        "neg-grad-plus",
        "NegGrad+",
        WEIGHTS,
        "unlearning.neg_grad:NegGradPlusTrainer",
        "unlearning.neg_grad:NegGradPlusArguments",
        ("forget", "retain"),
        "goes up on forget and down on retain images",
        _EDITED,
        _KURMANJI,
        settings={"num_train_epochs": 5, "learning_rate": 1e-4, "alpha": 0.9999, **_UNCLIPPED},
    ),
    Method(
        "bad-teacher",
        "Bad teacher",
        WEIGHTS,
        "unlearning.bad_teacher:BadTeacherTrainer",
        "unlearning.bad_teacher:BadTeacherArguments",
        ("forget", "retain"),
        "learns from a random network on forget images, and from the original on a part of the retain images",
        _EDITED,
        "Chundawat et al., [arXiv 2205.08096](https://arxiv.org/abs/2205.08096) (AAAI 2023)",
        settings={
            "num_train_epochs": 1,
            "per_device_train_batch_size": 256,
            "learning_rate": 1e-4,
            "optim": "adamw_torch",
            "weight_decay": 0.0,
            "retain_share": 0.3,
            "temperature": 1.0,
            **_UNCLIPPED,
        },
    ),
    Method(
        "fisher",
        "Fisher",
        WEIGHTS,
        "unlearning.fisher:fisher_forgetting",
        None,
        ("retain",),
        "adds noise to the weights that retain images do not depend on",
        _EDITED,
        _GOLATKAR,
        settings={"alpha": 1e-7, "zero_head_rows": True},
        options={"seed": "seed"},
        told="noise on the weights that {num_retain_images} retain images do not depend on",
    ),
    Method(
        "retrain",
        "Retrain",
        WEIGHTS,
        "unlearning.finetune:RetrainTrainer",
        "unlearning.finetune:RetrainArguments",
        ("retain",),
        "trains anew from random weights: what others are compared with",
        "The weights never saw the class. What a probe still reads from the features is what the images show by "
        "themselves.",
        "the gold standard of classic unlearning",
    ),
)
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def edited_fingerprint(ledger: Sequence[Mapping[str, Any]]) -> str | None:
    """
    The fingerprint that the weights had after they were last edited; None where they were not, the record is of a
    version that did not write it, or the head was replaced since.
    """
    edits = [record for record in ledger if kind_of(record) == WEIGHTS]
    return edits[-1].get("weights_sha256") if edits and not of_earlier_head(edits[-1]) else None


def of_earlier_head(record: Mapping[str, Any]) -> bool:
    """Whether a record was written before `ESCModel.replace_head` gave the model other classes, and other weights."""
    return "earlier_label_ids" in record


def kind_of(record: Mapping[str, Any]) -> str:
    """
    The kind of a record in a ledger: `"in_front"` or `"weights"`.

    A record says its kind. One that was written before records did has that of its method.

    Raises:
        CheckpointError: If the kind is none of [`KINDS`], or there is none and the method is not in the table. What
            such an erasure promises, and how it is checked, is not known here.
    """
    name = record.get("method")
    known = METHODS.get(name) if isinstance(name, str) else None
    kind = record.get("kind", known.kind if known is not None else None)
    if kind not in KINDS:
        raise CheckpointError(
            f"The ledger has an erasure by {name!r} of the kind {kind!r}, which this version of hf_esc does not know: "
            f"it knows {' and '.join(map(repr, KINDS))}. Update hf_esc, or fetch the checkpoint anew."
        )
    return kind
