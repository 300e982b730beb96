"""Tiny tokenizers made on the spot: the class, files and behaviour of the published ones, with a vocabulary of bytes.

A miniature needs no download, and its tokenizers go through the same files (tokenizer.json, tokenizer_config.json) as
those of a checkpoint.
"""

from __future__ import annotations

import re
import string
import sys
from collections.abc import Callable
from typing import Any

# Order is id order: the lane files name bos 0, eos 1, <image> 5 and padding 6 in the miniature of a Llama encoder.
LLAMA_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<image>",
    "<pad>",
)
# Source: the split pattern of Llama 3's published tokenizer.json
LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_MAX_LENGTH = 2048  # longer than any prompt with its template


def make_t5(_pipeline_class: type) -> Any:
    """A T5/UMT5 tokenizer (Unigram) that knows every printable ASCII character."""
    from transformers import T5TokenizerFast

    characters = [character for character in string.printable if not character.isspace()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(character, -3.0) for character in characters]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def make_clip(_pipeline_class: type) -> Any:
    """A CLIP tokenizer: every byte, every byte at a word's end, and the two sentinels (ids 512 and 513)."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def make_llama(pipeline_class: type) -> Any:
    """A Llama 3 style tokenizer: every byte, and every word of the pipeline's own prompt template as one token.

    Thus the template has as many tokens as with the published tokenizer, and the positions that the pipeline's code
    takes for granted (crop_start 103 or 95, the image at 5) hold for the miniature too.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    template = sys.modules[pipeline_class.__module__].DEFAULT_PROMPT_TEMPLATE["template"]
    between_specials = re.split("|".join(map(re.escape, LLAMA_SPECIAL_TOKENS)), template.format(""))
    words = [word for text in between_specials for word, _ in split.pre_tokenize_str(text)]
    tokens = dict.fromkeys((*LLAMA_SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words))
    vocabulary = {token: index for index, token in enumerate(tokens)}

    # ignore_merges, as in the published file: a whole word of the vocabulary is taken at once
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in LLAMA_SPECIAL_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", vocabulary["<|begin_of_text|>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        pad_token="<pad>",
        model_max_length=LLAMA_MAX_LENGTH,
        padding_side="right",
    )


MAKERS: dict[str, Callable[[type], Any]] = {
    "T5Tokenizer": make_t5,
    "T5TokenizerFast": make_t5,
    "CLIPTokenizer": make_clip,
    "PreTrainedTokenizerFast": make_llama,
}
