"""Redaction: the name of what was forgotten is nowhere in what is published, or nothing is published."""

import copy
import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_esc import ESCModel
from hf_esc.data.labels import match_labels, redacted_name
from hf_esc.errors import HubError, LabelError
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.hub.card import card_text
from hf_esc.hub.redaction import (
    redacted_config,
    redacted_report,
    refuse_forgotten_names,
    refuse_in_files,
    refuse_names,
)
from hf_esc.ledger.record import not_gone

from .hub import card_errors
from .pictures import labelled, picture
from .pushing import erased_vit, forget_set, put, report_of
from .tiny import quietly

# One of them is forgotten, and its name is a word of no other.
NAMES = ["cat", "Blue Heron", "bird", "fish"]


@pytest.fixture(scope="module")
def erased():
    return erased_vit(names=NAMES)


@pytest.fixture(scope="module")
def folder(erased, tmp_path_factory):
    folder = tmp_path_factory.mktemp("erased") / "model"
    erased.save_pretrained(folder)
    report = report_of(erased, forget=[NAMES[1]], left_out=[])
    (folder / "evaluation.json").write_text(report.to_json())
    return folder


@pytest.fixture(scope="module")
def published(hub, client, folder):
    """The files of a push, by the command."""
    answer = client("answer = command('push', folder, 'me/redacted', '--redact')", folder=folder)
    assert answer[0] == 0, answer
    return hub.repo("me/redacted").files


@pytest.fixture
def repo_id(request) -> str:
    return "me/" + re.sub(r"\W+", "-", request.node.name)[-60:].strip("-._")


def files_of(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def named(data: bytes) -> bool:
    """Whether the name stands in some bytes, in whatever case and with whatever between its words."""
    return re.search(rb"blue[\s_\\-]*heron", data, re.IGNORECASE) is not None


# What is published.


def test_the_name_is_in_no_file(hub, published, folder):
    assert named((folder / "config.json").read_bytes())
    assert {"README.md", "config.json", "evaluation.json", "model.safetensors", "figures/retention.png"} <= set(
        published
    )
    assert [name for name, data in published.items() if named(data)] == []
    assert not any(named(message.encode()) for message in hub.repo("me/redacted").messages)
    assert len(hub.repo("me/redacted").commits) == 2


def test_the_number_stays_where_the_name_was(published):
    config = json.loads(published["config.json"])
    expected = ["cat", "redacted-1", "bird", "fish"]
    for part in (config, config["base_config"]):
        assert list(part["id2label"].values()) == expected
        assert part["label2id"] == {name: label for label, name in enumerate(expected)}
    [record] = config["erasures"]
    assert (record["labels"], record["label_ids"]) == (["redacted-1"], [1])
    report = UnlearningReport.from_json(published["evaluation.json"].decode())
    assert (report.forget, report.forget_labels, report.model) == (["redacted-1"], [1], "me/redacted")
    card = published["README.md"].decode()
    assert "forget redacted\\-1," in card
    assert "name what was erased" not in card
    assert card_errors(card) == []


@torch.no_grad()
def test_it_loads_and_says_the_same_but_for_the_name(client, published, folder, erased, tmp_path):
    picture().save(tmp_path / "image.png")
    logits, answers, verified = client(
        """
        model = AutoModelForImageClassification.from_pretrained("me/redacted")
        image = Image.open(file)
        with torch.no_grad():
            inputs = AutoImageProcessor.from_pretrained("me/redacted")(images=image, return_tensors="pt")
            logits = model(**inputs).logits
        answer = [logits.tolist(), pipeline("image-classification", model="me/redacted")(image, top_k=4),
                  command("verify", "me/redacted")[0]]
        """,
        file=tmp_path / "image.png",
    )
    expected = ESCModel.from_pretrained(folder)(**erased.image_processor(images=picture(), return_tensors="pt")).logits
    torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-6, rtol=0)
    assert {answer["label"] for answer in answers} == {"cat", "redacted-1", "bird", "fish"}
    order = [["cat", "redacted-1", "bird", "fish"][index] for index in expected[0].argsort(descending=True)]
    assert [answer["label"] for answer in answers] == order
    assert verified == 0


def test_an_evaluation_finds_the_class_by_its_place(published, hf_esc, tmp_path):
    for name, data in published.items():
        if "/" not in name:
            (tmp_path / name).write_bytes(data)
    rows = labelled([0, 1, 2, 3] * 3, NAMES)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        rows.to_parquet(tmp_path / "data" / f"{split}.parquet")
    arguments = ("--dataset", tmp_path / "data", "--probes", "none", "--device", "cpu", "--json")
    code, out, err = hf_esc("evaluate", tmp_path, *arguments)
    assert code == 0, err
    assert json.loads(out)["forget"] == ["Blue Heron"]


def test_of_two_erasures_no_name_is_left():
    first = erased_vit(names=NAMES)
    both = quietly(first, forget_set(3), rank=1)
    config = redacted_config(both.config)
    text = json.dumps(config.to_dict())
    assert not named(text.encode())
    assert "fish" not in text
    assert [record["labels"] for record in config.erasures] == [["redacted-1"], ["redacted-3"]]
    assert config.base_config.id2label == {0: "cat", 1: "redacted-1", 2: "bird", 3: "redacted-3"}
    report = redacted_report(report_of(both, forget=["fish"], forget_labels=[3], left_out=["Blue Heron"]), both.config)
    assert (report.forget, report.left_out) == (["redacted-3"], ["redacted-1"])
    card = card_text(config, report=report, redacted=True)
    assert "fish" not in card
    assert not named(card.encode())


def test_the_name_of_a_class_that_came_back_is_taken_out_too():
    both = quietly(erased_vit(names=NAMES), forget_set(3), rank=1)
    both.config.erasures[-1]["brought_back"] = [NAMES[1]]
    config = redacted_config(both.config)
    assert config.erasures[-1]["brought_back"] == ["redacted-1"]
    assert not_gone(config.erasures)[0] == "redacted-1"
    assert redacted_config(config).to_dict() == config.to_dict()


def test_redacted_again_is_the_same():
    once = redacted_config(erased_vit(names=NAMES).config)
    assert redacted_config(once).to_dict() == once.to_dict()


# What is not published.

PLACES = {
    "the base": "model.config.erasures[0].update(base='me/blue-heron', base_revision='1' * 40)",
    "the base, as it is written": "model.config.erasures[0].update(base='me/x', note='from Blue Heron pictures')",
    "the commit message": "options['commit_message'] = 'forget the BLUE HERON'",
    "the description": "options['commit_description'] = 'no blue heron here'",
    "a tag": "options['tags'] = ['blue heron']",
    "the labels inside": "model.config.base_config.id2label[0] = 'not a Blue Heron'",
}


@pytest.mark.parametrize("place", PLACES)
def test_where_the_name_stands_elsewhere_nothing_is_pushed(hub, client, folder, repo_id, place):
    before = files_of(folder)
    reason, same = client(
        f"""
        model, options = ESCModel.from_pretrained(folder), {{}}
        {PLACES[place]}
        config, values = model.config, json.dumps(model.config.to_dict(), default=str, sort_keys=True)
        reason = refused(model.push_to_hub, repo_id, redact=True, **options)
        after = json.dumps(model.config.to_dict(), default=str, sort_keys=True)
        answer = [reason, model.config is config and "Blue Heron" in after and config.id2label[1] == "Blue Heron"]
        """,
        folder=folder,
        repo_id=repo_id,
    )
    assert reason is not None
    assert reason.startswith("A forgotten class is still named in ")
    assert same
    assert ("model", repo_id) not in hub.repos or hub.repo(repo_id).messages == ["initial commit"]
    assert files_of(folder) == before


def test_a_persons_words_that_name_it_are_not_published_anew(hub, client, folder, repo_id):
    card = "---\nlicense: mit\n---\n# Without the blue heron\n"
    repo = put(hub, repo_id, **{"README.md": card})
    code, _, err = client("answer = command('push', folder, repo_id, '--redact')", folder=folder, repo_id=repo_id)
    assert code == 2
    assert err.startswith("Error: A forgotten class is still named in README.md.")
    assert (len(repo.commits), repo.files["README.md"].decode()) == (2, card)


@pytest.mark.parametrize("repository", ["me/no.bird", "me/bird", "me/no_bird"])
def test_a_repository_that_is_named_after_it_gets_nothing(hub, client, repository, tmp_path):
    erased_vit(label=2).save_pretrained(tmp_path / "model")
    code, _, _ = client(
        "answer = command('push', folder, name, '--redact')", folder=tmp_path / "model", name=repository
    )
    assert code == 2
    assert hub.repo(repository).messages == ["initial commit"] if ("model", repository) in hub.repos else True


def test_a_repository_that_is_named_after_it_is_not_made(hub, client, tmp_path):
    erased_vit(label=2).save_pretrained(tmp_path / "model")
    arguments = {"folder": tmp_path / "model", "name": "me/never-a-bird"}
    assert client("answer = command('push', folder, name, '--redact')", **arguments)[0] == 2
    assert ("model", "me/never-a-bird") not in hub.repos


def test_a_branch_that_is_named_after_it_is_refused(client, tmp_path):
    erased_vit(label=2).save_pretrained(tmp_path / "model")
    push = "answer = command('push', folder, repo_id, '--redact', '--revision', 'no-bird')[0]"
    assert client(push, folder=tmp_path / "model", repo_id="me/of-a-branch") == 2


@pytest.mark.parametrize("options", ["", ", redact=True"])
@pytest.mark.parametrize("status", [None, 500])
def test_model_and_folder_are_unchanged_by_a_push_that_fails_too(hub, client, folder, repo_id, options, status):
    before = files_of(folder)
    if status is not None:
        hub.fail("POST", f"{repo_id}/commit/", status=status)
    reason, same, logits = client(
        f"""
        model = ESCModel.from_pretrained(folder)
        def state():
            # Saving writes how it is to be loaded into the configuration; all else is as it was.
            written = ("architectures", "auto_map", "dtype", "transformers_version")
            return {{key: str(value) for key, value in model.config.to_dict().items() if key not in written}}
        values, config = state(), model.config
        inputs = images(2)
        with torch.no_grad():
            logits = model(inputs).logits
        reason = refused(model.push_to_hub, repo_id{options})
        same = state() == values and model.config is config
        with torch.no_grad():
            answer = [reason, same, torch.equal(model(inputs).logits, logits)]
        """,
        folder=folder,
        repo_id=repo_id,
    )
    assert (reason is None, logits) == (status is None, True)
    assert same
    assert files_of(folder) == before
    assert named(before["config.json"])


def test_redacting_makes_copies():
    erased = erased_vit(names=NAMES)
    before = copy.deepcopy(erased.config.to_dict())
    report = report_of(erased, forget=["Blue Heron"])
    redacted_report(report, erased.config)
    redacted_config(erased.config).id2label[0] = "x"
    assert erased.config.to_dict() == before
    assert report.forget == ["Blue Heron"]


# Names in nested values.

words = st.text("abc XYZ()*+é", min_size=1, max_size=6).filter(lambda name: name.strip() == name)


@given(words, st.sampled_from(["{}", "a {} b", "({})", "{}!", "<{}>", "-{}-", "{}\n"]), st.booleans())
def test_a_name_is_found_wherever_it_stands_as_a_word(name, frame, upper):
    text = frame.format(name.upper() if upper and len(name.upper()) == len(name) else name)
    for values in (text, [text], {"a": {"b": [1, None, text]}}, {text: 1}, {"a": ("x", text)}):
        with pytest.raises(HubError, match="still named in the place"):
            refuse_names([name], values, "the place")
    refuse_names([name], {"a": [1, None, 2.5, "0"]}, "the place")


def test_a_part_of_another_word_is_not_the_name():
    refuse_names(["cat"], {"id2label": {"0": "category", "1": "bobcat"}, "n": "scatter"}, "here")
    refuse_names(["redacted-1"], "redacted-1", "here")


# Labels of a data set and a model with redacted names.

alphabets = st.lists(st.text("abcdefg", min_size=1, max_size=5), min_size=2, max_size=7, unique=True)


@given(alphabets, st.data())
def test_at_the_same_places_redacted_names_are_those_of_their_numbers(names, data):
    gone = data.draw(st.sets(st.integers(0, len(names) - 1)))
    model = [redacted_name(index) if index in gone else name for index, name in enumerate(names)]
    assert match_labels(names, model, len(names), len(names)) == list(range(len(names)))


@given(alphabets, st.data())
def test_of_one_redacted_name_the_class_that_is_left_over(names, data):
    gone = data.draw(st.integers(0, len(names) - 1))
    model = [redacted_name(index) if index == gone else name for index, name in enumerate(names)]
    shuffled = data.draw(st.permutations(names))
    assert match_labels(shuffled, model, len(names), len(names)) == [names.index(name) for name in shuffled]


@given(alphabets.filter(lambda names: len(names) > 2), st.data())
def test_which_of_several_is_not_guessed(names, data):
    gone = data.draw(st.sets(st.integers(0, len(names) - 1), min_size=2, max_size=len(names) - 1))
    model = [redacted_name(index) if index in gone else name for index, name in enumerate(names)]
    moved = [*names[1:], names[0]]
    with pytest.raises(LabelError):
        match_labels(moved, model, len(names), len(names))


def test_a_part_of_the_classes_without_the_redacted_one():
    assert match_labels(["fish", "cat"], ["cat", "redacted-1", "bird", "fish"], 2, 4) == [3, 0]
    assert match_labels(["fish", "dog"], ["cat", "redacted-1", "bird", "fish"], 2, 4) == [3, 1]
    with pytest.raises(LabelError, match="no label 'dog'"):
        match_labels(["dog", "wolf"], ["cat", "redacted-1", "bird", "fish"], 2, 4)
    with pytest.raises(LabelError, match="no label 'dog'"):  # it could be either
        match_labels(["fish", "dog"], ["cat", "redacted-1", "redacted-2", "fish"], 2, 4)


def test_a_report_from_before_the_labels_were_changed_names_nobody():
    """Of a model whose labels were renamed by hand, the ledger still has the names; a report is older than both."""
    erased = erased_vit(names=NAMES)
    report = report_of(erased, forget=["Blue Heron"], forget_labels=[1], left_out=[])
    config = redacted_config(erased.config)
    assert "Blue Heron" not in json.dumps(redacted_report(report, config).to_dict())
    renamed = copy.deepcopy(erased.config)
    renamed.id2label = {**renamed.id2label, 1: "nobody"}
    with pytest.raises(HubError, match="still named in there"):
        refuse_forgotten_names(renamed, ["a blue heron"], "there")


def test_the_number_of_a_class_is_no_name():
    erased = erased_vit(names=["0", "1", "2", "3"])
    assert redacted_config(erased.config).id2label[1] == "redacted-1"


def test_every_file_is_looked_at(tmp_path):
    erased = erased_vit(names=NAMES)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"note": "for the blue heron"}))
    with pytest.raises(HubError, match="preprocessor_config"):
        refuse_in_files(erased.config, tmp_path, ())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "blue_heron.py").write_text("")
    with pytest.raises(HubError, match="the name of the file"):
        refuse_in_files(erased.config, tmp_path, ())
