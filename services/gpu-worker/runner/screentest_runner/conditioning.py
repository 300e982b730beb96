"""The gate on prompt embeddings: they must be finite, not zero, and another prompt must give others.

It watches the first prompt that a pipeline encodes after its load, and runs that text encoder once more with one token
exchanged: so it needs to know nothing of how any pipeline makes its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from screentest_runner.failures import AttemptFailure
from screentest_runner.protocol import FailureClass


def watch_text_encoders(pipe: Any) -> None:
    """Have every text encoder checked once, in its first call with a prompt that has a token to exchange."""
    for name, part in pipe.components.items():
        if name.startswith("text_encoder") and part is not None:
            _Watch(name, part)


class _Watch:
    def __init__(self, name: str, encoder: Any) -> None:
        self._name = name
        self._is_probing = False
        self._handle = encoder.register_forward_hook(self._after_forward, with_kwargs=True)

    def _after_forward(self, encoder: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        ids, mask = _input_of(arguments, keywords)
        if self._is_probing or ids is None:
            return
        place = _exchangeable(ids, mask, _special_ids(encoder.config))
        if place is None:  # an empty negative prompt, say: the next call may have words
            return
        self._is_probing = True
        try:
            other = encoder(*_with_ids(arguments, ids, place), **_with_ids(keywords, ids, place))
        finally:
            self._is_probing = False
        # an encoder that fails stays watched: the runner stays warm, and its next prompt is no better
        check_embeddings(self._name, embeddings_of(output), embeddings_of(other), mask)
        self._handle.remove()


def check_embeddings(name: str, given: Any, other: Any, mask: Any) -> None:
    """Raises AttemptFailure(conditioning). given, other: (B, L, D) of two prompts. mask: (B, L), 1 where there are
    tokens, None for everywhere.
    """
    if mask is not None:
        given, other = given[mask.bool()], other[mask.bool()]
    trouble = None
    if not bool(given.isfinite().all()):
        trouble = "are not finite: choose another dtype for it in pipeline.dtype"
    elif not bool(given.any()):
        trouble = "are all zero: the prompt has no effect; fetch its weights again or use another transformers"
    elif bool((given == other).all()):
        trouble = "are the same for two prompts: the prompt has no effect; fetch its weights again"
    if trouble is not None:
        raise AttemptFailure(FailureClass.CONDITIONING, f"the embeddings of {name} {trouble}")


def embeddings_of(output: Any) -> Any:
    """Those of single tokens, (B, L, D), in whatever a text encoder of transformers returns."""
    found = getattr(output, "last_hidden_state", None)
    if found is not None:
        return found
    hidden = getattr(output, "hidden_states", None)  # of a language model that also predicts
    return output[0] if hidden is None else hidden[-1]


def _input_of(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """Token ids and attention mask, each (B, L) or None."""
    ids = keywords.get("input_ids", arguments[0] if arguments else None)
    mask = keywords.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
    is_of_tokens = ids is not None and mask is not None and mask.shape == ids.shape
    return ids, mask if is_of_tokens else None


def _special_ids(config: Any) -> set[int]:
    """Ids that mean something to the encoder itself: ends, padding, the place of an image."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}
    return {value for key, value in values.items() if key.endswith(("token_id", "token_index")) and type(value) is int}


def _exchangeable(ids: Any, mask: Any, special: set[int]) -> tuple[int, int] | None:
    """(position, new id) in the first row: a token in the middle of the prompt becomes another one of it."""
    row = ids[0].tolist()
    attended = [1] * len(row) if mask is None else mask[0].tolist()
    places = [place for place, token in enumerate(row) if attended[place] and token not in special]
    if not places:
        return None
    place = places[len(places) // 2]
    others = [row[other] for other in places if row[other] != row[place]]
    return place, others[0] if others else max(0, row[place] - 1)


def _with_ids(given: Any, ids: Any, place: tuple[int, int]) -> Any:
    """The arguments or keywords with one id exchanged, where the ids are among them."""
    position, token = place
    changed = ids.clone()
    changed[0, position] = token
    if isinstance(given, tuple):
        return tuple(changed if value is ids else value for value in given)
    return {key: changed if value is ids else value for key, value in given.items()}
