"""The metric's page as a Space: try it on a few numbers."""

import evaluate
import gradio as gr

metric = evaluate.load("zrf_score.py")


def compute(predictions: str, references: str, base: str) -> dict:
    read = [
        [[float(number) for number in row.split(",")] for row in text.splitlines()]
        for text in (predictions, references)
    ]
    return metric.compute(predictions=read[0], references=read[1], base=2 if base == "2" else base)


demo = gr.Interface(
    compute,
    [
        gr.Text("5, 0, 0\n0, 0, 0", lines=2, label="The model's logits, one line an image"),
        gr.Text("0, 0, 0\n0, 0, 0", lines=2, label="The random network's logits"),
        gr.Radio(["2", "e"], value="2", label="Base of the logarithm"),
    ],
    gr.JSON(),
    title="ZRF score",
    description=metric.info.description,
)

if __name__ == "__main__":
    demo.launch()
