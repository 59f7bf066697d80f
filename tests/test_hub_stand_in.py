"""What the real client pushes to the stand-in is what the stand-in holds, and what comes back."""

import json
import subprocess
import sys

import pytest

from .hub import stand_in_hub

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


@pytest.fixture
def hub():
    with stand_in_hub() as hub:
        yield hub


def run(script, hub, tmp_path):
    """Run a script with the Hub it sees, and return what it printed."""
    command = [sys.executable, "-c", script, str(tmp_path / "output")]
    environment = hub.environment(tmp_path / "home")
    process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-4000:]
    return process.stdout


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
