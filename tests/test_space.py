"""The demo Space: what it computes is what the package computes, and a visitor in a browser sees it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from transformers import pipeline

from hf_esc.embedded import embedded_models, resolve_model
from hf_esc.evaluation.accuracy import evaluate_accuracies, model_classifier
from hf_esc.evaluation.knowledge_retention import knowledge_retention
from hf_esc.evaluation.model_features import model_features
from hf_esc.loading import load_processor

SPACE = Path(__file__).parents[1] / "examples" / "space"
TROUSER = 1
# Images of each class to measure on: fewer than on the page.
PER_CLASS = 50
# The page as `make space` serves it, but for that.
PAGE = """
import runpy, sys
folder, per_class = sys.argv[1:]
sys.path.insert(0, folder)
import forgetting
forgetting.PER_CLASS = int(per_class)
runpy.run_path(folder + "/app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def forgetting():
    """The module that computes what the page shows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SPACE))
        import forgetting

        patch.setattr(forgetting, "PER_CLASS", PER_CLASS)
        yield forgetting


@pytest.fixture(scope="module")
def app(forgetting):
    """The page's module."""
    pytest.importorskip("gradio", reason="the demo needs gradio")
    import app

    return app


@pytest.fixture(scope="module")
def erased(forgetting):
    """Trousers, erased from the embedded ResNet."""
    return forgetting.erasure("embedded/resnet", "Trouser", "1")


def most_likely(probabilities):
    return max(probabilities, key=probabilities.get)


# What is computed


@pytest.mark.slow
def test_the_forgotten_class_goes_and_the_others_stay(forgetting, erased):
    before, after = (erased.features[when].test for when in ("before", "after"))
    gone = before.labels == TROUSER
    same = before.logits.argmax(dim=1) == after.logits.argmax(dim=1)
    assert same[gone].double().mean() <= 0.1
    assert same[~gone].double().mean() >= 0.95
    model, _ = forgetting.original("embedded/resnet")
    for picture, name in forgetting.shown_pictures():
        said = [most_likely(forgetting.predict(classifier, picture)) for classifier in (model, erased.model)]
        if name == "Trouser":
            assert said[0] == "Trouser" != said[1]
        else:
            assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", embedded_models())
def test_the_numbers_are_those_of_the_package(forgetting, name):
    """The page projects features that it has; the package runs the erased model on the images."""
    erased = forgetting.erasure(name, "Trouser", "1")
    data, (original, _) = forgetting.measured_images(), forgetting.original(name)
    processor = load_processor(erased.model)
    classifiers = {"before": model_classifier(original), "after": model_classifier(erased.model)}
    test_alone = replace(data, train=data.train.select([0]))
    accuracies = evaluate_accuracies(classifiers, test_alone, [TROUSER], mapping=range(10), processor=processor)
    for when, expected in accuracies.items():
        assert erased.head[when] == pytest.approx((expected.forget_test, expected.retain_test))
    assert erased.head["before"] != erased.head["after"]
    found, after = model_features(erased.model, data, processor), erased.features["after"]
    for mine, right in ((after.train, found.train), (after.test, found.test)):
        torch.testing.assert_close(mine.features, right.features)
        torch.testing.assert_close(mine.logits, right.logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(mine.labels, right.labels)
    read = knowledge_retention(
        found.train.features, found.train.labels, found.test.features, found.test.labels, [TROUSER], probe="converged"
    )
    assert erased.probe["after"] == pytest.approx((read.accuracies.forget_test, read.accuracies.retain_test), abs=0.5)


def test_a_picture_is_read_as_a_pipeline_reads_it(forgetting):
    model, _ = forgetting.original("embedded/resnet")
    classify = pipeline("image-classification", model=resolve_model("embedded/resnet"), device=model.device)
    picture, _ = forgetting.shown_pictures()[5]
    large = picture.resize((90, 60)).convert("RGBA")
    for image in (picture, picture.convert("L"), large, large.convert("P")):
        expected = {answer["label"]: answer["score"] for answer in classify(image.convert("RGB"), top_k=10)}
        assert forgetting.predict(model, image) == pytest.approx(expected, abs=1e-5)
        assert sum(expected.values()) == pytest.approx(1, abs=1e-5)


def test_the_same_number_of_images_of_each_class_is_measured(forgetting):
    data = forgetting.measured_images()
    for split in (data.train, data.test):
        assert torch.bincount(torch.tensor(split["label"])).tolist() == 10 * [forgetting.PER_CLASS]


def test_pictures_to_choose_from_are_test_pictures_one_of_each_class_in_a_row(forgetting, fashion):
    shown = forgetting.shown_pictures()
    assert [name for _, name in shown] == forgetting.SHOWN * fashion.label_names
    first = fashion.test[list(fashion.test["label"]).index(TROUSER)]["image"]
    assert shown[TROUSER][0].tobytes() == first.convert("RGB").tobytes()


@pytest.mark.slow
def test_the_figure_has_both_panels_on_the_same_axes(forgetting, erased):
    left, right = forgetting.feature_figure(erased).axes
    assert (left.get_title(), right.get_title()) == ("before: original features", "after: projected features")
    assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())
    before, after = (torch.tensor(plot.collections[-1].get_offsets().data) for plot in (left, right))
    assert before.shape == after.shape == (forgetting.PER_CLASS, 2)
    assert [text.get_text() for text in left.texts][-1] == "Trouser"
    # On orthonormal axes nothing moves further than it does in all dimensions.
    gone = erased.features["before"].test.labels == TROUSER
    moved = erased.features["after"].test.features[gone] - erased.features["before"].test.features[gone]
    assert 0 < (after - before).norm() <= moved.norm() * 1.001


@pytest.mark.slow
def test_the_text_says_what_was_measured_and_what_is_not_promised(forgetting, erased):
    text = forgetting.explain(erased)
    assert "**Hidden from the head, not deleted.**" in text
    assert "1 of 128 feature directions" in text
    for shares in (erased.head, erased.probe):
        for part in (0, 1):
            assert f"| {shares['before'][part]:.1f} % | {shares['after'][part]:.1f} % |" in text
    assert f"of {10 * forgetting.PER_CLASS:,} training images, still gets **{erased.probe['after'][0]:.0f} %**" in text
    assert "probe trained to convergence" in text
    assert "not trained to convergence" in forgetting.explain(replace(erased, converged=False))
    assert "incomplete" not in text


@pytest.mark.slow
def test_an_incomplete_erasure_is_called_so(forgetting, erased, monkeypatch):
    record = erased.model.config.erasures[-1] | {"unchanged": 0.25}
    monkeypatch.setattr(erased.model.config, "erasures", [record])
    assert "**The erasure is incomplete**" in forgetting.explain(erased)


@pytest.mark.slow
def test_rank_auto_is_the_packages(forgetting):
    record = forgetting.erasure("embedded/resnet", "Bag", "auto").model.config.erasures[-1]
    assert record["rank"] >= 1
    assert record["unchanged"] <= 0.1


@pytest.mark.slow
def test_the_handler_gives_before_and_after(app, forgetting, erased):
    before, after, figure, text = app.forget(
        "Trouser", "embedded/resnet", "1", forgetting.shown_pictures()[TROUSER][0]
    )
    assert most_likely(before) == "Trouser" != most_likely(after)
    assert (len(figure.axes), text) == (2, forgetting.explain(erased))


@pytest.mark.parametrize("name", [None, "", []])
def test_without_a_class_it_says_what_to_do(app, forgetting, name):
    with pytest.raises(app.gr.Error, match="Choose a class"):
        app.forget(name, "embedded/resnet", "1", forgetting.shown_pictures()[0][0])


def test_without_a_picture_it_says_what_to_do(app):
    with pytest.raises(app.gr.Error, match="Choose a picture"):
        app.forget("Bag", "embedded/resnet", "1", None)


@pytest.mark.slow
def test_what_the_package_refuses_is_said(app, forgetting):
    with pytest.raises(app.gr.Error, match="Trousers"):
        app.forget("Trousers of mine", "embedded/resnet", "1", forgetting.shown_pictures()[0][0])


def test_the_card_is_one_of_a_space(app):
    from packaging.version import Version

    _, front, body = (SPACE / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert (card["sdk"], card["license"]) == ("gradio", "apache-2.0")
    assert (SPACE / card["app_file"]).is_file()
    assert len(card["short_description"]) <= 60  # the Hub refuses more
    assert Version(card["sdk_version"]).major == Version(app.gr.__version__).major
    assert "It is not deleted." in body
    assert "hf_esc[viz]" in (SPACE / "requirements.txt").read_text()


# In a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page is served."""
    pytest.importorskip("gradio", reason="the demo needs gradio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    offline = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    where = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    temporary = {"GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("gradio"))}
    log = tmp_path_factory.mktemp("log") / "app.txt"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", PAGE, str(SPACE), str(PER_CLASS)],
            env=os.environ | offline | where | temporary,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()[-2000:]
                assert time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium of the machine's own: nothing is downloaded."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser test needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the browser test needs chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.mark.slow
def test_a_visitor_sees_the_class_go(browser, address, tmp_path, forgetting):
    from playwright.sync_api import expect

    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(30_000)
    asked, broken = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(address)
    expect(page.get_by_role("heading", name="Make a classifier forget a class")).to_be_visible(timeout=30_000)
    button = page.get_by_role("button", name="Forget the class, and predict")
    toast = page.get_by_test_id("toast-body")
    before, after = (page.locator(f"#{when}").get_by_test_id("label-output-value") for when in ("before", "after"))

    button.click()
    expect(toast).to_contain_text("Choose a class to forget first")
    page.locator("#class input").click()
    page.get_by_role("option", name="Trouser", exact=True).click()
    page.get_by_label("resnet", exact=True).check()
    button.click()
    expect(toast.last).to_contain_text("Choose a picture first", timeout=30_000)
    expect(before).to_have_count(0)

    page.locator("#pictures button").nth(TROUSER).click()
    expect(page.locator("#picture img")).to_be_visible()
    button.click()
    expect(before).to_have_text("Trouser", timeout=90_000)
    expect(after).to_have_text(re.compile(r"\w+"))
    assert after.inner_text().strip() in set(forgetting.all_images().label_names) - {"Trouser"}
    expect(page.locator("#features img")).to_be_visible()
    expect(page.locator("#text")).to_contain_text("Hidden from the head, not deleted.")
    erased = forgetting.erasure("embedded/resnet", "Trouser", "1")
    row = page.locator("#text tr", has_text="head, forget: Trouser")
    expect(row).to_contain_text(f"{erased.head['before'][0]:.1f} %")
    expect(row.locator("td").last).to_have_text(f"{erased.head['after'][0]:.1f} %")
    page.screenshot(path=tmp_path / "space.png", full_page=True)

    # One of the visitor's own, of a class that stays.
    picture, _ = forgetting.shown_pictures()[8]
    picture.resize((112, 112)).convert("RGBA").save(tmp_path / "bag.png")
    page.get_by_label("Remove Image").click()
    page.locator("#picture input[type=file]").set_input_files(tmp_path / "bag.png")
    expect(page.locator("#picture img")).to_be_visible()
    button.click()
    expect(before).to_have_text("Bag", timeout=60_000)
    expect(after).to_have_text("Bag")

    for width in (1280, 400):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    elsewhere = {url for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert elsewhere
    assert {urlsplit(url).netloc for url in elsewhere} == {urlsplit(address).netloc}
    assert not broken
    page.close()
