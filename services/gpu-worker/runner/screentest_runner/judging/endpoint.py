"""Tier c elsewhere: any OpenAI-compatible server that reads pictures (vLLM, Ollama, llama.cpp), asked over HTTP.

Only the probabilities of the first word are read. Where the server gives none, five samples take their place and the
result says so.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any, Final, Literal
from urllib.parse import SplitResult, urlsplit

import numpy as np
from numpy.typing import NDArray

from screentest_runner.failures import AttemptFailure
from screentest_runner.judging import answers
from screentest_runner.judging.answers import Mass
from screentest_runner.judging.found import TEST_JUDGE, Found, Method, Progress, check_cancelled
from screentest_runner.judging.media import Media, Window
from screentest_runner.judging.questions import Question
from screentest_runner.protocol import FailureClass

# The most that OpenAI's interface allows, and enough for every spelling of two words.
TOP_LOGPROBS: Final = 20
SAMPLES, TEMPERATURE, SAMPLE_TOKENS = 5, 0.7, 3
# A server batches what comes together; more than it takes at once only waits in its queue.
CONCURRENCY: Final = 8
TRIES: Final = 4
TIMEOUT_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.5
# An answer is a word with its probabilities, some KB; a long list of models with descriptions has about one MiB.
MOST_ANSWER_BYTES: Final = 8 * 1024 * 1024
# Besides 5xx. Source: RFC 9110 and 6585, request timeout and too many requests.
RETRIED: Final = frozenset({408, 429})
CANCEL_LOOK_S: Final = 0.2
JPEG_QUALITY: Final = 92
PROBE_PX: Final = 128
PROBE_QUESTION: Final = "Is this an empty black frame?"
# What /models says of the owner of a model that knows a toy world only.
TEST_OWNER: Final = "screentest-test-judge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of the judge's file. mode: see answers.mode_of. timeout_s: of one request. pause_s: before the second try, twice
    that before the third, and so on.
    """

    concurrency: int = CONCURRENCY
    tries: int = TRIES
    timeout_s: float = TIMEOUT_S
    pause_s: float = FIRST_PAUSE_S
    longest_side_px: int = answers.LONGEST_SIDE_PX
    mode: answers.Mode = "full"


def settings_of(lane: Mapping[str, Any]) -> Settings:
    """Raises AttemptFailure(bad_kwargs) for a setting that there is not."""
    given = {**lane.get("settings", {}), "mode": answers.mode_of(lane)}
    if unknown := sorted(given.keys() - set(Settings.__slots__)):
        raise AttemptFailure(
            FailureClass.BAD_KWARGS, f"settings.{unknown[0]} is none of {', '.join(sorted(Settings.__slots__))}"
        )
    return Settings(**given)


class EndpointJudge:
    """Asks one model of one server."""

    tier: Literal["c"] = "c"

    def __init__(self, lane: Mapping[str, Any]) -> None:
        self._settings = settings_of(lane)
        self.longest_side_px = self._settings.longest_side_px
        self._server: Server | None = None
        self.method: Method = "logprobs"
        self.badges: tuple[str, ...] = ()

    def prepare(self) -> dict[str, str]:
        return {name: metadata.version(name) for name in ("httpx", "numpy", "pillow")}

    def load(self, load: dict[str, Any], device: str) -> None:
        """Asks about a black and a white picture. Raises AttemptFailure(layout) for a model that cannot judge,
        AttemptFailure(infrastructure) for a server that does not answer.
        """
        self._server = Server(load, self._settings)
        self.badges = (TEST_JUDGE,) if self._server.owner() == TEST_OWNER else ()
        self.method = self._server.probed()

    def answers(
        self, clip: Media, questions: Sequence[Question], windows: int, progress: Progress, cancelled: Event
    ) -> Found:
        if self._server is None:
            raise AttemptFailure(FailureClass.INFRASTRUCTURE, "the judge has no server: Load comes first")
        return answers.answer_all(
            partial(self._server.masses, method=self.method, cancelled=cancelled),
            clip,
            questions,
            windows,
            mode=self._settings.mode,
            method=self.method,
            progress=progress,
            cancelled=cancelled,
            badges=self.badges,
        )


class Server:
    """The HTTP side. Its address may be shown, its key never is."""

    def __init__(self, load: dict[str, Any], settings: Settings) -> None:
        import httpx

        endpoint = load.get("endpoint") or {}
        judge = load["lane"]["id"]
        if not endpoint.get("base_url") or not endpoint.get("model"):
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"judge {judge!r} has no server: set SCREENTEST_JUDGE_URL (for example http://localhost:11434/v1) and "
                "SCREENTEST_JUDGE_MODEL for its worker and start it again",
            )
        self._url, self._model = _address(str(endpoint["base_url"])), str(endpoint["model"])
        self._settings = settings
        self._client = httpx.Client(
            headers=_key_header(endpoint.get("key_file")),
            timeout=settings.timeout_s,
            limits=httpx.Limits(max_connections=settings.concurrency),
            # a proxy of the environment cannot reach a server that is on this very machine
            trust_env=not _is_loopback(self._url),
        )

    # ---- what the server is

    def owner(self) -> str | None:
        """Who owns the model; None where the server does not say, or lists no models. Raises for a model it lacks."""
        status, content = self._got("/models")
        listed = content.get("data") if status == 200 else None
        if not isinstance(listed, list):
            return None
        known = {str(item.get("id")): item for item in listed if isinstance(item, dict)}
        if self._model not in known:
            names = ", ".join(sorted(known)[:10]) or "none"
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"{self._shown_url()} has no model {self._model!r}, it has: {names}; set SCREENTEST_JUDGE_MODEL",
            )
        owned_by = known[self._model].get("owned_by")
        return None if owned_by is None else str(owned_by)

    def probed(self) -> Method:
        """How this model can be asked. Raises AttemptFailure(layout) for one that thinks first or sees no pictures."""
        black, white = (_plain_window(level) for level in (0, 255))
        reply = self._completion(self._question(black, PROBE_QUESTION))
        method: Method = "logprobs" if _top_of(reply) is not None else "sampled"
        found = [self.masses(window, [PROBE_QUESTION], method=method)[0].p for window in (black, white)]
        if None in found:
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"model {self._model!r} begins with {_first_word(reply)!r} where Yes or No was asked for; take an "
                "instruct model, or turn its thinking off at the server",
            )
        if not found[0] > found[1]:
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"model {self._model!r} finds white as black as black ({found[1]:.2f}, {found[0]:.2f}), so it does not "
                "see the pictures; take a vision model",
            )
        return method

    # ---- asking

    def masses(
        self, window: Window, texts: Sequence[str], *, method: Method, cancelled: Event | None = None
    ) -> list[Mass]:
        """One Mass per text, several at a time, in the order of the texts."""
        pictures = _data_urls(window.frames)
        one = self._sampled if method == "sampled" else self._read
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            asked = [pool.submit(one, self._question(window, text, pictures), cancelled) for text in texts]
            try:
                _wait(asked, cancelled)
            finally:
                pool.shutdown(cancel_futures=True)
        return [future.result() for future in asked]

    def _read(self, body: dict[str, Any], cancelled: Event | None) -> Mass:
        top = _top_of(self._completion(body, cancelled))
        # a single answer without probabilities is no answer
        return Mass(yes=0.0, no=0.0) if top is None else answers.mass_of(top)

    def _sampled(self, body: dict[str, Any], cancelled: Event | None) -> Mass:
        """Each sample counts a fifth."""
        asked = {key: value for key, value in body.items() if "logprobs" not in key}
        asked |= {"temperature": TEMPERATURE, "max_tokens": SAMPLE_TOKENS}
        words = [_first_word(self._completion({**asked, "seed": seed}, cancelled)) for seed in range(SAMPLES)]
        return answers.mass_of((word, 1 / SAMPLES) for word in words)

    def _question(self, window: Window, text: str, pictures: Sequence[str] | None = None) -> dict[str, Any]:
        """The pictures come before the question, so that a server which keeps prefixes reads them once."""
        urls = _data_urls(window.frames) if pictures is None else pictures
        content = [
            {"type": "text", "text": answers.shown_text(window)},
            *({"type": "image_url", "image_url": {"url": url}} for url in urls),
            {"type": "text", "text": answers.asked_text(text)},
        ]
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }

    def _completion(self, body: dict[str, Any], cancelled: Event | None = None) -> dict[str, Any]:
        """The first choice of one completion."""
        status, content = self._tried(
            partial(self._client.stream, "POST", self._url + "/chat/completions", json=body), cancelled
        )
        if status != 200:
            raise self._refused(status, content)
        choices = content.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise AttemptFailure(
                FailureClass.LAYOUT,
                f"{self._shown_url()} sent no chat completion; SCREENTEST_JUDGE_URL ends with /v1 on most servers",
            )
        return choices[0]

    def _got(self, path: str) -> tuple[int, dict[str, Any]]:
        status, content = self._tried(partial(self._client.stream, "GET", self._url + path), None)
        if status in (401, 403):
            raise self._refused(status, content)
        return status, content

    def _tried(self, send: Callable[[], Any], cancelled: Event | None) -> tuple[int, dict[str, Any]]:
        """Status and JSON, {} where it is none. Raises AttemptFailure(infrastructure) when every try failed,
        AttemptFailure(layout) for an answer without end.
        """
        import httpx

        why = ""
        for attempt in range(self._settings.tries):
            if attempt:
                self._pause(attempt, cancelled)
            try:
                with send() as response:
                    status, data = response.status_code, self._body(response)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if status < 500 and status not in RETRIED:
                return status, _json_of(data)
            why = f"status {status}: {_error_text(_json_of(data), data.decode(errors='replace'))}"
        raise AttemptFailure(
            FailureClass.INFRASTRUCTURE,
            f"{self._shown_url()} gave no answer in {self._settings.tries} tries ({why}); start the server or look at "
            "its log, then judge again",
        )

    def _body(self, response: Any) -> bytes:
        """Stops where no answer is that long: a wrong address may send a file, or a stream that never ends."""
        data = bytearray()
        for block in response.iter_bytes():
            data += block
            if len(data) > MOST_ANSWER_BYTES:
                raise AttemptFailure(
                    FailureClass.LAYOUT,
                    f"{self._shown_url()} sent more than {MOST_ANSWER_BYTES // 2**20} MiB where a word was asked for, "
                    "so it is no such server; SCREENTEST_JUDGE_URL ends with /v1 on most servers",
                )
        return bytes(data)

    def _pause(self, attempt: int, cancelled: Event | None) -> None:
        """Longer every time, and not the same for all that wait together."""
        pause_s = self._settings.pause_s * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        if cancelled is None:
            time.sleep(pause_s)
        elif cancelled.wait(pause_s):
            check_cancelled(cancelled)

    def _refused(self, status: int, content: dict[str, Any]) -> AttemptFailure:
        why = f"{self._shown_url()} refused with status {status}: {_error_text(content, 'no reason given')}"
        hint = {
            401: "set SCREENTEST_JUDGE_KEY_FILE to a file with the key",
            403: "set SCREENTEST_JUDGE_KEY_FILE to a file with a key that may use the model",
            404: "SCREENTEST_JUDGE_URL ends with /v1 on most servers; SCREENTEST_JUDGE_MODEL names one of its models",
        }.get(status, "the server does not take the question as it is; try another server or model")
        return AttemptFailure(FailureClass.LAYOUT, f"{why}; {hint}")

    def _shown_url(self) -> str:
        """Without a name and password, which some people write into addresses."""
        parts = urlsplit(self._url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _wait(asked: Sequence[Future[Mass]], cancelled: Event | None) -> None:
    """Until all are answered. Raises what the first one that failed raised, or AttemptFailure(cancelled)."""
    waiting: set[Future[Mass]] = set(asked)
    while waiting:
        done, waiting = wait(waiting, timeout=CANCEL_LOOK_S, return_when="FIRST_EXCEPTION")
        if cancelled is not None:
            check_cancelled(cancelled)
        for future in done:
            future.result()


def _key_header(key_file: str | None) -> dict[str, str]:
    """Raises AttemptFailure(layout) for a file that cannot be read or is empty."""
    if key_file is None:
        return {}
    try:
        key = Path(key_file).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise AttemptFailure(FailureClass.LAYOUT, f"SCREENTEST_JUDGE_KEY_FILE cannot be read: {error}") from error
    if not key:
        raise AttemptFailure(FailureClass.LAYOUT, "SCREENTEST_JUDGE_KEY_FILE is empty; write the key into it")
    if not (key.isascii() and key.isprintable() and " " not in key):
        # the HTTP library refuses such a header with its value in the message, and that goes into the report
        raise AttemptFailure(
            FailureClass.LAYOUT,
            "SCREENTEST_JUDGE_KEY_FILE holds a line break, a blank or a sign that no key has; write the key alone",
        )
    return {"Authorization": f"Bearer {key}"}


def _address(url: str) -> str:
    """Without a slash at its end. Raises AttemptFailure(layout) for what is no address; a name and password that stand
    in it are not repeated.
    """
    if why := _why_no_address(url):
        raise AttemptFailure(
            FailureClass.LAYOUT,
            f"SCREENTEST_JUDGE_URL is no address of a server ({why}); write it like http://localhost:11434/v1",
        )
    return url.rstrip("/")


def _why_no_address(url: str) -> str:
    import httpx

    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            return "it begins with no http://<host>"
        if not _has_port(parts):
            return "its port is no number up to 65535"
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):  # their own words may repeat a password
        return "it holds what no address can"
    return ""


def _has_port(parts: SplitResult) -> bool:
    """One that can be, or none. What stands there instead may be a piece of a password: no message may repeat it."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# ---- pictures


def _data_urls(frames: NDArray[np.uint8]) -> list[str]:
    return [_data_url(frame) for frame in frames]


def _data_url(frame: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _plain_window(level: int) -> Window:
    frames = np.full((1, PROBE_PX, PROBE_PX, 3), level, np.uint8)
    return Window(begin_s=0.0, end_s=0.0, frames=frames, times_s=(0.0,))


# ---- what servers send


def _json_of(data: bytes) -> dict[str, Any]:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _error_text(content: dict[str, Any], otherwise: str) -> str:
    error = content.get("error", otherwise)
    text = error.get("message", otherwise) if isinstance(error, dict) else error
    return str(text).strip()[:200] or "no reason given"


def _top_of(choice: dict[str, Any]) -> list[tuple[str, float]] | None:
    """(token, probability) of the first word; None where the server gives no log-probabilities."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    top = first.get("top_logprobs") if isinstance(first, dict) else None
    if not isinstance(top, list) or not top:
        return None
    try:
        found = [(str(item["token"]), float(item["logprob"])) for item in top]
    except (KeyError, TypeError, ValueError):
        return None
    if any(math.isnan(logprob) for _, logprob in found):
        return None  # min(0, NaN) is 0: what overflowed at the server would read as certain
    return [(token, math.exp(min(0.0, logprob))) for token, logprob in found]


def _first_word(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    text = str(message.get("content") or "") if isinstance(message, dict) else ""
    words = text.split()
    return words[0].strip(".,!:;\"'*") if words else ""
