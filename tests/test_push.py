"""A push is one commit with all of an erased model, which comes back as it was, or nothing. By the real client."""

import copy
import json
import re
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers.dynamic_module_utils import get_relative_import_files

from hf_esc import ESCModel
from hf_esc.evaluation.report import UnlearningReport
from hf_esc.hub.card import BEGIN, END

from . import test_card
from .hub import TOKEN, Repo, card_errors
from .pictures import NAMES, picture
from .pushing import ROOT, erased_vit, forget_set, knows, put, report_of, tiny_vit
from .tiny import quietly, tiny

_MODELING = ROOT / "hf_esc" / "modeling" / "modeling_esc.py"
OWN_CODE = sorted({Path(file).name for file in [_MODELING, *get_relative_import_files(_MODELING)]})


@pytest.fixture(scope="module")
def erased():
    return erased_vit()


@pytest.fixture(scope="module")
def folder(erased, tmp_path_factory) -> Path:
    """A folder of an erased model, with its evaluation."""
    folder = tmp_path_factory.mktemp("a-secret-place") / "model"
    erased.save_pretrained(folder)
    (folder / "evaluation.json").write_text(report_of(erased, dataset=str(folder / "pictures")).to_json())
    return folder


@pytest.fixture
def repo_id(request) -> str:
    """A repository of this test's own."""
    return "me/" + re.sub(r"\W+", "-", request.node.name)[-60:].strip("-._")


PUSH = "answer = ESCModel.from_pretrained(folder).push_to_hub(repo_id{}).oid"
PUSH_REPORT = """
report = UnlearningReport.from_json(open(folder + "/evaluation.json").read())
answer = ESCModel.from_pretrained(folder).push_to_hub(repo_id, report=report).oid
"""
FILES = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", ".gitattributes", *OWN_CODE}
OF_REPORT = {"evaluation.json", "figures/retention.png"}


def texts(files: dict[str, bytes]) -> str:
    return "\n".join(data.decode() for name, data in files.items() if not name.endswith((".png", ".safetensors")))


# What is pushed, and what comes back.


@pytest.mark.parametrize("way", ["the method", "the command", "saving"])
def test_a_push_is_one_commit_with_all_of_it(hub, client, erased, folder, repo_id, way, tmp_path):
    code = {
        "the method": PUSH_REPORT,
        "the command": "answer = command('push', folder, repo_id)",
        "saving": "ESCModel.from_pretrained(folder).save_pretrained(copy, push_to_hub=True, repo_id=repo_id)",
    }[way]
    answer = client(code, folder=folder, repo_id=repo_id, copy=tmp_path / "copy")
    repo = hub.repo(repo_id)
    assert repo.messages == ["initial commit", "Upload an erased model"]
    assert set(repo.files) == FILES | (set() if way == "saving" else OF_REPORT)
    if way == "saving":
        assert (tmp_path / "copy" / "model.safetensors").read_bytes() == repo.files["model.safetensors"]
        assert "Not evaluated" in repo.files["README.md"].decode()
    else:
        found = UnlearningReport.from_json(repo.files["evaluation.json"].decode())
        assert (found.model, found.dataset) == (repo_id, "pictures")
        assert found.models == report_of(erased).models
        assert repo.files["figures/retention.png"].startswith(b"\x89PNG")
        assert "](figures/retention.png)" in repo.files["README.md"].decode()
    if way == "the command":
        url = f"{hub.url}/{repo_id}/commit/{repo.commits[-1].sha}"
        assert answer[:2] == [0, f"Pushed to {repo_id}: {url}\n"]
    assert card_errors(repo.files["README.md"].decode()) == []
    assert test_card.section(repo.files["README.md"].decode())
    assert f'model="{repo_id}"' in repo.files["README.md"].decode()
    # Neither a path of this machine, nor a picture, nor a pickle.
    assert "a-secret-place" not in texts(repo.files)
    assert str(tmp_path) not in texts(repo.files)
    assert b"a-secret-place" not in repo.files["model.safetensors"]
    assert {Path(name).suffix for name in repo.files} - {".png"} == {".md", ".json", ".py", ".safetensors", ""}
    assert [name for name in repo.files if name.endswith(".png")] == ["figures/retention.png"] * (way != "saving")


@torch.no_grad()
def test_what_is_pulled_is_the_model_that_was_pushed(client, without_hf_esc, erased, folder, repo_id, tmp_path):
    """By the Auto class, by a pipeline, and where hf_esc cannot be imported."""
    client(PUSH.format(""), folder=folder, repo_id=repo_id)
    picture().save(tmp_path / "image.png")
    pulled = client(
        """
        model = AutoModelForImageClassification.from_pretrained(repo_id)
        processor = AutoImageProcessor.from_pretrained(repo_id)
        image = Image.open(file)
        with torch.no_grad():
            logits = model(**processor(images=image, return_tensors="pt")).logits
        answer = [type(model).__module__, logits.tolist(), pipeline("image-classification", model=repo_id)(image)]
        """,
        repo_id=repo_id,
        file=tmp_path / "image.png",
    )
    code = """
    image = Image.open("image.png")
    model = AutoModelForImageClassification.from_pretrained(repo_id, **trusted)
    with torch.no_grad():
        inputs = AutoImageProcessor.from_pretrained(repo_id)(images=image, return_tensors="pt")
        logits = model(**inputs).logits
    answers = pipeline("image-classification", model=repo_id, **trusted)(image)
    answer = [type(model).__module__, logits.tolist(), answers]
    """
    alone = without_hf_esc(textwrap.dedent(code), tmp_path, repo_id=repo_id)
    local = ESCModel.from_pretrained(folder)
    expected = local(**erased.image_processor(images=picture(), return_tensors="pt")).logits
    assert (pulled[0], alone[0].split(".")[0]) == ("hf_esc.modeling.modeling_esc", "transformers_modules")
    scores = expected[0].softmax(0)
    for _, logits, answers in (pulled, alone):
        torch.testing.assert_close(torch.tensor(logits), expected, atol=1e-6, rtol=0)
        assert answers[0]["label"] == NAMES[int(expected.argmax())]
        found = {answer["label"]: answer["score"] for answer in answers}
        torch.testing.assert_close(torch.tensor([found[name] for name in NAMES]), scores, atol=1e-6, rtol=0)


def test_a_model_with_code_of_its_own_and_shards_comes_back(hub, client, repo_id, tmp_path):
    erased = quietly(tiny(), forget_set(), rank=1)
    erased.image_processor = tiny_vit().image_processor
    erased.save_pretrained(tmp_path / "all-cnn")
    push = PUSH.format(", max_shard_size='1KB', allow_incomplete=True")
    client(push, folder=tmp_path / "all-cnn", repo_id=repo_id)
    files = hub.repo(repo_id).files
    assert {"model.safetensors.index.json", "modeling_all_cnn.py", "configuration_all_cnn.py"} <= set(files)
    state = client(
        """
        loaded = AutoModelForImageClassification.from_pretrained(repo_id).state_dict()
        state = ESCModel.from_pretrained(folder).state_dict()
        answer = [sorted(loaded) == sorted(state), all(torch.equal(loaded[name], state[name]) for name in state)]
        """,
        folder=tmp_path / "all-cnn",
        repo_id=repo_id,
    )
    assert state == [True, True]
    # Weights in one file again: the shards go, or both would be there.
    client(PUSH.format(", allow_incomplete=True"), folder=tmp_path / "all-cnn", repo_id=repo_id)
    assert [name for name in hub.repo(repo_id).files if name.startswith("model")] == [
        "model.safetensors",
        *("modeling_all_cnn.py", "modeling_esc.py"),
    ] or sorted(name for name in hub.repo(repo_id).files if "safetensors" in name) == ["model.safetensors"]


def test_another_model_in_the_same_repository_is_verified(hub, client, folder, repo_id, tmp_path):
    erased = quietly(tiny(), forget_set(), rank=1)
    erased.image_processor = tiny_vit().image_processor
    erased.save_pretrained(tmp_path / "all-cnn")
    client(PUSH.format(", allow_incomplete=True"), folder=tmp_path / "all-cnn", repo_id=repo_id)
    client(PUSH.format(""), folder=folder, repo_id=repo_id)
    code, out, _ = client("answer = command('verify', repo_id)", repo_id=repo_id)
    assert (code, set(hub.repo(repo_id).files)) == (0, FILES), out


def test_a_pushed_model_is_verified(client, folder, repo_id):
    client(PUSH_REPORT, folder=folder, repo_id=repo_id)
    code, out, _ = client("answer = command('verify', repo_id)", repo_id=repo_id)
    assert code == 0
    marks = [line[:12].strip() for line in out.splitlines()]
    assert marks == ["ok"] * 4 + ["not checked"] + ["ok"] * 6 + ["not checked"]
    assert out.endswith("other files: not looked at: README.md, figures/retention.png\n")


# What is asked of the Hub.


def test_private_message_and_token_reach_the_hub(hub, client, folder, repo_id):
    options = f", private=True, commit_message='erased', token={TOKEN!r}"
    client("import os; os.environ['HF_TOKEN'] = 'wrong'\n" + PUSH.format(options), folder=folder, repo_id=repo_id)
    assert hub.repo(repo_id).private
    assert hub.repo(repo_id).messages[1:] == ["erased"]
    code, out, _ = client(
        "answer = command('push', folder, repo_id, '--private', '--message', 'mine', '--json', '--license', 'mit')",
        folder=folder,
        repo_id=repo_id + "-2",
    )
    assert (code, json.loads(out)["commit"]) == (0, hub.repo(repo_id + "-2").commits[-1].sha)
    assert hub.repo(repo_id + "-2").private
    assert hub.repo(repo_id + "-2").messages[1:] == ["mine"]
    assert "\nlicense: mit\n" in hub.repo(repo_id + "-2").files["README.md"].decode()


def test_a_new_branch_and_a_pull_request_leave_main_as_it_is(hub, client, folder, repo_id):
    answer = client(
        """
        model = ESCModel.from_pretrained(folder)
        model.push_to_hub(repo_id, revision="my/branch")
        model.push_to_hub(repo_id, revision="my/branch")
        answer = [model.push_to_hub(repo_id, create_pr=True).pr_url]
        answer.append(command("push", folder, repo_id, "--create-pr"))
        answer.append(command("push", folder, repo_id, "--revision", "another", "--message", "m"))
        answer.append(command("verify", repo_id, "--revision", "refs/pr/1")[0])
        """,
        folder=folder,
        repo_id=repo_id,
    )
    repo = hub.repo(repo_id)
    discussions = f"{hub.url}/{repo_id}/discussions"
    assert answer[0] == f"{discussions}/1"
    assert answer[1] == [0, f"Pushed to {repo_id}: {discussions}/2\n", ""]
    assert (answer[2][0], answer[3]) == (0, 0)
    assert set(repo.files) == {".gitattributes"}
    assert set(repo.branches) == {"main", "my/branch", "another", "refs/pr/1", "refs/pr/2"}
    assert set(repo.at("my/branch").files) == set(repo.at("refs/pr/1").files) == FILES
    assert set(repo.at("another").files) == FILES | OF_REPORT
    assert len(repo.commits) == 5


BASE = """
base = AutoModelForImageClassification.from_pretrained(base_id)
erased = quietly(base, [{**batch, "labels": torch.ones(16, dtype=torch.long)} for batch in batches(images(16))],
                 rank=1)
if sha is not None:
    erased.config.erasures[0].update(base=base_id, base_revision=sha)
answer = erased.push_to_hub(repo_id).oid
"""


def base_on(hub, base_id, tmp_path, card: str) -> Repo:
    model = knows(tiny_vit(), 1)
    model.save_pretrained(tmp_path / "base")
    model.image_processor.save_pretrained(tmp_path / "base")
    return put(hub, base_id, tmp_path / "base", **{"README.md": card})


def test_a_base_that_was_loaded_from_the_hub_is_known(hub, client, repo_id, tmp_path):
    base = base_on(hub, repo_id + "-base", tmp_path, "---\nlicense: mit\n---\n# Base\n")
    client(BASE, base_id=repo_id + "-base", repo_id=repo_id, sha=None)
    record = json.loads(hub.repo(repo_id).files["config.json"])["erasures"][0]
    assert (record["base"], record["base_revision"]) == (repo_id + "-base", base.commits[-1].sha)


def test_the_base_is_named_by_its_id_and_its_licence_is_inherited(hub, client, repo_id, tmp_path):
    base_id = repo_id + "-base"
    base = base_on(hub, base_id, tmp_path, "---\nlicense: mit\n---\n# Base\n")
    arguments = {"base_id": base_id, "sha": base.commits[-1].sha}
    client(BASE, repo_id=repo_id, **arguments)
    data = ModelCard(hub.repo(repo_id).files["README.md"].decode()).data
    assert (data.base_model, data.base_model_relation, data.license) == (base_id, "finetune", "mit")
    assert "preprocessor_config.json" in hub.repo(repo_id).files
    assert base.messages == ["initial commit", "by hand"]
    # What is on the card by now is the licence, whatever that of the base becomes; what is passed comes first.
    put(hub, repo_id + "-own", **{"README.md": "---\nlicense: apache-2.0\n---\n# Mine\n"})
    client(BASE, repo_id=repo_id + "-own", **arguments)
    assert ModelCard(hub.repo(repo_id + "-own").files["README.md"].decode()).data.license == "apache-2.0"
    client(BASE.replace("repo_id)", "repo_id, license='cc0-1.0')"), repo_id=repo_id, **arguments)
    assert ModelCard(hub.repo(repo_id).files["README.md"].decode()).data.license == "cc0-1.0"


def test_a_base_from_a_folder_is_not_named(hub, client, repo_id, tmp_path):
    model = knows(tiny_vit(), 1)
    model.save_pretrained(tmp_path / "base")
    model.image_processor.save_pretrained(tmp_path / "base")
    client(BASE, base_id=str(tmp_path / "base"), repo_id=repo_id, sha=None)
    files = hub.repo(repo_id).files
    assert "base_model" not in files["README.md"].decode()
    assert str(tmp_path) not in texts(files)


def test_a_base_with_a_licence_of_its_own_can_be_erased_and_pushed(hub, client, repo_id, tmp_path):
    base = base_on(hub, repo_id + "-base", tmp_path, "---\nlicense: other\nlicense_name: theirs\n---\n# Base\n")
    client(BASE, base_id=repo_id + "-base", repo_id=repo_id, sha=base.commits[-1].sha)
    assert "model.safetensors" in hub.repo(repo_id).files


# Again.


def test_a_second_push_without_changes_makes_no_commit(hub, client, folder, repo_id):
    first = client(PUSH_REPORT, folder=folder, repo_id=repo_id)
    assert client(PUSH_REPORT, folder=folder, repo_id=repo_id) == first
    assert client("answer = command('push', folder, repo_id)", folder=folder, repo_id=repo_id)[0] == 0
    assert len(hub.repo(repo_id).commits) == 2


def test_without_a_report_the_evaluation_of_an_earlier_push_goes(hub, client, folder, repo_id):
    client(PUSH_REPORT, folder=folder, repo_id=repo_id)
    client(PUSH.format(""), folder=folder, repo_id=repo_id)
    repo = hub.repo(repo_id)
    assert (len(repo.commits), set(repo.files)) == (3, FILES)
    card = repo.files["README.md"].decode()
    assert "Not evaluated" in card
    assert "model-index" not in card


def test_what_a_person_wrote_and_other_files_stay(hub, client, folder, repo_id):
    put(hub, repo_id, **{"README.md": test_card.OWN, "notes/mine.txt": "mine"})
    for _ in range(2):
        client(PUSH_REPORT, folder=folder, repo_id=repo_id)
    repo = hub.repo(repo_id)
    assert len(repo.commits) == 3
    card = repo.files["README.md"].decode()
    assert (card.count(BEGIN), card.count(END)) == (1, 1)
    assert "As ever." in card
    assert ModelCard(card).data.license_name == "mine"
    assert repo.files["notes/mine.txt"] == b"mine"


def test_a_card_that_cannot_be_read_is_left_alone(hub, client, folder, repo_id):
    put(hub, repo_id, **{"README.md": "---\nlicense: [mit\n---\n# Mine\n"})
    answer = client("answer = command('push', folder, repo_id)", folder=folder, repo_id=repo_id)
    assert answer[0] == 2
    assert answer[2].startswith("Error: The metadata of the README.md that is there cannot be read")
    assert hub.repo(repo_id).messages == ["initial commit", "by hand"]


# What goes wrong.

FAILURES = {
    "cut": ("POST", "/commit/", {"status": None}),
    "500": ("POST", "/commit/", {"status": 500}),
    "no repository": ("POST", "/api/repos/create", {"status": 503}),
    "the head is not told": ("GET", "ID$", {"status": 500}),
    "the card is not valid": ("POST", "/api/validate-yaml", {"status": 500}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_after_a_failure_the_repository_is_as_it_was_and_a_second_try_finishes(hub, client, folder, repo_id, failure):
    repo = put(hub, repo_id, **{"README.md": "# Mine\n"})
    before = list(repo.commits)
    method, path, options = FAILURES[failure]
    for _ in range(2):
        hub.fail(method, path.replace("ID", repo_id), **options)
    reason, told = client(
        """
        model = ESCModel.from_pretrained(folder)
        answer = [refused(model.push_to_hub, repo_id), command("push", folder, repo_id)]
        """,
        folder=folder,
        repo_id=repo_id,
    )
    hub.failures.clear()
    assert reason.startswith(f"{repo_id} was not pushed: ")
    assert (told[0], told[1]) == (2, "")
    assert re.fullmatch(rf"Error: {repo_id} was not pushed: [^\n]+ push again\.\n", told[2])
    assert repo.commits == before
    assert client("answer = command('push', folder, repo_id)[0]", folder=folder, repo_id=repo_id) == 0
    assert len(repo.commits) == len(before) + 1
    assert set(repo.files) == FILES | OF_REPORT


def test_where_the_hub_asks_to_wait_the_client_does(hub, client, folder, repo_id):
    hub.fail("POST", f"{repo_id}/preupload/", status=429, retry_after=0)
    client(PUSH.format(""), folder=folder, repo_id=repo_id)
    asked = [status for method, path, status in hub.requests if f"{repo_id}/preupload/" in path]
    assert asked == [429, 200]
    assert len(hub.repo(repo_id).commits) == 2


def test_with_a_wrong_token_nothing_is_made(hub, client, folder, repo_id):
    code = "import os; os.environ['HF_TOKEN'] = 'hf_wrong'; answer = command('push', folder, repo_id)"
    code, out, err = client(code, folder=folder, repo_id=repo_id)
    assert (code, out) == (2, "")
    assert re.match(rf"Error: {repo_id} was not pushed: .*401.* Log in with `hf auth login`", err.splitlines()[-1])
    assert ("model", repo_id) not in hub.repos


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub, client, folder, repo_id):
    hub.fail("POST", f"{repo_id}/commit/", status=None, after=0)
    push = "answer = refused(ESCModel.from_pretrained(folder).push_to_hub, repo_id)"
    assert client(push, folder=folder, repo_id=repo_id) is not None
    assert client(push, folder=folder, repo_id=repo_id) is None
    assert set(hub.repo(repo_id).files) == FILES
    assert len(hub.repo(repo_id).commits) == 2


def test_a_card_that_is_not_read_because_the_hub_fails_is_not_written_over(hub, client, folder, repo_id):
    repo = put(hub, repo_id, **{"README.md": test_card.OWN})
    for method in ("HEAD", "GET"):
        hub.fail(method, f"{repo_id}/resolve/.*README.md", times=50, status=503, retry_after=0)
    try:
        code = "answer = command('push', folder, repo_id)[0]"
        assert client(code, folder=folder, repo_id=repo_id) == 2
    finally:
        hub.failures.clear()
    assert repo.files["README.md"].decode() == test_card.OWN


def test_a_commit_of_somebody_else_is_not_written_over(hub, client, folder, repo_id):
    """It comes between the reading of the card and the commit, while the Hub makes the client wait."""
    repo = put(hub, repo_id, **{"README.md": "# Mine\n"})
    hub.fail("POST", f"{repo_id}/preupload/", status=429, retry_after=1)

    def somebody_else():
        deadline = time.monotonic() + 60
        while not any(f"{repo_id}/preupload" in path for _, path, _ in hub.requests) and time.monotonic() < deadline:
            time.sleep(0.01)
        repo.commit("main", "of somebody else", {"README.md": b"# Ours\n"})

    thread = threading.Thread(target=somebody_else)
    thread.start()
    code, _, err = client("answer = command('push', folder, repo_id)", folder=folder, repo_id=repo_id)
    thread.join()
    assert (code, repo.messages[2:], repo.files) == (2, ["of somebody else"], {"README.md": b"# Ours\n"})
    assert "somebody else has written to it meanwhile" in err
    assert client("answer = command('push', folder, repo_id)[0]", folder=folder, repo_id=repo_id) == 0
    assert repo.files["README.md"].decode().count("# Ours") == 1


# What is refused before anything is asked of the Hub.


def test_a_report_of_another_model_is_refused(hub, client, folder, repo_id, tmp_path):
    other = UnlearningReport.from_json((folder / "evaluation.json").read_text())
    other = test_card.replace(other, projection_sha256="0" * 64)
    (tmp_path / "other.json").write_text(other.to_json())
    reason, told = client(
        """
        other = UnlearningReport.from_json(open(file).read())
        answer = [refused(ESCModel.from_pretrained(folder).push_to_hub, repo_id, report=other),
                  command("push", folder, repo_id, "--report", file)]
        """,
        folder=folder,
        repo_id=repo_id,
        file=tmp_path / "other.json",
    )
    assert reason.startswith("The evaluation is of another model")
    assert told == [2, "", f"Error: {reason}\n"]
    assert ("model", repo_id) not in hub.repos


WRONG = {
    "a/b/c": ("FOLDER", "no name of a repository"),
    "../x": ("FOLDER", "no name of a repository"),
    "": ("FOLDER", "no name of a repository"),
    "x y": ("FOLDER", "no name of a repository"),
    "me/nothing": ("nowhere", "'nowhere' is no folder"),
    "me/plain": ("PLAIN", "holds a ViTForImageClassification, from which nothing was erased"),
    "me/redacted --space --redact": ("kr_score", "--redact and --license are about models"),
    "me/unknown --space": ("nothing_score", "There is no Space 'nothing_score' to push. There are: "),
    "x y --space": ("kr_score", "no name of a repository"),
    "me/report --report nothing.json": ("FOLDER", "The evaluation nothing.json cannot be read: No such file"),
    "me/report --report FOLDER/config.json": ("FOLDER", "This is no report of hf_esc"),
}


def test_what_is_at_fault_is_said_in_a_line_with_exit_code_2(hub, client, folder, tmp_path):
    model = tiny_vit()
    model.save_pretrained(tmp_path / "plain")
    places = {"FOLDER": str(folder), "PLAIN": str(tmp_path / "plain")}
    commands = []
    for words, (source, _) in WRONG.items():
        name, *options = re.split(r" (?=--)", words)
        options = [part.replace("FOLDER", str(folder)) for option in options for part in option.split(" ")]
        commands.append([places.get(source, source), name, *options])
    hub.requests.clear()
    answers = client("answer = [command('push', *one) for one in commands]", commands=commands)
    assert hub.requests == []
    for (words, (_, reason)), (code, out, err) in zip(WRONG.items(), answers, strict=True):
        assert (code, out, len(err.splitlines())) == (2, "", 1), (words, err)
        assert err.startswith("Error: "), words
        assert reason in err, words


def test_a_report_that_is_no_text_is_said_to_be_none(client, folder, repo_id, tmp_path):
    picture().save(tmp_path / "image.png")
    arguments = {"folder": folder, "repo_id": repo_id, "file": tmp_path / "image.png"}
    assert client("answer = command('push', folder, repo_id, '--report', file)[0]", **arguments) == 2


# Spaces.


def test_a_metric_that_was_pushed_is_loaded_by_name(hub, client, repo_id):
    name = "me/kr_score"
    told, again, found = client(
        """
        answer = [command("push", "kr_score", name, "--space", "--private", "--message", "the metric"),
                  command("push", "kr_score", name, "--space")[0]]
        metric = evaluate.load(name)
        result = metric.compute(
            predictions=[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], references=[0, 0, 1, 1],
            train_features=20 * [[0.0, 0.0], [1.0, 0.0]], train_labels=20 * [0, 1], forget_labels=[0], probe="knn")
        answer.append([type(metric).__module__.split(".")[0], result["forget_test"], result["retain_test"]])
        """,
        name=name,
    )
    space = hub.repo(name, "space")
    assert (told[0], again, found) == (0, 0, ["evaluate_modules", 50.0, 100.0])
    assert (space.sdk, space.private, space.messages) == ("gradio", True, ["initial commit", "the metric"])
    here = {path.name: path.read_bytes() for path in (ROOT / "metrics" / "kr_score").iterdir() if path.is_file()}
    assert space.files == {**here, ".gitattributes": b""}
    assert card_errors(here["README.md"].decode()) == []


# The Trainer.

TRAINED = """
from tests.esc_t import made
base = hf_esc.loading.load_classifier(folder, device="cpu")
data = [{**batch, "labels": base(**batch).logits.argmax(1).detach()} for batch in batches(images(16))]
data = [{name: value[data[0]["labels"] == data[0]["labels"][0]] for name, value in data[0].items()}]
trainer = made(base, data, output_dir=output, push_to_hub=True, hub_model_id=repo_id)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    trainer.train()
trainer.push_to_hub(commit_message="of the Trainer")
trainer.erased_model.push_to_hub(repo_id + "-model")
"""


@pytest.fixture(scope="module")
def both_cards(hub, client, tmp_path_factory):
    """The card by the Trainer, and that by the model that it made."""
    folder = tmp_path_factory.mktemp("plain")
    model = tiny_vit()
    model.save_pretrained(folder / "plain")
    model.image_processor.save_pretrained(folder / "plain")
    client(TRAINED, folder=folder / "plain", output=folder / "output", repo_id="me/trained")
    files = [hub.repo(name).files for name in ("me/trained", "me/trained-model")]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]
    return [file["README.md"].decode() for file in files]


def test_the_trainer_pushes_a_card_that_the_hub_takes(both_cards):
    for card in both_cards:
        assert card_errors(card) == []
        assert "| ESC-T |" in test_card.section(card)
    sections = [test_card.section(card).split("## Use it")[0] for card in both_cards]
    assert sections[0] == sections[1]


def test_the_trainer_pushes_the_same_section(both_cards):
    sections = [test_card.section(card).replace("me/trained-model", "me/trained") for card in both_cards]
    assert sections[0] == sections[1]


# No file of ours takes what can run code for data.

UNSAFE = [
    r"\b(import|from) (pickle|_pickle|cloudpickle|dill|joblib|marshal|shelve)\b",
    r"\b(pickle|dill|joblib)\.(load|loads|Unpickler)\b",
    r"torch\.load\((?![^)]*weights_only=True)",
    r"allow_pickle\s*=\s*True",
    r"yaml\.(load|full_load|unsafe_load)\w*\((?![^)]*Safe)",
    r"\b(eval|exec)\(",
    r"shell\s*=\s*True|os\.system\(",
    r"verify\s*=\s*False",
]


@pytest.mark.parametrize("pattern", UNSAFE)
def test_nothing_unpickles_or_runs_what_it_reads(pattern):
    sources = [file for part in ("hf_esc", "metrics", "examples") for file in (ROOT / part).rglob("*.py")]
    assert len(sources) > 60
    found = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for file in sources
        for line in file.read_text(encoding="utf-8").splitlines()
        if re.search(pattern, re.sub(r"\.eval\(", "", line))
    ]
    assert found == []


def test_a_model_that_was_trained_since_is_not_pushed_with_its_old_evaluation(client, erased, repo_id, tmp_path):
    model = copy.deepcopy(erased)
    report = report_of(model)
    (tmp_path / "report.json").write_text(report.to_json())
    with torch.no_grad():
        model.model.classifier.bias[0] += 1
    model.save_pretrained(tmp_path / "trained")
    push = "answer = command('push', folder, repo_id, '--report', report)"
    code, _, err = client(push, folder=tmp_path / "trained", repo_id=repo_id, report=tmp_path / "report.json")
    assert code == 2
    assert "evaluation is of another model" in err
