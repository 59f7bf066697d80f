"""The metric's page as a Space: try it on a few numbers."""

import evaluate
import gradio as gr

metric = evaluate.load("hm_score.py")


def compute(predictions: str, references: str, forget_labels: str) -> dict:
    read = [[int(number) for number in text.split(",")] for text in (predictions, references, forget_labels)]
    return metric.compute(predictions=read[0], references=read[1], forget_labels=read[2])


demo = gr.Interface(
    compute,
    [
        gr.Text("1, 0, 2, 2", label="Predictions"),
        gr.Text("0, 0, 1, 2", label="References"),
        gr.Text("0", label="Forget"),
    ],
    gr.JSON(),
    title="HM score",
    description=metric.info.description,
)

if __name__ == "__main__":
    demo.launch()
