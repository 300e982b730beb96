"""An OpenAI-compatible server that looks with the tiny SigLIP, in good moods and in bad ones. Run in the judge env.

    python -m tests.judging.openai_server --folder tests/fixtures/tiny_siglip

It prints its port. The mood is the first part of the path: `http://127.0.0.1:<port>/honest/v1`. Every answer comes
from the pictures that were posted; bad judges spoil an honest answer, bad servers the way back.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from threading import Lock
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from screentest_runner.judging.embeddings import TEMPLATES, Encoder
from screentest_runner.judging.endpoint import TEST_OWNER
from tests.judging.scenes import SEEN

MODEL: Final = "tiny-siglip"
KEY: Final = "sesame"
SLOW_S: Final = 1.5
SIDE_PX: Final = 64
STRAIGHT: Final = re.compile(r"Is (?:this )?(.+?)(?: visible)?\? Answer")
NEGATED: Final = re.compile(r"Is there no sign of (.+)\? Answer")
TIMES: Final = re.compile(r"([\d.]+) to [\d.]+ s")


class Eyes:
    """The tiny SigLIP: how likely a text is true of any of some pictures. One thread at a time."""

    def __init__(self, folder: str) -> None:
        self._encoder = Encoder({"lane": {"id": MODEL}, "weights_dir": folder}, dtype="float32", device="cpu")
        self._lock = Lock()
        # what a server with a prefix cache keeps: pictures, never an answer
        self._picture = lru_cache(4096)(self._encoded)

    def p(self, text: str, urls: tuple[str, ...]) -> float:
        with self._lock:
            pictures = np.concatenate([self._picture(url) for url in urls])
            phrases = [template.format(text) for template in TEMPLATES]
            if new := self._encoder.unread(phrases):
                self._encoder.read(new)
            logits = self._encoder.logits(self._encoder.texts(phrases), pictures).mean(axis=0)
        return 1 / (1 + math.exp(-float(logits.max())))

    def _encoded(self, url: str) -> np.ndarray:
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")
        return self._encoder.pictures([np.asarray(picture.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))])


class Asked:
    """One chat request: the pictures, what is asked about them, and when in the clip they are."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        content = body["messages"][0]["content"]
        text = " ".join(part["text"] for part in content if part["type"] == "text")
        self.urls = tuple(part["image_url"]["url"] for part in content if part["type"] == "image_url")
        negated, straight = NEGATED.search(text), STRAIGHT.search(text)
        self.is_negated = negated is not None
        found = negated or straight
        self.text = None if found is None else found.group(1)
        times = TIMES.search(text)
        self.begin_s = float(times.group(1)) if times else None
        self.is_probe = len(self.urls) == 1

    def p_yes(self, p: float) -> float:
        return 1 - p if self.is_negated else p


class Moods:
    """How each mood answers: P(yes), or None where it says something else. Probes are always answered honestly."""

    def __init__(self, eyes: Eyes) -> None:
        self._eyes = eyes
        self._random = Random(20261122)
        self._memory: dict[tuple[str, float | None], float] = {}
        self._moods: Mapping[str, Callable[[Asked], float | None]] = {
            "thinking": lambda asked: None,
            "blind": lambda asked: 0.5,
            "always-yes": lambda asked: 1.0,
            "prompt-blind": self._prompt_blind,
            "noisy": self._noisy,
            "position-biased": self._position_biased,
            "refuses-circles": lambda asked: None if "circle" in str(asked.text) else self._honest(asked),
        }

    def p_yes(self, mood: str, asked: Asked) -> float | None:
        if asked.text is None:
            return None
        is_bad_from_the_start = mood in ("thinking", "blind")
        if mood not in self._moods or (asked.is_probe and not is_bad_from_the_start):
            return self._honest(asked)
        return self._moods[mood](asked)

    def _honest(self, asked: Asked) -> float:
        return asked.p_yes(self._eyes.p(str(asked.text), asked.urls))

    def _prompt_blind(self, asked: Asked) -> float:
        """Sees whether there is anything, whatever it was asked."""
        return asked.p_yes(max(self._eyes.p(str(thing), asked.urls) for thing in SEEN))

    def _noisy(self, asked: Asked) -> float:
        return min(1.0, max(0.0, self._honest(asked) + self._random.uniform(-0.8, 0.8)))

    def _position_biased(self, asked: Asked) -> float:
        """Tells the story as it was told first, whatever it is shown, as long as it is shown something."""
        p = self._eyes.p(str(asked.text), asked.urls)
        if self._eyes.p("an empty black frame", asked.urls) > 0.5:
            return asked.p_yes(p)
        return asked.p_yes(self._memory.setdefault((str(asked.text), asked.begin_s), p))


class Handler(BaseHTTPRequestHandler):
    """Routes `/<mood>/v1/...`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    moods: Moods
    tried: Final[dict[str, int]] = {}

    def do_GET(self) -> None:
        owner = "somebody" if self._mood() == "real" else TEST_OWNER
        self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": owner}]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._spoiled(data):
            return
        body = json.loads(data)
        asked = Asked(body)
        p = self.moods.p_yes(self._mood(), asked)
        self._send(200, {"object": "chat.completion", "choices": [self._choice(p, body, asked)]})

    def _spoiled(self, data: bytes) -> bool:
        """Whether a bad server has answered already."""
        match self._mood():
            case "down":
                self._send(500, {"error": {"message": "CUDA out of memory"}})
            case "flaky" if self._tries(data) == 1:
                self._send(503, {"error": {"message": "loading the model"}})
            case "garbled":
                self._send(200, {"hello": "world"})
            case "locked" if self.headers["Authorization"] != f"Bearer {KEY}":
                self._send(401, {"error": {"message": "no key"}})
            case "endless":
                self._send_without_end()
            case "slow":
                time.sleep(SLOW_S)
                return False
            case _:
                return False
        return True

    def _tries(self, data: bytes) -> int:
        key = f"{hash(data)}"
        self.tried[key] = self.tried.get(key, 0) + 1
        return self.tried[key]

    def _choice(self, p: float | None, body: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
        if self._mood() == "no-logprobs":
            word = "Yes." if Random(f"{body.get('seed')}{asked.text}").random() < (p or 0.0) else "No."
            return {"index": 0, "message": {"role": "assistant", "content": word}, "logprobs": None}
        top = _top(p)
        word = max(top, key=lambda item: item["logprob"])["token"]
        content = [{"token": word, "logprob": max(item["logprob"] for item in top), "top_logprobs": top}]
        return {"index": 0, "message": {"role": "assistant", "content": word}, "logprobs": {"content": content}}

    def _mood(self) -> str:
        return self.path.split("/")[1]

    def _send(self, status: int, content: Mapping[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _send_without_end(self) -> None:
        """As long as somebody reads; without a length, so that nobody can tell before."""
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(b" " * 65536)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _top(p: float | None) -> list[dict[str, Any]]:
    """Yes and no in several spellings, as vocabularies have them, and something else that is likely or not."""
    other = "<think>" if p is None else "The"
    said = 0.01 if p is None else 0.98
    shares = {"Yes": 0.7, " yes": 0.2, "YES": 0.1}, {"No": 0.8, " no": 0.2}
    q = 0.5 if p is None else p
    found = {token: said * q * share for token, share in shares[0].items()}
    found |= {token: said * (1 - q) * share for token, share in shares[1].items()}
    found[other] = 1 - said
    return [{"token": token, "logprob": math.log(max(p, 1e-9))} for token, p in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", required=True, help="the checkpoint to look with")
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    Handler.moods = Moods(Eyes(arguments.folder))
    server = ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
