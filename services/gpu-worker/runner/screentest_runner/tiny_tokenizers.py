"""Tiny tokenizers made on the spot: the class, files and behaviour of the published ones, with a vocabulary of bytes.

A miniature needs no download, and its tokenizers go through the same files (tokenizer.json, tokenizer_config.json) as
those of a checkpoint.
"""

from __future__ import annotations

import ast
import inspect
import re
import string
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_LENGTH = 2048  # longer than any prompt with its template


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteFamily:
    """A family of byte-level BPE tokenizers.

    special_tokens: their order is id order. split: regex of the words. fixed: texts of its chat format. begins_with:
    the special token before every text, None without one.
    """

    special_tokens: tuple[str, ...]
    split: str
    end: str
    pad: str
    fixed: str = ""
    begins_with: str | None = None
    chat_template: str | None = None


LLAMA3 = ByteFamily(
    # the lane files name bos 0, eos 1, <image> 5 and padding 6 in the miniature of a Llama encoder
    special_tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<image>",
        "<pad>",
    ),
    # Source: the split pattern of Llama 3's published tokenizer.json
    split=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    end="<|end_of_text|>",
    pad="<pad>",
    begins_with="<|begin_of_text|>",
)
QWEN2 = ByteFamily(
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    # Source: transformers/models/qwen2/tokenization_qwen2.py, PRETOKENIZE_REGEX
    split=r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    end="<|im_end|>",
    pad="<|endoftext|>",
    fixed="<|im_start|>system\n<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n",
    chat_template="{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
)


def make_t5(_pipeline_class: type) -> Any:
    """A T5/UMT5 tokenizer (Unigram) that knows every printable ASCII character."""
    from transformers import T5TokenizerFast

    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    vocabulary += [(character, -3.0) for character in _printable()]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=512)


def make_byt5(_pipeline_class: type) -> Any:
    """The ByT5 tokenizer itself: it has no files, its vocabulary is the bytes."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def make_clip(_pipeline_class: type) -> Any:
    """A CLIP tokenizer: every byte, every byte at a word's end, and the two sentinels (ids 512 and 513)."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def make_gemma(_pipeline_class: type) -> Any:
    """A Gemma tokenizer: five sentinels (padding 0, eos 1, bos 2), every byte, every printable ASCII character."""
    from transformers import GemmaTokenizer

    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {token: index for index, token in enumerate([*tokens, "▁", *_printable()])}
    return GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_LENGTH)


def make_llama(pipeline_class: type) -> Any:
    return _make_byte_bpe(LLAMA3, pipeline_class)


def make_qwen2(pipeline_class: type) -> Any:
    return _make_byte_bpe(QWEN2, pipeline_class)


def _make_byte_bpe(family: ByteFamily, pipeline_class: type) -> Any:
    """Every byte, and every word of the pipeline's own prompt template, as one token.

    Thus the template has as many tokens as with the published tokenizer, and the positions that the pipeline's code
    takes for granted (Llama: crop_start 103 or 95, the image at 5; Qwen: crop_start 108) hold for the miniature too.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    between_specials = re.split("|".join(map(re.escape, family.special_tokens)), _template(pipeline_class))
    between_specials += re.split("|".join(map(re.escape, family.special_tokens)), family.fixed)
    words = [word for text in between_specials for word, _ in split.pre_tokenize_str(text)]
    tokens = dict.fromkeys((*family.special_tokens, *sorted(pre_tokenizers.ByteLevel.alphabet()), *words))
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # ignore_merges, as in Llama's published file: a whole word of the vocabulary is taken at once
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in family.special_tokens])
    if family.begins_with is not None:
        first = family.begins_with
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, vocabulary[first])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.begins_with,
        eos_token=family.end,
        pad_token=family.pad,
        chat_template=family.chat_template,
        model_max_length=MAX_LENGTH,
        padding_side="right",
    )


def _template(pipeline_class: type) -> str:
    """What the pipeline's code puts around a prompt: its module's template, or the sentences in its `__init__`."""
    template = getattr(sys.modules[pipeline_class.__module__], "DEFAULT_PROMPT_TEMPLATE", None)
    if template is not None:
        return str(template["template"].format(""))
    tree = ast.parse(textwrap.dedent(inspect.getsource(pipeline_class.__init__)))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return "\n".join(text.replace("{}", "") for text in texts if " " in text or "\n" in text)


def _printable() -> list[str]:
    return [character for character in string.printable if not character.isspace()]


# By the class that the published model_index.json names.
MAKERS: dict[str, Callable[[type], Any]] = {
    "T5Tokenizer": make_t5,
    "T5TokenizerFast": make_t5,
    "ByT5Tokenizer": make_byt5,
    "CLIPTokenizer": make_clip,
    "GemmaTokenizer": make_gemma,
    "LlamaTokenizerFast": make_llama,
    "Qwen2Tokenizer": make_qwen2,
    "Qwen2_5_VLProcessor": make_qwen2,
}
