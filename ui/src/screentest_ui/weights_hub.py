"""The model hub: what a repository holds at a commit, and its bytes. The only module that imports huggingface_hub."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from httpx2 import HTTPError
from huggingface_hub import HfApi, constants, get_session, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get, repo_folder_name
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from screentest.errors import BadRequest, NotFound, NotPossibleNow, Unauthenticated, Unavailable
from screentest_ui.weights_choice import PublishedFile, Repository

ANSWERS_WITHIN_S = 30.0
KEPT = "what has come so far is kept, and the next pull goes on from there"

_HEX = re.compile(r"[0-9a-f]+")

OnBytes = Callable[[int], None]


class Hub:
    """One endpoint; HF_ENDPOINT, HF_TOKEN and the token of `hf auth login` are used as everywhere."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.endpoint = (environment.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self.endpoint, library_name="screentest")
        # It would warn about every reconnection; what does not heal is our error.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def look_up(self, repo: str, revision: str) -> Repository:
        """The repository at the commit that the revision stands for now. Raises ScreentestError."""
        with self._saying(repo, revision):
            info = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=ANSWERS_WITHIN_S)
        if info.sha is None or info.siblings is None:
            raise Unavailable(f"{self.endpoint} lists neither commit nor files of {repo}; is it a model hub?")
        files = tuple(_published(repo, sibling) for sibling in info.siblings)
        return Repository(repo=repo, commit=info.sha, files=files)

    def read_json(self, source: Repository, path: str) -> dict[str, Any]:
        """A small file; the first one of a gated repository that is refused. Raises ScreentestError."""
        with self._saying(source.repo, source.commit):
            reply = get_session().get(self._url(source, path), headers=self._headers(), timeout=ANSWERS_WITHIN_S)
            hf_raise_for_status(reply)
        try:
            content = json.loads(reply.content)
        except ValueError as error:
            raise BadRequest(f"{path} of {source.repo} at {source.commit[:12]} is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise BadRequest(f"{path} of {source.repo} at {source.commit[:12]} holds no object")
        return content

    def fetch(self, source: Repository, file: PublishedFile, part: Path, on_bytes: OnBytes) -> None:
        """The file's bytes into `part`, going on where an earlier fetch of the same content broke off.

        on_bytes: told how many bytes more (or, where the server starts over, fewer) there are; what it raises ends
        the fetch. Not hf_hub_download, which deletes its partial file on every failure (huggingface_hub 2.4, #4228).
        """
        there = part.stat().st_size if part.exists() else 0
        if there > file.size:
            part.unlink()
            on_bytes(-there)
            there = 0
        with self._saying(source.repo, source.commit), part.open("ab") as target:
            http_get(
                self._url(source, file.path),
                target,
                resume_size=there,
                headers=self._headers(),
                expected_size=file.size,
                displayed_filename=file.path,
                tqdm_class=lambda **bar: _Meter(on_bytes, bar["initial"] - there),  # type: ignore[arg-type]
            )

    def cached(self, source: Repository, file: PublishedFile) -> Path | None:
        """Where the cache of other programs on this machine has the content, None where it has not."""
        folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source.repo, repo_type="model")
        path = folder / "blobs" / file.oid
        return path if path.is_file() else None

    def _url(self, source: Repository, path: str) -> str:
        return hf_hub_url(source.repo, path, revision=source.commit, endpoint=self.endpoint)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(library_name="screentest")

    @contextmanager
    def _saying(self, repo: str, revision: str) -> Iterator[None]:
        """The hub's errors as ours: what, which, what to do."""
        try:
            yield
        except GatedRepoError as error:
            raise NotPossibleNow(self._gated(repo, error.response.status_code)) from error
        except RepositoryNotFoundError as error:
            raise NotFound(
                f"{self.endpoint} has no repository {repo}, or it is private; correct model.repo of the lane, or log "
                "in with `hf auth login` as somebody who may see it"
            ) from error
        except RevisionNotFoundError as error:
            raise NotFound(
                f"{repo} has no revision {revision!r}; correct model.revision of the lane, or, when the commit was "
                "removed there, move on with `screentest models pull --update`"
            ) from error
        except EntryNotFoundError as error:
            raise NotFound(f"{repo} at {revision} lacks a file that it lists: {error}") from error
        except HFValidationError as error:
            raise BadRequest(f"{repo!r} cannot be the name of a repository: {error}") from error
        except OfflineModeIsEnabled as error:
            raise NotPossibleNow(f"HF_HUB_OFFLINE is set, so {repo} cannot be asked for; unset it to pull") from error
        except HfHubHTTPError as error:
            raise self._refusal(repo, error) from error
        except HTTPError as error:
            raise Unavailable(
                f"{self.endpoint} cannot be reached for {repo} ({type(error).__name__}: {error}); look at your "
                f"network and proxy; {KEPT}"
            ) from error
        except OSError as error:
            if error.errno is not None:  # the disk, which the command line reports
                raise
            raise Unavailable(f"{repo}: {error}; {KEPT}") from error

    def _gated(self, repo: str, status: int) -> str:
        login = "you are logged in, but have not been let in yet" if status == 403 else "and you are not logged in"
        return (
            f"{repo} is gated, {login}: open {self.endpoint}/{repo} and accept the licence, log in with "
            "`hf auth login` or set HF_TOKEN, then pull again; nothing was lost"
        )

    def _refusal(self, repo: str, error: HfHubHTTPError) -> Unauthenticated | Unavailable:
        status = error.response.status_code
        if status in {401, 403}:
            return Unauthenticated(
                f"{self.endpoint} refuses your token for {repo} (HTTP {status}); renew it with `hf auth login`, or "
                "correct HF_TOKEN"
            )
        said = error.server_message or error.response.reason_phrase
        return Unavailable(f"{self.endpoint} answers HTTP {status} for {repo} ({said}); try again later; {KEPT}")


class _Meter:
    """What http_get takes for a progress bar. `restarted`: 0, or minus the bytes that the server did not go on from."""

    def __init__(self, on_bytes: OnBytes, restarted: int) -> None:
        self._on_bytes = on_bytes
        if restarted:
            on_bytes(restarted)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        return None

    def update(self, size: int) -> None:
        self._on_bytes(size)


def _published(repo: str, sibling: Any) -> PublishedFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    # An id becomes a file name.
    is_usable = sibling.size is not None and _HEX.fullmatch(sibling.blob_id or "") and _HEX.fullmatch(sha256 or "0")
    if not is_usable:
        raise Unavailable(f"the hub lists {sibling.rfilename} of {repo} without size or a usable id; try again later")
    return PublishedFile(path=sibling.rfilename, size=sibling.size, git_oid=sibling.blob_id, sha256=sha256)
