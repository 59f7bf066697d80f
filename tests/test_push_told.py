"""What a push says: all of the Hub's reason, how to log in, that a new repository is public, and the licence."""

import logging
from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalTokenNotFoundError

from hf_esc.errors import HubError
from hf_esc.hub.card import card_text
from hf_esc.hub.push import hub_errors, license_on, push, tell_if_public

from .pushing import erased_vit
from .test_card import configuration, parts
from .test_push import BASE, base_on


@pytest.fixture(name="repo_id")
def own_repository(request) -> str:
    """A repository of this test's own."""
    return "me/" + request.node.name.replace("_", "-")[-60:].strip("-")


class RefusalError(Exception):
    def __init__(self, text: str, status: int | None = None):
        super().__init__(text)
        self.response = SimpleNamespace(status_code=status)


REASONS = {
    "of several lines": (
        RefusalError("422 Client Error\n\nBad request:\n'license' must be\x1b[2J known"),
        False,
    ),
    "without a text": (RefusalError("", 500), False),
    "no token": (LocalTokenNotFoundError("Token is required"), True),
    "a wrong token": (RefusalError("Invalid username or password.", 401), True),
    "a token that may not write": (RefusalError("You don't have the rights", 403), True),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_whole_reason_is_told_in_one_line_with_what_to_do(name):
    error, log_in = REASONS[name]
    with pytest.raises(HubError) as raised, hub_errors("me/model"):
        raise error
    told = str(raised.value)
    assert told.isprintable()
    assert all(word in told for word in str(error).replace("\x1b", r"\x1b").split())
    assert ("hf auth login" in told) is log_in
    assert told.endswith("When the cause is mended, push again.")


@pytest.mark.parametrize(("private", "there", "said"), [(None, False, 1), (None, True, 0), (True, False, 0)])
def test_a_new_repository_is_called_public_before_it_is_made(caplog, private, there, said):
    api = SimpleNamespace(repo_exists=lambda repo_id, repo_type: there)
    with caplog.at_level(logging.WARNING):
        tell_if_public(api, "me/model", private)
    lines = [record.message for record in caplog.records]
    assert len(lines) == said
    assert all(
        "me/model is new, and everybody will be able to read it" in line and "--private" in line for line in lines
    )


OWN = {"license": "other", "license_name": "theirs", "license_link": "https://x.org/licence"}


def test_a_licence_of_its_own_has_its_name():
    text = "---\nlicense: other\nlicense_name: theirs\nlicense_link: https://x.org/licence\n---\n# Base\n"
    assert license_on(text) == OWN
    assert license_on(text.replace("license_name: theirs\n", "")) == {}
    assert license_on("---\nlicense: mit\nlicense_name: x\n---\n") == {"license": "mit"}
    assert license_on("# No licence") == {}
    metadata, _ = parts(card_text(configuration(), license=OWN))
    assert {key: metadata[key] for key in OWN} == OWN
    # A known licence takes the place of it, and its name goes.
    metadata, _ = parts(card_text(configuration(), existing=text, license="mit"))
    assert (metadata["license"], "license_name" in metadata, "license_link" in metadata) == ("mit", False, False)
    metadata, _ = parts(card_text(configuration(), existing=text))
    assert {key: metadata[key] for key in OWN} == OWN


@pytest.mark.parametrize(
    "options",
    [{"license": "other"}, {"license_name": "x"}, {"license": "mit", "license_name": "x"}, {"license_link": "x"}],
)
def test_a_licence_of_its_own_without_a_name_is_refused_before_anything_is_asked(options):
    with pytest.raises(HubError, match="a licence of its own is `other` with a name"):
        push(erased_vit(), "me/model", **options)


def test_the_licence_of_the_base_comes_along_with_its_name(hub, client, repo_id, tmp_path):
    card = "---\nlicense: other\nlicense_name: theirs\nlicense_link: https://x.org/licence\n---\n# Base\n"
    base = base_on(hub, repo_id + "-base", tmp_path, card)
    client(BASE, base_id=repo_id + "-base", repo_id=repo_id, sha=base.commits[-1].sha)
    data = ModelCard(hub.repo(repo_id).files["README.md"].decode()).data
    assert {key: getattr(data, key) for key in OWN} == OWN


def test_the_command_says_it_and_logs_in_is_its_advice(hub, client, repo_id, tmp_path):
    erased_vit().save_pretrained(tmp_path)
    told = client("answer = command('push', folder, repo_id)", folder=tmp_path, repo_id=repo_id)
    assert told[0] == 0
    assert f"{repo_id} is new, and everybody will be able to read it" in told[2]
    assert client("answer = command('push', folder, repo_id)[2]", folder=tmp_path, repo_id=repo_id) == ""
    own = "answer = command('push', folder, repo_id, '--license', 'other', '--license-name', 'mine')[0]"
    assert client(own, folder=tmp_path, repo_id=repo_id) == 0
    assert ModelCard(hub.repo(repo_id).files["README.md"].decode()).data.license_name == "mine"
    wrong = "import os; os.environ['HF_TOKEN'] = 'hf_wrong'; answer = command('push', folder, repo_id)"
    code, _, err = client(wrong, folder=tmp_path, repo_id=repo_id)
    assert (code, "hf auth login" in err) == (2, True)
