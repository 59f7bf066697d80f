"""
A Space that makes a small classifier forget a class of Fashion-MNIST, and shows what this hides and what it does not.

    python examples/space/app.py

Models and images come with hf_esc, so the page fetches nothing.
"""

from __future__ import annotations

import gradio as gr
from forgetting import MODELS, RANKS, all_images, erasure, explain, feature_figure, original, predict, shown_pictures
from PIL import Image

from hf_esc.errors import HfEscError

INTRODUCTION = """# Make a classifier forget a class
hf_esc finds the directions that a class takes in feature space and projects them out in front of the head, in closed
form and without training ([ESC](https://huggingface.co/papers/2504.02199)).
**The class is hidden from the head. It is not deleted.**"""

NO_CLASS = "Choose a class to forget first, in the list at the top."
NO_PICTURE = "Choose a picture first: click on one of the test pictures, or upload one of your own."


def check(name: str | None, picture: Image.Image | None) -> None:
    """Raise an error if the class or the picture is missing, before anything is computed."""
    if not name:
        raise gr.Error(NO_CLASS, print_exception=False)
    if picture is None:
        raise gr.Error(NO_PICTURE, print_exception=False)


def forget(name: str | None, model_name: str, rank: str, picture: Image.Image | None):
    """The results on the page: the predictions of the original and of the erased model, the figure, and the text."""
    check(name, picture)
    try:
        erased = erasure(model_name, name, rank)
        before, after = predict(original(model_name)[0], picture), predict(erased.model, picture)
    except HfEscError as error:
        raise gr.Error(str(error), print_exception=False) from error
    return before, after, feature_figure(erased), explain(erased)


def choose(event: gr.SelectData) -> Image.Image:
    """The picture that was clicked on."""
    return shown_pictures()[event.index][0]


def build() -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="Make a classifier forget a class", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            name = gr.Dropdown(
                all_images().label_names,
                value=None,
                label="Class to forget",
                info="One of ten.",
                elem_id="class",
                scale=2,
            )
            model_name = gr.Radio(
                [(m.removeprefix("embedded/"), m) for m in MODELS],
                value=MODELS[0],
                label="Model",
                info="Trained on Fashion-MNIST.",
                scale=3,
            )
            rank = gr.Radio(
                RANKS,
                value=RANKS[0],
                label="Rank",
                info="Directions to project out; auto: the fewest that suffice.",
                scale=3,
            )
        with gr.Row(equal_height=True):
            picture = gr.Image(
                type="pil",
                format="png",
                sources=["upload", "clipboard"],
                height=335,
                label="Picture",
                elem_id="picture",
                min_width=240,
            )
            with gr.Column(scale=4, min_width=420):
                gr.Markdown("Click on a test picture, or upload one of your own (light on black, like these).")
                gallery = gr.Gallery(
                    shown_pictures(),
                    columns=10,
                    height="auto",
                    show_label=False,
                    allow_preview=False,
                    format="png",
                    elem_id="pictures",
                    buttons=[],
                )
        button = gr.Button("Forget the class, and predict", variant="primary", elem_id="forget")
        with gr.Row():
            before = gr.Label(num_top_classes=4, label="Before: original", elem_id="before")
            after = gr.Label(num_top_classes=4, label="After: erased", elem_id="after")
        figure = gr.Plot(show_label=False, elem_id="features")
        text = gr.Markdown(elem_id="text")
        gallery.select(choose, outputs=picture, api_visibility="private")
        # Say only once, at the top, what is missing, and not in each of the places for results.
        checked = button.click(check, [name, picture], show_progress="hidden", api_visibility="private")
        checked.success(forget, [name, model_name, rank, picture], [before, after, figure, text], api_name="forget")
    return page


# Use fonts of the visitor's machine, because a theme's own fonts may come from a server.
THEME = gr.themes.Default(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
CSS = """
#picture img {width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated}
#pictures img {image-rendering: pixelated}
#pictures .grid-container {grid: auto-flow / repeat(10, minmax(0, 1fr)); gap: 4px}
#pictures .grid-wrap {overflow: hidden; min-height: 0}
@media (max-width: 700px) {#pictures .grid-container {grid: auto-flow / repeat(5, minmax(0, 1fr))}}
#pictures .caption-label {font-size: 10px; padding: 0 4px; left: 2px; right: auto; bottom: 2px}
#text table {width: 100%}
#text th, #text td {border-color: var(--border-color-primary)}
#text th:not(:first-child), #text td:not(:first-child) {text-align: right; width: 8em}
"""

if __name__ == "__main__":
    original(MODELS[0])  # load it now, so that the first visitor does not wait
    build().launch(theme=THEME, css=CSS)
