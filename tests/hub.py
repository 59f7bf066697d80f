"""A stand-in for the Hugging Face Hub on 127.0.0.1: enough of it for the real client to push, list and load.

It holds models, datasets and Spaces with their commits, branches and pull requests. The bytes of every file ride in
the commit: there is no LFS (on which `Dataset.push_to_hub` counts) and no Xet, nor are there tags, discussions or
merges. A private repository is there only for a request with the token, and nobody writes without it. A README.md is
refused for metadata that the real Hub refuses, as far as that is known: what passes here may still be refused there.

The client reads its environment when it is imported, so it runs in a process of its own:

    with stand_in_hub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        assert "config.json" in hub.repo("me/tiny").files

`fail` says which of the requests to come go wrong, and how:

    hub.fail("POST", "/commit/", status=503)  # The next commit is not made.
    hub.fail("POST", "/commit/", status=None, after=0)  # The next commit is made, and its author does not hear of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

USER, TOKEN = "me", "hf_test"
REPOSITORY = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?")
RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
FRONT_MATTER = re.compile(r"\s*---[ \t]*\r?\n(.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)

RESULT = {
    "task": {"type": str},
    "dataset": {"name": str, "type": str},
    "metrics": [{"type": str, "value": object}],
}
CARD = {
    **dict.fromkeys(["license", "license_name", "pipeline_tag", "library_name", "base_model_relation"], str),
    **{key: [str] for key in ["base_model", "datasets", "language", "tags"]},
    "model-index": [{"name": str, "results": [RESULT]}],
}
ONE_OR_MANY = ("base_model", "datasets", "language")
RELATIONS = ("adapter", "merge", "quantized", "finetune")
# There are more of them in https://huggingface.co/docs/hub/repositories-licenses.
LICENSES = {"apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "openrail", "bigscience-openrail-m", "cc"}
LICENSES |= {"cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-4.0"}
LICENSES |= {"cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "unlicense", "unknown", "other"}


class Refused(Exception):  # noqa: N818
    """An answer that is an error: its status, its message and the code by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, "X-Error-Code": code, **headers}


class Commit(NamedTuple):
    """The files after a commit."""

    message: str
    files: dict[str, bytes]
    sha: str


class Repo:
    """A repository; like the Hub's, it begins with a commit of `.gitattributes`.

    `pull_requests` are the titles of these, and `branches` the commits at the head of every branch and `refs/pr/N`.
    """

    def __init__(self, repo_id: str, repo_type: str = "model", private: bool = False, sdk: str | None = None):
        self.id, self.type, self.private, self.sdk = repo_id, repo_type, private, sdk
        self.commits: list[Commit] = []
        self.branches: dict[str, str] = {}
        self.pull_requests: list[str] = []
        self.commit("main", "initial commit", {".gitattributes": b""})

    @property
    def files(self) -> dict[str, bytes]:
        """The bytes of the main branch's files, by path."""
        return self.at("main").files

    @property
    def messages(self) -> list[str]:
        return [commit.message for commit in self.commits]

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        content = [self.id, len(self.commits), message, sorted((path, blob_id(data)) for path, data in files.items())]
        self.commits.append(Commit(message, files, hashlib.sha1(json.dumps(content).encode()).hexdigest()))
        self.branches[branch] = self.commits[-1].sha
        return self.commits[-1]

    def open_pull_request(self, title: str, start: Commit) -> int:
        """Open a pull request that has no commit of its own yet, and return its number."""
        self.pull_requests.append(title)
        self.branches[f"refs/pr/{len(self.pull_requests)}"] = start.sha
        return len(self.pull_requests)

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass
class Failure:
    """What befalls the next requests of a kind; see `Hub.fail`."""

    method: str
    path: str
    times: int
    status: int | None
    after: int | None
    headers: dict[str, str]


class Hub(ThreadingHTTPServer):
    """The server: its `url`, its `repos` by type and id, and the `requests` that came as (method, path, status).

    The status is None where the connection was cut before an answer. `failures` are those that are still to come.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str, int | None]] = []
        self.failures: list[Failure] = []
        self.lock = threading.Lock()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

    def fail(
        self,
        method: str,
        path: str,
        times: int = 1,
        status: int | None = 500,
        *,
        after: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Let the next `times` requests fail whose method it is and in whose path, with its query, a regex is found.

        A request that fails with a status is not carried out, and `retry_after` tells the client how many seconds to
        wait: by the Hub's headers of a rate limit with status 429, else by Retry-After. With a status of None the
        connection is cut: before the request is carried out, or, with `after`, once it is carried out and that many
        bytes of the answer's body are sent.
        """
        if after is not None and status is not None:
            raise ValueError("Only a connection that is cut (status=None) is cut after some bytes.")
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        if headers and status == 429:
            headers = {"RateLimit": f'"api";r=0;t={retry_after}', "RateLimit-Policy": '"fixed window";"api";q=9;w=9'}
        with self.lock:
            self.failures.append(Failure(method, path, times, status, after, headers))

    def next_failure(self, method: str, path: str) -> Failure | None:
        for failure in self.failures:
            if failure.method == method and re.search(failure.path, path):
                failure.times -= 1
                if failure.times <= 0:
                    self.failures.remove(failure)
                return failure
        return None

    def environment(self, home: str | Path, **variables: str) -> dict[str, str]:
        """Return the environment of a process whose Hub is this one and whose caches are in `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        ours = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"}
        ours |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
        return {**kept, **ours, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **variables}


class Handler(BaseHTTPRequestHandler):
    """A connection. `answer` returns a file's bytes or what is sent as JSON, with a status and headers if need be."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle_request(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            failure = self.server.next_failure(self.command, self.path)
            if failure and failure.status is None and failure.after is None:
                self.server.requests.append((self.command, self.path, None))
                self.close_connection = True
                return
            try:
                if failure and failure.status:
                    raise Refused(failure.status, "The test wanted this to fail", **failure.headers)
                reply = self.answer(urlsplit(self.path).path)
            except Refused as refused:
                reply = refused.status, refused.headers, {"error": str(refused)}
            status, headers, content = reply if isinstance(reply, tuple) else (200, {}, reply)
            self.server.requests.append((self.command, self.path, status))
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(data)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if failure and failure.after is not None:
            self.close_connection, data = True, data[: failure.after]
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET = do_POST = handle_request  # noqa: N815

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def log_message(self, *args):
        pass

    def answer(self, path: str):
        if self.command != "POST" and (match := RESOLVE.fullmatch(path)):
            repo_type, repo_id, revision, name = (part and unquote(part) for part in match.groups())
            return self.resolve(self.find(repo_id, repo_type or "model").at(revision), name)
        if path == "/api/whoami-v2":
            self.need_token()
            return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}
        if path == "/api/validate-yaml":
            card = json.loads(self.body)["content"]
            errors = [{"message": message} for message in card_errors(card)]
            warnings = [] if FRONT_MATTER.match(card) else [{"message": "empty or missing yaml metadata in repo card"}]
            return 400 if errors else 200, {}, {"errors": errors, "warnings": warnings}
        if path == "/api/repos/create":
            self.need_token()
            return self.create(**json.loads(self.body))
        if match := REPOSITORY.fullmatch(path):
            repo_type, repo_id, what, revision, rest = (part and unquote(part) for part in match.groups())
            repo = self.find(repo_id, repo_type)
            if (serve := getattr(self, f"{self.command}_{what or 'revision'}".replace("-", "_"), None)) is not None:
                if what in ("preupload", "commit", "branch") or (self.command, what) == ("POST", "discussions"):
                    self.need_token()
                return serve(repo, revision or "main", rest)
        raise Refused(404, f"The stand-in does not serve {self.command} {self.path}")

    def need_token(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials in Authorization header")

    def find(self, repo_id: str, repo_type: str) -> Repo:
        repo = self.server.repos.get((repo_type, repo_id))
        if repo is None or (repo.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            raise Refused(404, "Repository not found", "RepoNotFound")
        return repo

    def create(self, name, organization=None, type="model", visibility="public", sdk=None, **_):
        key = type, f"{organization or USER}/{name}"
        there = key in self.server.repos
        if not there:
            self.server.repos[key] = Repo(key[1], type, visibility == "private", sdk)
        return 409 if there else 200, {}, {"url": self.page(self.server.repos[key]), "name": key[1]}

    def page(self, repo: Repo) -> str:
        return f"{self.server.url}/{'' if repo.type == 'model' else repo.type + 's/'}{repo.id}"

    def resolve(self, commit: Commit, name: str):
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if name not in commit.files:
            raise Refused(404, f"{name} does not exist", "EntryNotFound", **headers)
        content = commit.files[name]
        headers["ETag"] = f'"{blob_id(content)}"'
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, end = int(part[1]), min(int(part[2] or len(content)) + 1, len(content))
            return 206, {**headers, "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}, content[first:end]
        return 200, headers, content

    def GET_revision(self, repo: Repo, revision: str, _):  # noqa: N802
        commit = repo.at(revision)
        card = commit.files.get("README.md", b"").decode().partition("\n---")[0]
        # A pipeline that was given no task asks for these; the real Hub also guesses them from config.json.
        metadata = dict(re.findall(r"^(library_name|pipeline_tag): *(\S+) *$", card, re.MULTILINE))
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        info = {"id": repo.id, "sha": commit.sha, "private": repo.private, "sdk": repo.sdk, "tags": []}
        return {**info, "siblings": siblings, **metadata}

    def GET_tree(self, repo: Repo, revision: str, folder: str | None):  # noqa: N802
        entries, root = entries_of(repo.at(revision)), PurePosixPath(folder or "")
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        depth = None if "recursive=true" in self.path.lower() else 1
        return [entry for path, entry in entries.items() if root in list(PurePosixPath(path).parents)[:depth]]

    def GET_refs(self, repo: Repo, *_):  # noqa: N802
        refs = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for name, sha in repo.branches.items():
            kind, ref = ("pullRequests", name) if is_pull_request(name) else ("branches", f"refs/heads/{name}")
            refs[kind].append({"name": name, "ref": ref, "targetCommit": sha})
        return refs if "include_prs" in self.query else {**refs, "pullRequests": []}

    def POST_paths_info(self, repo: Repo, revision: str, _):  # noqa: N802
        entries = entries_of(repo.at(revision))
        return [entries[path] for path in parse_qs(self.body.decode()).get("paths", []) if path in entries]

    def POST_branch(self, repo: Repo, name: str, _):  # noqa: N802
        if name in repo.branches:
            raise Refused(409, f"Branch {name} already exists")
        repo.branches[name] = repo.at(json.loads(self.body).get("startingPoint", "main")).sha
        return {}

    def POST_discussions(self, repo: Repo, *_):  # noqa: N802
        asked = json.loads(self.body)
        if not asked.get("pullRequest"):
            raise Refused(400, "The stand-in opens pull requests only")
        return {"num": repo.open_pull_request(asked["title"], repo.at("main"))}

    def GET_discussions(self, repo: Repo, number: str, _):  # noqa: N802
        if f"refs/pr/{number}" not in repo.branches:
            raise Refused(404, "Discussion not found")
        discussion = {"num": int(number), "title": repo.pull_requests[int(number) - 1], "status": "draft"}
        discussion |= {"author": {"name": USER}, "createdAt": "2026-01-01T00:00:00.000Z", "isPullRequest": True}
        discussion |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": [], "diff": ""}
        return {**discussion, "repo": {"name": repo.id, "type": repo.type}}

    def POST_preupload(self, repo: Repo, revision: str, _):  # noqa: N802
        there, answer = repo.at(revision).files, {"uploadMode": "regular", "shouldIgnore": False}
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        # By the id of what is there, the client leaves an unchanged file out of the commit.
        return {"files": [{"path": p, **answer, "oid": blob_id(there[p]) if p in there else None} for p in paths]}

    def POST_commit(self, repo: Repo, branch: str, _):  # noqa: N802
        opens = "create_pr" in self.query
        if branch not in repo.branches or (opens and is_pull_request(branch)):
            raise Refused(404, f"Not a branch: {branch}", "RevisionNotFound")
        head = repo.at(branch)
        files, message = dict(head.files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            match operation["key"], operation["value"]:
                case "header", header:
                    message = header["summary"]
                    parent = header.get("parentCommit", head.sha)
                    if opens:
                        files = dict(repo.at(parent).files)
                    elif parent != head.sha:
                        raise Refused(412, "A commit has happened since. Please refresh and try again.")
                case "file", added:
                    files[added["path"]] = b64decode(added["content"])
                    if added["path"] == "README.md" and (errors := card_errors(files["README.md"].decode())):
                        raise Refused(400, "Invalid metadata in README.md: " + "; ".join(errors))
                case ("deletedFile" | "deletedFolder") as kind, deleted:
                    path = PurePosixPath(deleted["path"])
                    gone = [n for n in files if path in (PurePosixPath(n), *PurePosixPath(n).parents)]
                    if not gone or (kind == "deletedFile") != (str(path) in files):
                        raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                    files = {name: files[name] for name in files if name not in gone}
                case other, _:
                    raise Refused(400, f"The stand-in does not take {other}")
        answer = {"success": True}
        if opens:
            number = repo.open_pull_request(message, head)
            branch, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{self.page(repo)}/discussions/{number}"
        sha = repo.commit(branch, message, files).sha
        return {**answer, "commitOid": sha, "commitUrl": f"{self.page(repo)}/commit/{sha}"}


def is_pull_request(revision: str) -> bool:
    return revision.startswith("refs/pr/")


def card_errors(card: str) -> list[str]:
    """Return what the Hub has against a card's metadata."""
    match = FRONT_MATTER.match(card)
    try:
        metadata = yaml.safe_load(match[1]) if match else None
    except (yaml.YAMLError, ValueError) as error:
        return ["Invalid YAML: " + json.dumps(str(getattr(error, "problem", error)))]
    if metadata is None:
        return []
    if not isinstance(metadata, dict):
        return ["The metadata must be an object"]
    errors = []
    for key in CARD.keys() & metadata:
        value = metadata[key]
        if key in ONE_OR_MANY and isinstance(value, str):
            value = metadata[key] = [value]
        errors += misfits(value, CARD[key], key)
    if errors:
        return sorted(errors)
    for key in ("base_model", "datasets"):
        for name in metadata.get(key, []):
            try:
                validate_repo_id(name)
            except HFValidationError:
                errors.append(f'"{key}" with value {json.dumps(name)} is not the id of a repository')
    for language in metadata.get("language", []):
        if not re.fullmatch("[a-z]{2,3}|code|multilingual", language):
            errors.append(f'"language" with value {json.dumps(language)} is not an ISO 639 code')
    if metadata.get("license", "unknown") not in LICENSES:
        errors.append(f'"license" must be one of {sorted(LICENSES)}')
    if metadata.get("license") == "other" and "license_name" not in metadata:
        errors.append('"license_name" is required with the license "other"')
    if metadata.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {RELATIONS}')
    return errors


def misfits(value, shape, where: str) -> Iterator[str]:
    """Tell where a value is not of a shape: a type, a list of the items' shape, or a dict with what it needs."""
    kind = shape if isinstance(shape, type) else type(shape)
    if value is None or not isinstance(value, kind):
        yield f'"{where}" must be a {kind.__name__}' if value is not None else f'"{where}" is required'
    elif kind is list:
        for index, item in enumerate(value):
            yield from misfits(item, shape[0], f"{where}[{index}]")
    elif kind is dict:
        for key, needed in shape.items():
            yield from misfits(value.get(key), needed, f"{where}.{key}")


def blob_id(data: bytes) -> str:
    """Return git's id of a file, which is also its ETag."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def entries_of(commit: Commit) -> dict[str, dict]:
    """Return what the Hub lists of the files and of the folders they are in, by path."""
    files = {p: {"type": "file", "path": p, "size": len(d), "oid": blob_id(d)} for p, d in commit.files.items()}
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    return dict(sorted({**files, **{p: {"type": "directory", "path": p, "oid": commit.sha} for p in folders}}.items()))


@contextmanager
def stand_in_hub() -> Iterator[Hub]:
    """Serve an empty Hub from a thread, on a free port, until the block ends."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
