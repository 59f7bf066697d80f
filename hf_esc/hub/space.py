"""Push a metric or the demo to the Hub as a Space."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import HubError
from ..evaluation.metric_folders import METRICS
from .push import hub_errors, tell_if_public

_IGNORED = ["__pycache__/*", "*.pyc", "flagged/*", ".gradio/*"]


def spaces() -> dict[str, Path]:
    """The folders of what can be pushed as a Space, by name: each metric, and `demo`."""
    found = {folder.name: folder for folder in sorted(METRICS.iterdir()) if (folder / "app.py").is_file()}
    here = Path(__file__).parents[1]
    demo = here / "space" if (here / "space").is_dir() else here.parent / "examples" / "space"
    return found | ({"demo": demo} if (demo / "app.py").is_file() else {})


def push_space(
    name: str,
    repo_id: str,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
) -> CommitInfo:
    """
    Push one of [`spaces`] in one commit.

    After that, `evaluate.load("user/kr_score")` loads a metric, where hf_esc is installed.

    Args:
        name (`str`): Which one.
        repo_id (`str`): `name` or `user/name`; made, with gradio, if it is not there.
        private, token, revision, create_pr, message (*optional*): As in `HfApi.upload_folder`.

    Raises:
        HubError: If there is no such thing to push, or the Hub cannot be reached or refuses.
    """
    there = spaces()
    if name not in there:
        raise HubError(f"There is no Space {name!r} to push. There are: {', '.join(there)}.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository: {error}") from error
    api = HfApi(token=token)
    with hub_errors(repo_id):
        tell_if_public(api, repo_id, private, "space")
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(url.repo_id, branch=revision, repo_type="space", exist_ok=True)
        return api.upload_folder(
            repo_id=url.repo_id,
            repo_type="space",
            folder_path=there[name],
            commit_message=message or f"Upload {name}",
            revision=revision,
            create_pr=create_pr,
            ignore_patterns=_IGNORED,
        )
