"""The metric's page as a Space: try it on a few features."""

import io

import evaluate
import gradio as gr
import numpy as np

metric = evaluate.load("kr_score.py")

PROBES = ["paper", "converged", "mlp", "knn", "one_vs_rest"]
TRAIN = "\n".join(10 * ["0, 0.0, 0.0", "1, 1.0, 0.0"])
TEST = "0, 0.0, 0.0\n0, 1.0, 0.0\n1, 1.0, 0.0\n1, 1.0, 0.0"


def read(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes from lines of a class and its features."""
    table = np.loadtxt(io.StringIO(text), delimiter=",", ndmin=2)
    return table[:, 1:], table[:, 0].astype(int)


def compute(train: str, test: str, forget_labels: str, probe: str, seed: float) -> dict:
    (train_features, train_labels), (features, labels) = read(train), read(test)
    return metric.compute(
        predictions=features,
        references=labels,
        train_features=train_features,
        train_labels=train_labels,
        forget_labels=[int(number) for number in forget_labels.split(",")],
        probe=probe,
        seed=int(seed),
    )


demo = gr.Interface(
    compute,
    [
        gr.Textbox(TRAIN, lines=8, label="Training images: a line for each, its class and its features"),
        gr.Textbox(TEST, lines=4, label="Test images"),
        gr.Textbox("0", label="Forget"),
        gr.Dropdown(PROBES, value="knn", label="Probe"),
        gr.Number(0, precision=0, label="Seed"),
    ],
    gr.JSON(),
    title="KR score",
    description=metric.info.description,
)

if __name__ == "__main__":
    demo.launch()
