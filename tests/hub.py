"""A stand-in for the Hugging Face Hub on 127.0.0.1: enough of it for the real client to push, list and load.

It holds models, datasets and Spaces with their commits and branches. The bytes of every file ride in the commit: there
is no LFS (on which `Dataset.push_to_hub` counts) and no Xet, nor are there pull requests, tags or a check of a card's
metadata. A private repository is there only for a request with the token, and nobody writes without it.

The client reads its environment when it is imported, so it runs in a process of its own:

    with stand_in_hub() as hub:
        subprocess.run([sys.executable, "-c", script], env=hub.environment(tmp_path), check=True)
        assert "config.json" in hub.repo("me/tiny").files
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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

USER, TOKEN = "me", "hf_test"
REPOSITORY = re.compile(r"/api/(model|dataset|space)s/([^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/(.+))?)?)?")
RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")


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
    """A repository; like the Hub's, it begins with a commit of `.gitattributes`."""

    def __init__(self, repo_id: str, repo_type: str = "model", private: bool = False, sdk: str | None = None):
        self.id, self.type, self.private, self.sdk = repo_id, repo_type, private, sdk
        self.commits: list[Commit] = []
        self.branches: dict[str, str] = {}
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

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision.removeprefix("refs/heads/"), revision)
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Hub(ThreadingHTTPServer):
    """The server: its `url`, its `repos` by type and id, and the `requests` that came as (method, path, status)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[tuple[str, str], Repo] = {}
        self.requests: list[tuple[str, str, int]] = []
        self.lock = threading.Lock()

    def repo(self, repo_id: str, repo_type: str = "model") -> Repo:
        return self.repos[repo_type, repo_id]

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
            try:
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
        if self.command != "HEAD":
            self.wfile.write(data)

    do_HEAD = do_GET = do_POST = handle_request  # noqa: N815

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
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            self.need_token()
            return self.create(**json.loads(self.body))
        if match := REPOSITORY.fullmatch(path):
            repo_type, repo_id, what, revision, rest = (part and unquote(part) for part in match.groups())
            repo = self.find(repo_id, repo_type)
            if (serve := getattr(self, f"{self.command}_{what or 'revision'}".replace("-", "_"), None)) is not None:
                if what in ("preupload", "commit", "branch"):
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
        heads = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in repo.branches.items()]
        return {"branches": heads, "converts": [], "tags": [], "pullRequests": []}

    def POST_paths_info(self, repo: Repo, revision: str, _):  # noqa: N802
        entries = entries_of(repo.at(revision))
        return [entries[path] for path in parse_qs(self.body.decode()).get("paths", []) if path in entries]

    def POST_branch(self, repo: Repo, name: str, _):  # noqa: N802
        if name in repo.branches:
            raise Refused(409, f"Branch {name} already exists")
        repo.branches[name] = repo.at(json.loads(self.body).get("startingPoint", "main")).sha
        return {}

    def POST_preupload(self, repo: Repo, revision: str, _):  # noqa: N802
        there, answer = repo.at(revision).files, {"uploadMode": "regular", "shouldIgnore": False}
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        # By the id of what is there, the client leaves an unchanged file out of the commit.
        return {"files": [{"path": p, **answer, "oid": blob_id(there[p]) if p in there else None} for p in paths]}

    def POST_commit(self, repo: Repo, branch: str, _):  # noqa: N802
        if branch not in repo.branches or "create_pr" in self.path:
            raise Refused(404, f"Not a branch: {branch}", "RevisionNotFound")
        head = repo.at(branch)
        files, message = dict(head.files), ""
        for line in self.body.splitlines():
            operation = json.loads(line)
            match operation["key"], operation["value"]:
                case "header", header:
                    message = header["summary"]
                    if header.get("parentCommit", head.sha) != head.sha:
                        raise Refused(412, "A commit has happened since. Please refresh and try again.")
                case "file", added:
                    files[added["path"]] = b64decode(added["content"])
                case ("deletedFile" | "deletedFolder") as kind, deleted:
                    path = PurePosixPath(deleted["path"])
                    gone = [n for n in files if path in (PurePosixPath(n), *PurePosixPath(n).parents)]
                    if not gone or (kind == "deletedFile") != (str(path) in files):
                        raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                    files = {name: files[name] for name in files if name not in gone}
                case other, _:
                    raise Refused(400, f"The stand-in does not take {other}")
        sha = repo.commit(branch, message, files).sha
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.page(repo)}/commit/{sha}"}


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
