"""Pull and push against a Hub on 127.0.0.1, with everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssl_core.config import BackboneConfig
from ssl_core.hub import remote as repo_module
from ssl_core.hub import transfer
from ssl_core.hub.card import merge_card, write_card
from ssl_core.hub.encoders import encoder_layout
from ssl_core.hub.remote import HubError, push, resolve
from ssl_core.hub.transfer import why_unsafe
from ssl_core.hub.weights_file import WeightsError, load_weights, save_weights, verify_sums, write_sums
from ssl_testing.hub_server import HubServer, git_sha1
from ssl_train.card import write_run_card

pytest_plugins = ["ssl_testing.fixtures"]

ID = "tester/demo"
LAYOUT = encoder_layout(BackboneConfig)
PUBLIC = ["README.md", "SHA256SUMS", "config.json", "evaluation.json", "heads.safetensors", "model.safetensors"]
FILES = {"config.json": b"{}", "model.safetensors": b"weights " * 1000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with what is published and what is not."""
    return make_folder(tmp_path / "run", seed=0)


def make_folder(path: Path, seed: int) -> Path:
    (path / "checkpoints" / "step-000001").mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    save_weights(path / "model.safetensors", {"w": torch.randn(64, 64, generator=generator)})
    save_weights(path / "heads.safetensors", {"h": torch.randn(3, generator=generator)})
    (path / "config.json").write_text(
        json.dumps({"model_type": "vit", "ssl_core": {"method": "ssl_x.y:Z", "config": {}}})
    )
    (path / "evaluation.json").write_text(
        json.dumps({"data": "scenes", "rows": [{"features": "pretrained", "knn": 0.5}]})
    )
    write_sums(path, ["config.json", "model.safetensors", "heads.safetensors"])
    write_card(path, name=ID, layout=LAYOUT)
    for private in ("metrics.jsonl", "notes.txt", "checkpoints/step-000001/model.safetensors"):
        (path / private).write_text("stays here")
    return path


def downloads(hub: HubServer) -> list[str]:
    """Names of the files whose content was asked for."""
    return [r.rsplit("/", 1)[1] for r in hub.requests if r.startswith("GET") and "/resolve/" in r]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited between tries, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


# --- push, then pull


@pytest.mark.parametrize("lfs", [True, False])
def test_what_is_pulled_equals_what_was_pushed(hub: HubServer, folder: Path, lfs: bool) -> None:
    hub.lfs = lfs
    url = push(folder, ID, token=hub.token)
    pulled = resolve(ID)
    assert contents(pulled) == {name: content for name, content in contents(folder).items() if name in PUBLIC}
    assert url == f"{hub.endpoint}/{ID}/commit/{pulled.name}"
    assert verify_sums(pulled)
    torch.testing.assert_close(
        load_weights(pulled / "model.safetensors"), load_weights(folder / "model.safetensors"), rtol=0, atol=0
    )


def test_only_published_files_leave_the_run_folder(hub: HubServer, folder: Path) -> None:
    push(folder, ID, token=hub.token)
    repo = hub.repos[ID]
    assert sorted(repo.commits[repo.refs["main"]]) == [".gitattributes", *PUBLIC]


def test_the_same_folder_pushed_twice_makes_one_commit(hub: HubServer, folder: Path) -> None:
    first = push(folder, ID, token=hub.token)
    commits = len(hub.repos[ID].commits)
    assert push(folder, ID, token=hub.token) == first
    assert len(hub.repos[ID].commits) == commits


def test_a_changed_folder_uploads_what_changed(hub: HubServer, folder: Path) -> None:
    push(folder, ID, token=hub.token)
    hub.requests.clear()
    save_weights(folder / "heads.safetensors", {"h": torch.zeros(3)})
    write_sums(folder, ["config.json", "model.safetensors", "heads.safetensors"])
    push(folder, ID, token=hub.token)
    assert sum(request.startswith("PUT") for request in hub.requests) == 1
    assert contents(resolve(ID))["heads.safetensors"] == (folder / "heads.safetensors").read_bytes()


def test_push_makes_exactly_these_requests(hub: HubServer, folder: Path) -> None:
    push(folder, ID, token=hub.token)
    made = sorted(request for request in hub.requests if "agent" not in request)
    objects = [hashlib.sha256(contents(folder)[f"{name}.safetensors"]).hexdigest() for name in ("model", "heads")]
    assert made == sorted(
        [
            "POST /api/repos/create",
            f"GET /api/models/{ID}",
            "POST /api/validate-yaml",
            f"POST /api/models/{ID}/preupload/main",
            f"POST /{ID}.git/info/lfs/objects/batch",
            *(f"{verb} /lfs/{sha256}" for sha256 in objects for verb in ("PUT", "POST")),
            f"POST /api/models/{ID}/commit/main",
        ]
    )


@pytest.mark.parametrize("name", ["a/b/c", "me/ my", "", "me/a--b", "../x"])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_name_that_the_hub_refuses_is_refused_before_anything_is_sent(name, dry_run, hub, folder) -> None:
    with pytest.raises(HubError, match="is no name on the Hub, like me/my-model"):
        push(folder, name, dry_run=dry_run)


def test_a_push_while_offline_says_so(hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push(folder, ID)


def test_a_dry_run_lists_the_files_and_asks_nobody(hub: HubServer, folder: Path) -> None:
    listing = push(folder, ID, dry_run=True)
    assert [line.split()[-1] for line in listing.splitlines()[1:]] == PUBLIC
    assert hub.requests == [] and hub.repos == {}


def test_push_makes_private_repositories_branches_and_pull_requests(hub: HubServer, folder: Path) -> None:
    push(folder, ID, token=hub.token, private=True)
    repo = hub.repos[ID]
    main = repo.refs["main"]
    assert repo.private
    save_weights(folder / "heads.safetensors", {"h": torch.zeros(3)})
    write_sums(folder, ["config.json", "model.safetensors", "heads.safetensors"])
    push(folder, ID, token=hub.token, revision="dev")
    push(folder, ID, token=hub.token, create_pr=True)
    assert repo.refs["main"] == main and {"dev", "refs/pr/1"} < repo.refs.keys()
    dev = resolve(ID, revision="dev", token=hub.token)
    assert contents(dev)["heads.safetensors"] == contents(folder)["heads.safetensors"]
    assert contents(resolve(ID, token=hub.token))["heads.safetensors"] != contents(dev)["heads.safetensors"]


def test_push_refuses_an_incomplete_or_changed_folder(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="nothing-here is no folder"):
        push(tmp_path / "nothing-here", ID, token=hub.token)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + b"\x01")
    with pytest.raises(WeightsError, match=r"model\.safetensors has changed since it was published"):
        push(folder, ID, token=hub.token)
    (folder / "config.json").unlink()
    with pytest.raises(HubError, match=r"lacks config\.json.*it has .*model\.safetensors"):
        push(folder, ID, token=hub.token)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("repo_id", "token", "message"),
    [
        (ID, None, "not signed in: run `hf auth login`"),
        (ID, "hf_old", "Invalid credentials"),
        ("other/demo", "hf_test", "don't have the rights to write to other/demo"),
    ],
)
def test_push_without_the_right_to_says_so(
    hub: HubServer, folder: Path, repo_id: str, token: str | None, message: str
) -> None:
    with pytest.raises(HubError, match=message):
        push(folder, repo_id, token=token)
    assert hub.repos == {}


def test_a_card_edited_on_the_hub_keeps_what_people_wrote(hub: HubServer, folder: Path) -> None:
    push(folder, ID, token=hub.token)
    repo = hub.repos[ID]
    tree = repo.commits[repo.refs["main"]]
    edited = tree["README.md"].replace(b"license:", b"language: de\nlicense:") + b"\n## For whom\n\nPeople.\n"
    repo.commit("main", {**tree, "README.md": edited})
    (folder / "evaluation.json").write_text(
        json.dumps({"data": "scenes", "rows": [{"features": "pretrained", "knn": 0.625}]})
    )
    write_run_card(folder, name=ID, layout=LAYOUT)
    push(folder, ID, token=hub.token)
    card = contents(resolve(ID))["README.md"].decode()
    assert "## For whom\n\nPeople.\n" in card and "language: de" in card
    assert "62.5" in card and "value: 0.625" in card and "50.0" not in card
    commits = len(repo.commits)
    push(folder, ID, token=hub.token)
    assert len(repo.commits) == commits


def test_two_writers_do_not_undo_each_other(
    hub: HubServer, waits: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(folder, ID, token=hub.token)
    repo = hub.repos[ID]
    words = b"\nWritten while the other one was pushing.\n"

    def meanwhile(old: str, new: str) -> str:
        if not waits:
            tree = repo.commits[repo.refs["main"]]
            repo.commit("main", {**tree, "README.md": tree["README.md"] + words})
        return merge_card(old, new)

    monkeypatch.setattr(repo_module, "merge_card", meanwhile)
    save_weights(folder / "heads.safetensors", {"h": torch.zeros(3)})
    write_sums(folder, ["config.json", "model.safetensors", "heads.safetensors"])
    push(folder, ID, token=hub.token)
    tree = repo.commits[repo.refs["main"]]
    assert waits == [1.0]
    assert words in tree["README.md"] and tree["heads.safetensors"] == contents(folder)["heads.safetensors"]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubServer, folder: Path) -> None:
    hub.cut("POST .*/commit/main", after=0)
    push(folder, ID, token=hub.token)
    assert len(hub.repos[ID].commits) == 2  # the empty one of the new repository, and ours


def test_xet_storage_out_of_reach_gives_the_advice(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import __version__, constants

    pytest.importorskip("hf_xet")
    if tuple(map(int, __version__.split(".")[:2])) < (1, 20):
        pytest.skip("older clients ask for Xet in the LFS batch and go without it")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with pytest.raises(HubError, match="set HF_HUB_DISABLE_XET=1"):
        push(folder, ID, token=hub.token)
    hub.lfs = False
    assert push(folder, ID, token=hub.token).startswith(f"{hub.endpoint}/{ID}/commit/")


# --- what a name means


def test_paths_are_returned_as_they_are_and_never_asked_of_the_hub(
    hub: HubServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve(folder) == resolve(str(folder)) == resolve("~/run") == folder
    assert resolve("run") == Path("run") and resolve("./run") == Path("run")
    assert resolve("run/config.json") == Path("run/config.json")
    assert hub.requests == []


@pytest.mark.parametrize(
    "name", ["./rum", "../nowhere/run", "~/rum", "a/b/c", "/no/such/folder", "mae_vit_b.pth", "a\\b", Path("rum")]
)
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(
    hub: HubServer, folder: Path, name: str | Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    with pytest.raises(FileNotFoundError, match="does not exist") as caught:
        resolve(name)
    assert ("but run" in str(caught.value)) == ("rum" in str(name))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "tester/dmeo",
            {},
            "has no 'tester'.* and the Hub shows no repository tester/dmeo: misspelt, or private; you are not",
        ),
        ("tester/dmeo", {"token": "hf_test"}, "misspelt, or private$"),
        ("tester/secret", {}, "misspelt, or private; you are not signed in: run `hf auth login`"),
        ("tester/secret", {"token": "hf_old"}, "refuses access.*Invalid credentials"),
        ("tester/gated", {}, "gated: accept its conditions.*not signed in"),
        ("tester/demo", {"revision": "v9"}, "no revision 'v9'"),
        ("tester/demo", {"revision": "0" * 40}, "no revision '0000"),
        ("tester/demo", {"allow_patterns": ("*.txt",)}, r"no file of a model \(\*\.txt\), but config\.json, model"),
        ("not an id", {}, "has no 'not an id'.* and 'not an id' is no valid Hub id"),
        ("not an id", {"local_files_only": True}, "has no 'not an id'.* and 'not an id' is no valid Hub id"),
    ],
)
def test_what_cannot_be_had_is_a_hub_error_that_says_why(
    hub: HubServer, waits: list[float], name: str, options: dict[str, Any], message: str
) -> None:
    hub.add("tester/demo", FILES)
    hub.add("tester/secret", FILES, private=True)
    hub.add("tester/gated", FILES, gated=True)
    with pytest.raises(HubError, match=message):
        resolve(name, **options)
    assert waits == [], "this does not pass by waiting"


def test_a_private_repository_opens_with_a_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("tester/secret", FILES, private=True)
    assert contents(resolve("tester/secret", token=hub.token)) == FILES
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert contents(resolve("tester/secret")) == FILES


@pytest.mark.parametrize("name", ["rum", "runs/mime", "runs/mine-2"])
@pytest.mark.parametrize("options", [{}, {"local_files_only": True}], ids=["online", "offline"])
def test_a_mistyped_path_that_could_be_a_hub_id_is_told_the_near_names(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "runs/mine"):
        (tmp_path / folder).mkdir(parents=True)
    near = "run" if name == "rum" else "mine"
    beyond = "no repository" if not options else "not, or not completely, in the cache"
    with pytest.raises(
        HubError, match=rf"{name} does not exist: .* has no '.*', but .*{near}.*, and the Hub.*{beyond}"
    ):
        resolve(name, **options)


# --- revisions and the cache


def test_branches_tags_and_commits_can_be_pinned(hub: HubServer) -> None:
    from huggingface_hub import HfApi

    repo = hub.add(ID, FILES)
    first = repo.refs["main"]
    HfApi(token=hub.token).create_tag(ID, tag="v1")
    second = repo.commit("main", {**FILES, "config.json": b'{"second": true}'})
    assert resolve(ID).name == resolve(ID, revision="main").name == second
    for pin in ("v1", first):
        assert resolve(ID, revision=pin).name == first
        assert contents(resolve(ID, revision=pin)) == FILES


def test_a_second_pull_gets_no_file_and_a_pinned_one_asks_nothing(hub: HubServer) -> None:
    hub.add(ID, FILES)
    folder = resolve(ID)
    assert sorted(downloads(hub)) == sorted(FILES)
    hub.requests.clear()
    assert resolve(ID) == folder
    assert hub.requests == [f"GET /api/models/{ID}?blobs=true", f"GET /api/models/{ID}/revision/main"]
    hub.requests.clear()
    assert resolve(ID, revision=folder.name) == folder
    assert hub.requests == []


def test_after_one_pull_the_cache_serves_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add(ID, FILES)
    folder = resolve(ID)
    hub.requests.clear()
    assert resolve(ID, local_files_only=True) == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve(ID) == folder
    assert hub.requests == []


def test_offline_and_cold_is_a_clear_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    hub.add(ID, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=f"{ID} at revision main is not, or not completely, in the cache"):
        resolve(ID)
    assert hub.requests == []


def test_half_a_snapshot_is_not_served_offline(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    hub.add(ID, FILES)
    hub.cut("GET .*model.safetensors", after=100, times=99, reset=True)
    with pytest.raises(HubError, match="cannot be reached"):
        resolve(ID)
    with pytest.raises(HubError, match=r"not completely, in the cache|in the cache without its weights"):
        resolve(ID, local_files_only=True)
    hub.add("tester/other", FILES)
    hf_hub_download("tester/other", "config.json")  # another library's partial use of the cache
    with pytest.raises(HubError, match="in the cache without its weights"):
        resolve("tester/other", local_files_only=True)


def test_an_unreachable_hub_gives_the_cached_commit_with_a_warning(hub: HubServer, waits: list[float]) -> None:
    hub.add(ID, FILES)
    folder = resolve(ID)
    hub.fail(f"/api/models/{ID}", 503, times=99)
    with pytest.warns(UserWarning, match=rf"cannot be reached.*\(503\).*Using commit {folder.name} from the cache"):
        assert resolve(ID) == folder
    assert waits == [1.0, 4.0]


def test_no_connection_and_a_cold_cache_is_a_hub_error(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    with pytest.raises(HubError, match="cannot be reached for tester/demo"):
        resolve(ID)


def test_safetensors_are_preferred_and_a_pickle_comes_only_alone(hub: HubServer) -> None:
    hub.add("tester/both", {**FILES, "pytorch_model.bin": b"pickle", "tf_model.h5": b"x"})
    hub.add("tester/old", {"config.json": b"{}", "pytorch_model.bin": b"pickle", "onnx/model.safetensors": b"x"})
    assert sorted(contents(resolve("tester/both"))) == ["config.json", "model.safetensors"]
    assert sorted(contents(resolve("tester/old"))) == ["config.json", "pytorch_model.bin"]
    assert sorted(contents(resolve("tester/old", local_files_only=True))) == ["config.json", "pytorch_model.bin"]


# --- what goes wrong on the way


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("after", [0, 1, 4000])
def test_a_download_that_is_cut_is_taken_up_again(hub: HubServer, after: int, reset: bool) -> None:
    hub.add(ID, FILES)
    hub.cut("GET .*model.safetensors", after=after, reset=reset)
    assert contents(resolve(ID)) == FILES
    assert downloads(hub).count("model.safetensors") == 2


def test_a_download_that_is_always_cut_ends_after_three_tries(hub: HubServer, waits: list[float]) -> None:
    hub.add(ID, FILES)
    hub.cut("GET .*model.safetensors", after=10, times=99, reset=True)
    with pytest.raises(HubError, match="cannot be reached"):
        resolve(ID)
    assert waits == [1.0, 4.0] and downloads(hub).count("model.safetensors") == 3


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("request_", ["GET /api/models", "GET .*/tree/", "HEAD ", "GET .*/resolve/.*model"])
def test_a_busy_server_is_asked_again(hub: HubServer, request_: str, status: int) -> None:
    hub.add(ID, FILES)
    hub.fail(request_, status, times=2)
    assert contents(resolve(ID)) == FILES


@pytest.mark.parametrize("request_", ["create", "preupload", "objects/batch", "PUT /lfs", "commit"])
def test_a_push_to_a_busy_server_is_repeated(hub: HubServer, folder: Path, request_: str) -> None:
    hub.fail(request_, 503)
    push(folder, ID, token=hub.token)
    assert contents(resolve(ID))["model.safetensors"] == contents(folder)["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_noticed_and_fetched_again(hub: HubServer, file: str) -> None:
    hub.add(ID, FILES)
    hub.corrupt(f"GET .*/resolve/.*{file}")
    assert contents(resolve(ID)) == FILES


def test_bytes_that_stay_wrong_are_an_error_and_leave_nothing_in_the_cache(hub: HubServer) -> None:
    hub.add(ID, FILES)
    hub.corrupt("GET .*model.safetensors", times=3)
    with pytest.raises(HubError, match=r"model\.safetensors arrived damaged"):
        resolve(ID)
    with pytest.raises(HubError, match="in the cache"):
        resolve(ID, local_files_only=True)
    assert contents(resolve(ID)) == FILES


TWO = {**FILES, "preprocessor_config.json": b'{"image_mean": [0.5]}', "copy.safetensors": FILES["model.safetensors"]}


def test_several_damaged_files_are_all_fetched_again(hub: HubServer, waits: list[float]) -> None:
    hub.add(ID, TWO)
    hub.corrupt("GET .*/resolve/.*config.json", times=2)
    hub.corrupt("GET .*/resolve/.*model.safetensors")
    for _ in range(3):
        assert contents(resolve(ID)) == TWO
    assert waits == [1.0], "one more try brings all of them"


def test_files_that_stay_damaged_are_all_named_and_all_removed(hub: HubServer) -> None:
    hub.add(ID, TWO)
    hub.corrupt("GET .*/resolve/.*(config.json|safetensors)", times=99)
    with pytest.raises(HubError, match=r"config\.json.*model\.safetensors.* arrived damaged") as caught:
        resolve(ID)
    assert all(name in str(caught.value) for name in TWO)
    hub.faults.clear()
    assert contents(resolve(ID)) == TWO


@pytest.mark.parametrize("lfs", [True, False], ids=["sha256", "git"])
@pytest.mark.parametrize("how", ["online", "pinned", "offline"])
def test_what_a_killed_process_left_unchecked_is_checked_at_the_next_call(hub: HubServer, how: str, lfs: bool) -> None:
    from huggingface_hub import snapshot_download

    hub.lfs = lfs
    commit = hub.add(ID, TWO).refs["main"]
    hub.corrupt("GET .*/resolve/.*config.json", times=2)
    hub.corrupt("GET .*/resolve/.*model.safetensors")
    left = Path(snapshot_download(ID))  # as if killed here: the client itself compares sizes only
    assert contents(left) != TWO
    if how == "offline":
        with pytest.raises(HubError, match=r"config\.json.*arrived damaged.*get it again"):
            resolve(ID, local_files_only=True)
    assert contents(resolve(ID, revision=commit if how == "pinned" else None)) == TWO


@pytest.mark.parametrize("how", ["online", "offline"])
def test_files_are_checked_once_and_again_when_they_change(
    hub: HubServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, TWO)
    read: list[str] = []
    hashes = repo_module._hashes
    monkeypatch.setattr(repo_module, "_hashes", lambda path, digits: read.append(path.name) or hashes(path, digits))
    options = {"local_files_only": True} if how == "offline" else {}
    folder = resolve(ID)
    assert len(read) == 3, "two of the four have the same content"
    assert resolve(ID, **options) == folder and len(read) == 3

    blob = (folder / "config.json").resolve()
    blob.write_bytes(b"{ ")
    if how == "offline":
        with pytest.raises(HubError, match=r"config\.json arrived damaged"):
            resolve(ID, **options)
    assert contents(resolve(ID)) == TWO


def test_a_cache_that_may_not_be_written_is_checked_at_each_call(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(ID, TWO)
    monkeypatch.setattr(repo_module, "VERIFIED", "blobs/no-folder/beside")
    assert contents(resolve(ID)) == TWO
    assert contents(resolve(ID, local_files_only=True)) == TWO


@pytest.mark.parametrize(
    "newer",
    [{"config.json": b"[2]", "model.safetensors": b"newer weights"}, {**FILES, "heads.safetensors": b"one file more"}],
)
def test_a_repository_that_changes_during_the_pull_comes_from_one_commit(
    hub: HubServer, waits: list[float], newer: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = hub.add(ID, FILES)
    check = repo_module._choose

    def meanwhile(*arguments: Any) -> list[str]:
        if not waits:
            repo.commit("main", newer)
        return check(*arguments)

    monkeypatch.setattr(repo_module, "_choose", meanwhile)
    folder = resolve(ID)
    assert contents(folder) == newer and folder.name == repo.refs["main"] and waits == [1.0]


def test_parallel_readers_of_one_cache_all_get_whole_files(hub: HubServer) -> None:
    files = {**FILES, "model.safetensors": bytes(range(256)) * 4000}
    hub.add("tester/other", FILES)
    resolve("tester/other")  # older clients make one session for each thread that comes first
    hub.add(ID, files)
    hub.cut("GET .*model.safetensors", after=5000, times=2)
    results: list[dict[str, bytes]] = []
    readers = [threading.Thread(target=lambda: results.append(contents(resolve(ID)))) for _ in range(8)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(timeout=60)
    assert results == [files] * 8


HOSTILE = [
    "../model.safetensors",
    "a/../../model.safetensors",
    "..",
    "/etc/model.safetensors",
    "//host/share/model.safetensors",
    "C:\\model.safetensors",
    "C:model.safetensors",
    "c:/model.safetensors",
    "..\\..\\model.safetensors",
    "\\\\host\\share\\model.safetensors",
    "a\\model.safetensors",
    "model\0.safetensors",
    "model\n.safetensors",
    "\x1b[2Jmodel.safetensors",
    "./model.safetensors",
    "a//model.safetensors",
    "a/./model.safetensors",
    "a/",
    "",
]
UNPORTABLE = [
    "NUL",
    "nul.safetensors",
    "con.json",
    "Aux.json",
    "prn .json",
    "com1.safetensors",
    "LPT9.json",
    "lpt¹.json",
    "CONIN$",
    "model.safetensors.",
    "model.safetensors ",
    "config.json:stream",
    "model?.safetensors",
    "model*.safetensors",
    'a"b.json',
    "a<b.json",
    "a|b.json",
]


def accepted(hub: HubServer, names: list[str], patterns: tuple[str, ...]) -> list[str]:
    """Those of `names` that do not condemn the repository they are found in."""
    passed = []
    for i, name in enumerate(names):
        hub.add(f"tester/evil{i}", {**FILES, name: b"evil"})
        try:
            resolve(f"tester/evil{i}", allow_patterns=patterns)
        except HubError as error:
            assert repr(name) in str(error) and "Nothing was written" in str(error)
        else:
            passed.append(name)
    return passed


def test_hostile_file_names_are_refused_before_anything_is_written(hub: HubServer, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert [name for name in HOSTILE + UNPORTABLE if not why_unsafe(name)] == []
    assert accepted(hub, HOSTILE + UNPORTABLE, ("*",)) == []
    assert sorted(tmp_path.rglob("*")) == before
    assert downloads(hub) == []


def test_a_name_that_leaves_the_folder_condemns_the_whole_repository(hub: HubServer) -> None:
    assert accepted(hub, HOSTILE, ("config.json",)) == []


@pytest.mark.parametrize("name", ["config.json", "a/b.txt", "vocab.json", "…/é 1.json", "console.json", "a-b_c.1+2"])
def test_harmless_names_are_accepted(name: str) -> None:
    assert why_unsafe(name) is None


def test_an_odd_name_among_files_that_are_not_wanted_does_no_harm(hub: HubServer) -> None:
    hub.add(ID, {**FILES, "docs/aux.md": b"x", "logs/12:30:00.txt": b"x"})
    assert contents(resolve(ID)) == FILES


def test_a_commit_that_is_no_hash_is_refused(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add(ID, FILES)
    repo.commits["../../../evil"] = repo.commits[repo.refs["main"]]
    repo.refs["main"] = "../../../evil"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HubError, match=r"no commit hash\. Nothing was written"):
        resolve(ID)
    assert sorted(tmp_path.rglob("*")) == before


# --- the server itself


def test_the_server_answers_what_the_client_asks(hub: HubServer) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    api = HfApi(token=hub.token)
    assert api.whoami()["name"] == hub.user
    hub.add(ID, FILES)
    assert api.list_repo_files(ID) == sorted(FILES)
    assert api.file_exists(ID, "config.json") and not api.file_exists(ID, "missing.json")
    assert api.model_info(ID).sha == hub.repos[ID].refs["main"]
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(ID, "missing.json")
    api.delete_repo(ID)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(ID)


def test_the_servers_hashes_are_gits() -> None:
    # printf hello | git hash-object --stdin
    assert git_sha1(b"hello") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


@pytest.mark.network
def test_a_small_model_comes_from_the_real_hub(tmp_path: Path) -> None:
    folder = resolve("hf-internal-testing/tiny-random-ViTModel", cache_dir=tmp_path)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "vit"
    assert resolve("hf-internal-testing/tiny-random-ViTModel", cache_dir=tmp_path, local_files_only=True) == folder
    with pytest.raises(HubError, match="no revision"):
        resolve("hf-internal-testing/tiny-random-ViTModel", revision="no-such-branch", cache_dir=tmp_path)
