"""The model card of an erased model: what was erased, how, and what that does not mean."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..modeling_esc import ESCModel

TEMPLATE = Path(__file__).with_name("card_template.md")


def write_card(model: ESCModel, folder: Path) -> None:
    """
    Write `README.md` for an erased model, from its ledger.

    A card that is there already is a person's, and stays as it is.
    """
    file = folder / "README.md"
    if file.exists():
        return
    base = model.config.base_config._name_or_path
    data = ModelCardData(
        library_name="hf_esc",
        pipeline_tag="image-classification",
        tags=["machine-unlearning", "concept-erasure"],
        base_model=base or None,
    )
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), erasures=model.config.erasures)
    file.parent.mkdir(parents=True, exist_ok=True)
    card.save(file)
