"""The model card of an erased model: what was erased, how, and what that does not mean."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..modeling_esc import ESCModel

TEMPLATE = Path(__file__).with_name("card_template.md")
_MARK = "<!-- written by hf_esc; remove this line to keep your own changes -->"


def write_card(
    model: ESCModel,
    folder: Path,
    *,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Write `README.md` for an erased model, from its ledger.

    A card that is there and was not written here is a person's, and stays as it is.
    """
    file = folder / "README.md"
    if file.exists() and _MARK not in file.read_text(encoding="utf-8"):
        return
    more = [tags] if isinstance(tags, str) else list(tags or [])
    base = model.config.base_config._name_or_path
    data = ModelCardData(
        library_name="hf_esc",
        pipeline_tag="image-classification",
        tags=["machine-unlearning", "concept-erasure", *more],
        language=language,
        license=license,
        base_model=base or None,
    )
    card = ModelCard.from_template(data, template_path=str(TEMPLATE), mark=_MARK, erasures=model.config.erasures)
    file.parent.mkdir(parents=True, exist_ok=True)
    card.save(file)
