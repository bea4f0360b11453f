"""pytest fixtures. A test file loads them with `pytest_plugins = "ssl_testing.fixtures"`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssl_testing.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running `HubServer` that `huggingface_hub` uses as the Hub; empty cache, nobody signed in.

    `huggingface_hub` reads its environment at import, so we patch its constants. We also remove the
    pauses between its retries. A test signs in with `monkeypatch.setenv("HF_TOKEN", hub.token)` or
    `token=hub.token`.
    """
    from huggingface_hub import close_session, constants, file_download
    from huggingface_hub.utils import _http

    home = tmp_path / "hub-home"
    with HubServer() as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(home / "cache"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            monkeypatch.delenv(name, raising=False)
        # huggingface_hub 2.4 uploads with an argument that httpx2 2.16 deprecates.
        warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
        hurried = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr(file_download, "time", hurried)
        monkeypatch.setattr(_http, "time", hurried)
        yield server
        close_session()
