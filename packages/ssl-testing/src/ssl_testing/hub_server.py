"""A small Hub on 127.0.0.1, for tests: repositories in memory, a request log, and faults on demand.

It answers the requests that `huggingface_hub` makes to create, push, list and download (LFS, not
Xet). Any other request gets a 404. One thread per connection.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import os
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN, USER = "hf_test", "tester"
COMMITS = itertools.count()  # the client caches listings by hash, so no hash may repeat in a process
LARGE_FILES = ("*.safetensors", "*.bin", "*.pth")
Answer = dict[str, Any] | list[Any] | tuple[bytes, dict[str, str]]


@dataclass
class Repo:
    """A repository: `commits` maps a commit's hash to its whole tree, path -> content.

    `refs` maps branches, tags and pull requests to hashes.
    """

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, tree: dict[str, bytes]) -> str:
        """A new head of `branch`; returns its hash."""
        sha = hashlib.sha1(f"commit {next(COMMITS)}".encode()).hexdigest()
        self.commits[sha] = tree
        self.refs[branch] = sha
        return sha


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches `pattern`."""

    pattern: str
    times: int
    status: int = 200
    cut_after: int | None = None
    reset: bool = False
    corrupt: bool = False


class HubServer:
    """`with HubServer() as hub:` serves at `hub.endpoint`.

    `hub.requests` lists the requests as "METHOD /path?query".
    """

    def __init__(self) -> None:
        self.lfs = True  # False: every file is a plain git blob, as in the smallest repositories
        self.token, self.user = TOKEN, USER
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> Repo:
        """A repository whose main branch holds `files`."""
        repo = self.repos[repo_id] = Repo(private, gated)
        repo.commit("main", dict(files))
        return repo

    def fail(self, pattern: str, status: int, times: int = 1) -> None:
        """Answer the next `times` matching requests with this status."""
        self.faults.append(Fault(pattern, times, status=status))

    def cut(self, pattern: str, after: int, times: int = 1, *, reset: bool = False) -> None:
        """Close the connection after `after` bytes of the body, cleanly or with a TCP reset."""
        self.faults.append(Fault(pattern, times, cut_after=after, reset=reset))

    def corrupt(self, pattern: str, times: int = 1) -> None:
        """Flip a bit in the middle of the body."""
        self.faults.append(Fault(pattern, times, corrupt=True))

    def take_fault(self, request: str) -> Fault | None:
        """The first fault that applies to this request; its `times` is decremented."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def is_large(self, path: str) -> bool:
        """Whether LFS stores the file. LFS names it by its sha256, git by a sha1."""
        return self.lfs and any(fnmatch(path, pattern) for pattern in LARGE_FILES)

    def object_id(self, path: str, content: bytes) -> str:
        """The Hub's name of this content: its ETag, and what a client compares before it pushes."""
        if self.is_large(path):
            return hashlib.sha256(content).hexdigest()
        return git_sha1(content)


def git_sha1(content: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: in these tests clients disconnect on purpose."""


class _Refused(Exception):
    """An error answer: status, X-Error-Code, message, further JSON."""

    def __init__(self, status: int, code: str, message: str, **extra: Any) -> None:
        self.status, self.code, self.message, self.extra = status, code, message, extra


REPO = r"(?P<repo>[^/]+(?:/[^/]+)?)"  # some of the oldest, such as gpt2, have no owner
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create"),
    ("DELETE", r"/api/repos/delete", "delete"),
    ("GET", rf"/api/models/{REPO}", "info"),
    ("GET", rf"/api/models/{REPO}/revision/(?P<rev>[^/]+)", "info"),
    ("GET", rf"/api/models/{REPO}/tree/(?P<rev>[^/]+)", "tree"),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"/api/models/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"/api/models/{REPO}/tag/(?P<rev>[^/]+)", "tag"),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>[^/]+)", "branch"),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_verify"),
    ("GET", rf"/{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
]
WRITES = ("preupload", "commit", "tag", "branch", "lfs_batch")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def do_GET(self) -> None:
        self.url = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {self.path}")
        self.fault = self.hub.take_fault(f"{self.command} {self.path}")
        try:
            if self.fault and self.fault.status != 200:
                raise _Refused(self.fault.status, "", "fault on demand")
            answer = self._route()
            body, headers = answer if isinstance(answer, tuple) else (json.dumps(answer).encode(), {})
            self._send(206 if "Content-Range" in headers else 200, body, headers)
        except _Refused as refused:
            body = json.dumps({"error": refused.message, **refused.extra}).encode()
            self._send(refused.status, body, {"X-Error-Code": refused.code, "X-Error-Message": refused.message})

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _route(self) -> Answer:
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in ROUTES:
            match = re.fullmatch(pattern, self.url.path) if verb == method else None
            if match:
                parts: dict[str, Any] = {key: unquote(value) for key, value in match.groupdict().items()}
                with self.hub.lock:
                    if "repo" in parts:
                        self.repo_id = parts["repo"]
                        parts["repo"] = self._visible(write=name in WRITES)
                    if "rev" in parts:
                        parts["rev"] = self._commit_hash(parts["repo"], parts["rev"])
                    return getattr(self, name)(**parts)
        raise _Refused(404, "EntryNotFound", "no such route")

    def _signed_in(self) -> bool:
        header = self.headers.get("Authorization")
        if header not in (None, f"Bearer {self.hub.token}"):
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        return header is not None

    def _visible(self, *, write: bool) -> Repo:
        """The requested repository. As on the Hub, 401 hides from strangers whether it exists."""
        signed_in, repo = self._signed_in(), self.hub.repos.get(self.repo_id)
        if repo is None or (repo.private and not signed_in):
            raise _Refused(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        if write:
            self._may_write()
        return repo

    def _may_write(self) -> None:
        if not self._signed_in():
            raise _Refused(401, "", "Invalid username or password.")
        if self.repo_id.split("/")[0] != self.hub.user:
            raise _Refused(403, "", f"You don't have the rights to write to {self.repo_id}")

    def _commit_hash(self, repo: Repo, revision: str) -> str:
        if revision not in repo.commits and revision not in repo.refs:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repo.refs.get(revision, revision)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.corrupt:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
        if self.fault and self.fault.cut_after is not None:
            self.wfile.write(body[: self.fault.cut_after])
            self.close_connection = True
            if self.fault.reset:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())
            return
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: `hub.requests` is the log."""

    def whoami(self) -> Answer:
        if not self._signed_in():
            raise _Refused(401, "", "Invalid username or password.")
        return {"name": self.hub.user, "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}}

    def validate_yaml(self) -> Answer:
        return {"warnings": [], "errors": []}

    def create(self) -> Answer:
        asked = json.loads(self.body)
        self.repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self._may_write()
        url = f"{self.hub.endpoint}/{self.repo_id}"
        if self.repo_id in self.hub.repos:
            raise _Refused(409, "", "You already created this model repo", url=url)
        private = asked.get("private") or asked.get("visibility") == "private"  # huggingface_hub 1.0, 2.4
        self.hub.add(self.repo_id, {".gitattributes": b""}, private=private)
        return {"url": url}

    def delete(self) -> Answer:
        asked = json.loads(self.body)
        self.repo_id = f"{asked.get('organization') or self.hub.user}/{asked['name']}"
        self._visible(write=True)
        del self.hub.repos[self.repo_id]
        return {}

    def info(self, repo: Repo, rev: str | None = None) -> Answer:
        sha = rev or repo.refs["main"]
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        if "blobs" in parse_qs(self.url.query):
            listing = self.tree(repo, sha)
            siblings = [{**f, "rfilename": f["path"], "blobId": f["oid"]} for f in listing]  # type: ignore[index]
        return {"id": self.repo_id, "sha": sha, "private": repo.private, "siblings": siblings}

    def tree(self, repo: Repo, rev: str) -> Answer:
        listing = []
        for path, content in repo.commits[rev].items():
            info = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if self.hub.is_large(path):
                sha256 = self.hub.object_id(path, content)
                info["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(content), "pointerSize": 134}
            listing.append(info)
        return listing

    def preupload(self, repo: Repo, rev: str) -> Answer:
        files = []
        for file in json.loads(self.body)["files"]:
            path, tree = file["path"], repo.commits[rev]
            files.append(
                {
                    "path": path,
                    "uploadMode": "lfs" if self.hub.is_large(path) else "regular",
                    "shouldIgnore": False,
                    "oid": self.hub.object_id(path, tree[path]) if path in tree else None,
                }
            )
        return {"files": files}

    def lfs_batch(self, repo: Repo) -> Answer:
        objects = json.loads(self.body)["objects"]
        for item in objects:
            if item["oid"] not in self.hub.objects:
                href = {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}
                item["actions"] = {"upload": href, "verify": href}
        return {"objects": objects}

    def lfs_put(self, oid: str) -> Answer:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "", "content does not have the sha256 that it is named by")
        self.hub.objects[oid] = self.body
        return {}

    def lfs_verify(self, oid: str) -> Answer:
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise _Refused(404, "", "object not uploaded")
        return {}

    def commit(self, repo: Repo, rev: str) -> Answer:
        tree, branch = dict(repo.commits[rev]), unquote(self.url.path.rsplit("/", 1)[1])
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header" and value.get("parentCommit", rev) != rev:
                raise _Refused(412, "", "A commit has happened since. Please refresh and try again.")
            if item["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if item["key"] == "lfsFile":
                tree[value["path"]] = self.hub.objects[value["oid"]]
            if item["key"] == "deletedFile":
                del tree[value["path"]]
        url, answer = f"{self.hub.endpoint}/{self.repo_id}", {}
        if "create_pr" in parse_qs(self.url.query):
            number = sum(ref.startswith("refs/pr/") for ref in repo.refs) + 1
            branch, answer = f"refs/pr/{number}", {"pullRequestUrl": f"{url}/discussions/{number}"}
        sha = repo.commit(branch, tree)
        return {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, **answer}

    def tag(self, repo: Repo, rev: str) -> Answer:
        name = json.loads(self.body)["tag"]
        if name in repo.refs:
            raise _Refused(409, "", "Tag reference exists already")
        repo.refs[name] = rev
        return {}

    def branch(self, repo: Repo, branch: str) -> Answer:
        if branch in repo.refs:
            raise _Refused(409, "", "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repo.refs[branch] = self._commit_hash(repo, start)
        return {}

    def resolve(self, repo: Repo, rev: str, path: str) -> Answer:
        if repo.gated and not self._signed_in():
            raise _Refused(401, "GatedRepo", "Access to this repository is restricted")
        content = repo.commits[rev].get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist")
        headers = {"X-Repo-Commit": rev, "ETag": f'"{self.hub.object_id(path, content)}"'}
        part = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if part:
            start = int(part[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content = content[start:]
        return content, headers
