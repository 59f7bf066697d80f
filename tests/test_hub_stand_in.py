"""What the real client pushes to the stand-in is what the stand-in holds, and what comes back."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.metadata import version

import pytest
from packaging.version import Version

from .hub import TOKEN, Repo, stand_in_hub

CLIENT = """
import json
from huggingface_hub import (
    CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, ModelCard, errors, snapshot_download,
)

def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except errors.HfHubHTTPError as error:
        return type(error).__name__

api, answer = HfApi(), {}
answer["user"] = api.whoami()["name"]
for repo_type in ("model", "dataset", "space"):
    url = api.create_repo("me/thing", repo_type=repo_type, private=repo_type == "dataset", space_sdk="gradio")
    assert (url.repo_id, url.repo_type) == ("me/thing", repo_type)
    assert api.create_repo("thing", repo_type=repo_type, space_sdk="gradio", exist_ok=True) == url
    at = {"repo_id": "me/thing", "repo_type": repo_type}
    files = {"a b/ç.bin": bytes(range(256)), "a b/c/d.txt": repo_type.encode(), "empty": b"", "e.txt": b"e"}
    first = api.create_commit(**at, operations=[CommitOperationAdd(*file) for file in files.items()],
                              commit_message="four files")
    again = api.create_commit(**at, operations=[CommitOperationAdd("e.txt", b"e")], commit_message="nothing new")
    assert again.oid == first.oid
    deleted = [CommitOperationDelete("a b/c/"), CommitOperationDelete("empty"), CommitOperationAdd("f", b"f")]
    second = api.create_commit(**at, operations=deleted, commit_message="fewer", parent_commit=first.oid)
    api.create_branch(**at, branch="my/branch", revision=first.oid)
    api.upload_file(**at, path_or_fileobj=b"g", path_in_repo="g", revision="my/branch", commit_message="on a branch")

    assert api.repo_info(**at).sha == second.oid
    refs = {ref.name: ref.target_commit for ref in api.list_repo_refs(**at).branches}
    assert refs["main"] == second.oid and set(refs) == {"main", "my/branch"}
    tree = api.list_repo_tree(**at, recursive=True, revision=first.oid)
    answer.setdefault("trees", []).append(sorted(entry.path for entry in tree))
    tree = api.list_repo_tree(**at, path_in_repo="a b", revision=first.oid)
    assert [entry.path for entry in tree] == ["a b/c", "a b/ç.bin"]
    info, = api.get_paths_info(**at, paths=["a b/ç.bin", "missing"])
    assert info.size == 256
    answer.setdefault("files", []).append(api.list_repo_files(**at))
    for revision, texts in {first.oid: {"e.txt", "a b/c/d.txt"}, "my/branch": {"g"}, "main": {"f"}}.items():
        folder = snapshot_download(**at, revision=revision)
        for name in texts:
            assert open(f"{folder}/{name}", "rb").read() == {**files, "f": b"f", "g": b"g"}[name]
    answer.setdefault("refusals", []).append([
        refusal(api.create_repo, **at, space_sdk="gradio"),
        refusal(api.repo_info, "me/other", repo_type=repo_type),
        refusal(api.repo_info, **at, revision="other"),
        refusal(api.hf_hub_download, **at, filename="other"),
        refusal(api.delete_file, "other", **at),
        refusal(api.create_commit, **at, operations=[CommitOperationAdd("h", b"")], commit_message="late",
                parent_commit=first.oid),
        refusal(api.upload_file, **at, path_or_fileobj=b"", path_in_repo="h", token=False),
        refusal(api.repo_info, **at, token=False),
    ])
with HfFileSystem().open("me/thing/a b/ç.bin", block_size=8) as file:
    file.seek(100)
    assert file.read(3) == bytes([100, 101, 102])
ModelCard("---\\nlicense: mit\\n---\\n# Thing\\n").push_to_hub("me/thing")
assert ModelCard.load("me/thing").data.license == "mit"
print(json.dumps(answer))
"""

TRANSFORMERS = """
import sys
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import (
    AutoModelForImageClassification, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification,
    ViTImageProcessor, pipeline,
)

torch.manual_seed(0)
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
config = ViTConfig(**sizes, image_size=8, patch_size=4, id2label={0: "cat", 1: "dog"})
model = ViTForImageClassification(config).eval()
processor = ViTImageProcessor(size={"height": 8, "width": 8})

def assert_equal(loaded, expected):
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)

model.push_to_hub("me/tiny", private=True, commit_message="the model")
processor.push_to_hub("me/tiny", commit_message="the processor")
assert_equal(AutoModelForImageClassification.from_pretrained("me/tiny").state_dict(), model.state_dict())
card = ModelCard.load("me/tiny")
card.data.pipeline_tag, card.data.library_name = "image-classification", "transformers"
card.push_to_hub("me/tiny", commit_message="the card")
classify = pipeline(model="me/tiny")
assert {score["label"] for score in classify(Image.new("RGB", (20, 10)))} == {"cat", "dog"}

data = [{"pixel_values": torch.randn(3, 8, 8), "labels": n % 2} for n in range(4)]
arguments = TrainingArguments(sys.argv[1], push_to_hub=True, hub_model_id="me/trained", max_steps=2, report_to=[],
                              use_cpu=True, save_strategy="no", disable_tqdm=True)
trainer = Trainer(model, arguments, train_dataset=data, processing_class=processor)
trainer.train()
trainer.push_to_hub(commit_message="trained", tags="vision")
assert_equal(AutoModelForImageClassification.from_pretrained("me/trained").state_dict(), model.state_dict())
"""

PULL_REQUESTS = """
import json, os
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi, errors, snapshot_download

api, answer = HfApi(), {}
for repo_type in ("model", "dataset"):
    api.create_repo("me/thing", repo_type=repo_type)
    at = {"repo_id": "me/thing", "repo_type": repo_type}
    start = api.upload_file(**at, path_or_fileobj=b"a", path_in_repo="a", commit_message="on main")

    def add(name, **kwargs):
        operations = [CommitOperationAdd(name, name.encode())]
        return api.create_commit(**at, operations=operations, commit_message=f"add {name}", **kwargs)

    first = add("b", create_pr=True)
    Path("folder").mkdir(exist_ok=True)
    Path("folder/c").write_bytes(b"c")
    second = api.upload_folder(**at, folder_path="folder", commit_message="a folder", create_pr=True)
    more = add("d", revision="refs/pr/2")
    add("e")
    third = add("f", create_pr=True, parent_commit=start.oid)
    try:
        add("g", create_pr=True, revision="refs/pr/1")
    except errors.RevisionNotFoundError:
        pass
    assert more.pr_url is None and [info.pr_num for info in (first, second, third)] == [1, 2, 3]
    refs = api.list_repo_refs(**at, include_pull_requests=True)
    heads = {"refs/pr/1": first.oid, "refs/pr/2": more.oid, "refs/pr/3": third.oid}
    assert {ref.ref: ref.target_commit for ref in refs.pull_requests} == heads
    assert [branch.name for branch in refs.branches] == ["main"]
    assert api.list_repo_refs(**at).pull_requests is None
    assert api.repo_info(**at, revision="refs/pr/1").sha == first.oid
    answer[repo_type] = {
        "urls": [info.pr_url for info in (first, second, third)],
        "revisions": [info.pr_revision for info in (first, second, third)],
        "files": [sorted(set(os.listdir(snapshot_download(**at, revision=revision))) - {".gitattributes"})
                  for revision in ("refs/pr/1", "refs/pr/2", "refs/pr/3", "main")],
    }
print(json.dumps(answer))
"""

CARDS = """
import json
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard

def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ValueError as error:
        return str(error)

api, unchecked, answer = HfApi(), HfApi(), {}
api.create_repo("me/thing")
unchecked._validate_yaml = lambda *args, **kwargs: None
for name, metadata in json.load(open("cards.json")).items():
    card = f"---\\n{metadata}\\n---\\n# {name}\\n".encode()
    answer[name] = [refusal(client.create_commit, "me/thing", [CommitOperationAdd("README.md", card)],
                            commit_message=name) for client in (api, unchecked)]
ModelCard("---\\nlicense: mit\\n---\\n").validate()
assert "license" in refusal(ModelCard("---\\nlicense: MIT\\n---\\n").validate)
print(json.dumps(answer))
"""

REQUESTS = """
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from huggingface_hub import HfApi, constants, hf_hub_download

constants.DOWNLOAD_CHUNK_SIZE = 10
api, folder = HfApi(), Path("folder")
folder.mkdir(exist_ok=True)
(folder / "new").write_bytes(b"new")
calls = {
    "upload": lambda repo_id: api.upload_file(repo_id=repo_id, path_or_fileobj=b"new", path_in_repo="new"),
    "upload a card": lambda repo_id: api.upload_file(repo_id=repo_id, path_or_fileobj=b"#", path_in_repo="README.md"),
    "upload a folder": lambda repo_id: api.upload_folder(repo_id=repo_id, folder_path=folder),
    "create": lambda repo_id: api.create_repo(repo_id, exist_ok=True),
    "info": api.repo_info,
    "list": lambda repo_id: list(api.list_repo_tree(repo_id)),
    "download": lambda repo_id: hf_hub_download(repo_id, "file"),
    "who": lambda _: api.whoami(),
}

def attempt(case):
    call, repo_id = case
    try:
        answer = calls[call](repo_id)
    except Exception as error:
        return type(error).__name__
    assert call != "download" or Path(answer).read_bytes() == bytes(range(200))

once, several = json.load(open("cases.json"))
with ThreadPoolExecutor(max(len(several), 1)) as pool:
    print(json.dumps([*map(attempt, once), *pool.map(attempt, several)]))
"""

RESULT = "{task: {type: image-classification}, dataset: {name: D, type: d}, metrics: [{type: accuracy, value: 1}]}"
METADATA = {
    "nothing": ("", None),
    "a full card": (
        f"""license: other
license_name: mine
base_model: [google/vit, resnet]
base_model_relation: finetune
datasets: cifar10
language: en
tags: [vision, "2024"]
pipeline_tag: image-classification
model-index: [{{name: M, results: [{RESULT}]}}]""",
        None,
    ),
    "a model that has no results": ("model-index: [{name: M, results: []}]", None),
    "YAML that does not parse": ("license: [mit", "Invalid YAML"),
    "a date that is none": ("date: 2024-99-99", "Invalid YAML"),
    "a list": ("- license", "must be an object"),
    "two licenses": ("license: [mit, other]", '"license" must be a str'),
    "no license": ("license:", '"license" is required'),
    "an unknown license": ("license: Apache 2", '"license" must be one of'),
    "a license that has no name": ("license: other", '"license_name" is required'),
    "a path as base model": ("base_model: /tmp/ç/model", '"base_model" with value "/tmp/\\u00e7/model"'),
    "a path among the base models": ("base_model: [google/vit, ./model]", '"base_model" with value "./model"'),
    "an empty base model": ("base_model: ''", '"base_model" with value ""'),
    "an unknown relation": ("base_model_relation: unlearned", '"base_model_relation" must be one of'),
    "a title as dataset": ("datasets: [CIFAR 10]", '"datasets" with value "CIFAR 10"'),
    "no dataset": ("datasets: [null]", '"datasets[0]" is required'),
    "a tag alone": ("tags: vision", '"tags" must be a list'),
    "a tag that is a number": ("tags: [2024]", '"tags[0]" must be a str'),
    "Norwegian": ("language: no", '"language" must be a list'),
    "a language that has no code": ("language: English", '"language" with value "English"'),
    "two tasks": ("pipeline_tag: [image-classification]", '"pipeline_tag" must be a str'),
    "an index of one": ("model-index: {name: M, results: []}", '"model-index" must be a list'),
    "a model that has no name": ("model-index: [{results: []}]", '"model-index[0].name" is required'),
    "a result that has no dataset": (
        "model-index: [{name: M, results: [{task: {type: t}, metrics: []}]}]",
        '"model-index[0].results[0].dataset" is required',
    ),
    "a metric that has no value": (
        f"model-index: [{{name: M, results: [{RESULT.replace('value', 'name')}]}}]",
        '"model-index[0].results[0].metrics[0].value" is required',
    ),
}

FAILURES = {
    "429": {"status": 429, "retry_after": 0},
    "500": {"status": 500},
    "503": {"status": 503, "retry_after": 0},
    "cut": {"status": None},
    "lost": {"status": None, "after": 0},
}
# What the client asks again for by itself, of huggingface_hub 2.4.
AGAIN = {
    ("upload", "POST", "/preupload/main"): {"429", "500", "503", "cut", "lost"},
    ("upload", "POST", "/commit/main"): set(),
    ("upload a folder", "POST", "/preupload/main"): {"429", "500", "503", "cut", "lost"},
    ("info", "GET", "$"): set(),
    ("list", "GET", "/tree/main"): {"429", "500", "503", "cut", "lost"},
    ("download", "HEAD", "/resolve/main/file"): {"429", "500", "503"},
    ("download", "GET", "/resolve/main/file"): {"429", "cut", "lost"},
}
ONCE = {
    ("who", ""): ("GET", "/api/whoami-v2"),
    ("create", "me/new"): ("POST", "/api/repos/create"),
    ("upload a card", "me/thing"): ("POST", "/api/validate-yaml"),
}


@pytest.fixture
def hub():
    with stand_in_hub() as hub:
        yield hub


def run(script, hub, tmp_path, **variables):
    """Run a script with the Hub it sees, and return what it printed."""
    command = [sys.executable, "-c", script, str(tmp_path / "output")]
    environment = hub.environment(tmp_path / "home", **variables)
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


CLIENT_VERSION = Version(version("huggingface_hub"))
checks_cards_here = pytest.mark.skipif(
    Version("2.2") > CLIENT_VERSION, reason="before 2.2, huggingface_hub checks cards at huggingface.co alone"
)
asks_again = pytest.mark.skipif(
    Version("2.1") > CLIENT_VERSION, reason="before 2.1, huggingface_hub asks again after fewer failures"
)


@checks_cards_here
def test_the_client_finds_what_it_committed(hub, tmp_path):
    answer = json.loads(run(CLIENT, hub, tmp_path))
    assert answer["user"] == "me"
    before = [".gitattributes", "a b", "a b/c", "a b/c/d.txt", "a b/ç.bin", "e.txt", "empty"]
    after = [".gitattributes", "a b/ç.bin", "e.txt", "f"]
    assert answer["trees"] == [before] * 3
    assert answer["files"] == [after] * 3
    missing = ["RepositoryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"]
    for private, refusals in zip([False, True, False], answer["refusals"], strict=True):
        assert refusals[0] == "HfHubHTTPError"
        assert refusals[1:4] == missing
        assert refusals[4:6] == ["RemoteEntryNotFoundError", "HfHubHTTPError"]
        assert refusals[6] is not None
        assert refusals[7] == ("RepositoryNotFoundError" if private else None)

    assert set(hub.repos) == {("model", "me/thing"), ("dataset", "me/thing"), ("space", "me/thing")}
    for (repo_type, _), repo in hub.repos.items():
        assert repo.private == (repo_type == "dataset")
        assert repo.messages[:4] == ["initial commit", "four files", "fewer", "on a branch"]
        assert repo.files["a b/ç.bin"] == bytes(range(256))
        assert repo.at("my/branch").files["a b/c/d.txt"] == repo_type.encode()
        assert repo.at("my/branch").files["empty"] == b""
    assert hub.repo("me/thing").files["README.md"] == b"---\nlicense: mit\n---\n# Thing\n"
    assert hub.repo("me/thing", "space").sdk == "gradio"


@pytest.mark.slow
@checks_cards_here
def test_transformers_loads_what_it_pushed(hub, tmp_path):
    run(TRANSFORMERS, hub, tmp_path)
    tiny, trained = hub.repo("me/tiny"), hub.repo("me/trained")
    assert (tiny.private, trained.private) == (True, False)
    assert tiny.messages[1:] == ["the model", "the processor", "the card"]
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} <= set(tiny.files)
    assert json.loads(tiny.files["config.json"])["id2label"] == {"0": "cat", "1": "dog"}
    assert "trained" in trained.messages
    assert {"README.md", "config.json", "model.safetensors", "training_args.bin"} <= set(trained.files)
    assert "- vision" in trained.files["README.md"].decode()


@pytest.mark.parametrize("without_xet", ["1", "0"], ids=["in one request", "opened, then committed to"])
def test_a_pull_request_leaves_the_branch_as_it_is(hub, tmp_path, without_xet):
    answers = json.loads(run(PULL_REQUESTS, hub, tmp_path, HF_HUB_DISABLE_XET=without_xet))
    for repo_type, answer in answers.items():
        page = f"{hub.url}/{'datasets/' if repo_type == 'dataset' else ''}me/thing/discussions"
        assert answer["urls"] == [f"{page}/1", f"{page}/2", f"{page}/3"]
        assert answer["revisions"] == ["refs/pr/1", "refs/pr/2", "refs/pr/3"]
        assert answer["files"] == [["a", "b"], ["a", "c", "d"], ["a", "f"], ["a", "e"]]
        repo = hub.repo("me/thing", repo_type)
        assert repo.pull_requests == ["add b", "a folder", "add f"]
        assert set(repo.files) == {".gitattributes", "a", "e"}
        assert repo.at("refs/pr/2").files["c"] == b"c"
    opened = [path for method, path, _ in hub.requests if (method, path[-12:]) == ("POST", "/discussions")]
    assert len(opened) == (0 if without_xet == "1" else 2)


@checks_cards_here
def test_a_card_is_refused_with_metadata_that_the_hub_refuses(hub, tmp_path):
    cards = {name: metadata for name, (metadata, _) in METADATA.items()}
    (tmp_path / "cards.json").write_text(json.dumps(cards))
    answer = json.loads(run(CARDS, hub, tmp_path))
    good = [name for name, (_, message) in METADATA.items() if message is None]
    for name, (_, message) in METADATA.items():
        checked, unchecked = answer[name]
        if message is None:
            assert (checked, unchecked) == (None, None), name
        else:
            assert checked.startswith("Invalid metadata in README.md."), name
            assert message in checked, name
            assert "Bad request for commit endpoint" in unchecked, name
            assert message in unchecked, name
    assert hub.repo("me/thing").messages == ["initial commit", *good]


def fill(hub, repo_id):
    """Put a repository with a file of 200 bytes on the Hub."""
    hub.repos["model", repo_id] = Repo(repo_id)
    hub.repo(repo_id).commit("main", "a file", {"file": bytes(range(200))})


@pytest.mark.slow
@asks_again
def test_the_client_asks_again_after_some_failures(hub, tmp_path):
    cases = [(*key, failure) for key in AGAIN for failure in FAILURES if (key[1], failure) != ("HEAD", "lost")]
    repo_ids = [f"me/r{index}" for index in range(len(cases))]
    for repo_id, (_, method, path, failure) in zip(repo_ids, cases, strict=True):
        fill(hub, repo_id)
        hub.fail(method, f"/{repo_id}{path}", **FAILURES[failure])
    calls = [(call, repo_id) for (call, *_), repo_id in zip(cases, repo_ids, strict=True)]
    (tmp_path / "cases.json").write_text(json.dumps([[], calls]))
    outcomes = json.loads(run(REQUESTS, hub, tmp_path))

    assert hub.failures == []
    errors = dict.fromkeys(FAILURES, "HfHubHTTPError") | dict.fromkeys(["cut", "lost"], "RemoteProtocolError")
    for (*key, failure), repo_id, outcome in zip(cases, repo_ids, outcomes, strict=True):
        _, method, path = key
        again = failure in AGAIN[tuple(key)]
        statuses = [s for m, p, s in hub.requests if m == method and re.search(f"/{repo_id}{path}", p)]
        first = FAILURES[failure]["status"] or {"lost": 200}.get(failure)
        assert (outcome, statuses) == ((None, [first, 200]) if again else (errors[failure], [first])), (key, failure)
        if method == "POST":
            assert ("new" in hub.repo(repo_id).files) == (again or failure == "lost"), (key, failure)


def test_the_client_asks_once_for_what_is_of_no_repository(hub, tmp_path):
    fill(hub, "me/thing")
    for method, path in ONCE.values():
        for failure in FAILURES.values():
            hub.fail(method, path, **failure)
    calls = [call for call in ONCE for _ in FAILURES]
    (tmp_path / "cases.json").write_text(json.dumps([calls, []]))
    outcomes = json.loads(run(REQUESTS, hub, tmp_path))
    assert outcomes == (["HfHubHTTPError"] * 3 + ["RemoteProtocolError"] * 2) * len(ONCE)
    assert [status for *_, status in hub.requests] == [429, 500, 503, None, 200] * len(ONCE)
    assert hub.failures == []


@pytest.mark.slow
@pytest.mark.parametrize(("without_xet", "commits"), [("1", 1), ("0", 2)])
def test_a_commit_is_made_though_its_answer_is_lost(hub, tmp_path, without_xet, commits):
    fill(hub, "me/thing")
    hub.fail("POST", "/commit/main", status=None, after=0)
    (tmp_path / "cases.json").write_text(json.dumps([[["upload a folder", "me/thing"]], []]))
    outcome = json.loads(run(REQUESTS, hub, tmp_path, HF_HUB_DISABLE_XET=without_xet))
    assert outcome == (["RemoteProtocolError"] if commits == 1 else [None])
    assert hub.repo("me/thing").messages[2:] == ["Upload folder using huggingface_hub"] * commits


def test_a_download_goes_on_where_it_was_cut(hub, tmp_path):
    fill(hub, "me/thing")
    hub.fail("GET", "/resolve/", status=None, after=120)
    (tmp_path / "cases.json").write_text(json.dumps([[["download", "me/thing"]], []]))
    assert json.loads(run(REQUESTS, hub, tmp_path)) == [None]
    assert [(method, status) for method, _, status in hub.requests] == [("HEAD", 200), ("GET", 200), ("GET", 206)]


def test_a_failure_befalls_as_many_requests_as_it_is_for(hub):
    hub.fail("GET", "/whoami", times=2, status=503, retry_after=7)
    hub.fail("GET", "/whoami", status=429, retry_after=7)
    headers = []
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{hub.url}/api/whoami-v2")
        headers.append((caught.value.code, caught.value.headers["Retry-After"], caught.value.headers["RateLimit"]))
    assert headers == [(503, "7", None)] * 2 + [(429, None, '"api";r=0;t=7')]
    request = urllib.request.Request(f"{hub.url}/api/whoami-v2", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    with pytest.raises(ValueError, match="after some bytes"):
        hub.fail("GET", "/", status=500, after=3)
