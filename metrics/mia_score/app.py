"""The metric's page as a Space: try it on a few numbers."""

import evaluate
import gradio as gr

metric = evaluate.load("mia_score.py")


def compute(members: str, nonmembers: str) -> dict:
    read = [[float(number) for number in text.split(",")] for text in (members, nonmembers)]
    return metric.compute(predictions=read[0] + read[1], references=[1] * len(read[0]) + [0] * len(read[1]))


demo = gr.Interface(
    compute,
    [
        gr.Text("0, 1, 2, 3, 4, 5, 6, 7, 8, 9", label="Losses of members"),
        gr.Text("5, 6, 7, 8, 9, 10, 11, 12, 13, 14", label="Losses of non-members"),
    ],
    gr.JSON(),
    title="MIA score",
    description=metric.info.description,
)

if __name__ == "__main__":
    demo.launch()
