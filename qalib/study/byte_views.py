"""What a reader of bytes sees: texts in three units, what each costs and loses, what reaches where.

The units are those of ``qalib.data.byte_features`` (code points capped at 255, as the byte-level
page has them, and the bytes of UTF-8) beside word pieces, the unit of the encoder reader.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from qalib.data.byte_features import SYMBOLS, code_points, lost_characters, utf8_bytes
from qalib.data.squad import Dataset, Example

if TYPE_CHECKING:  # looking at text needs no torch
    from qalib.readers.byte_reader import ByteReaderConfig

UNITS = ("code points", "UTF-8 bytes", "word pieces")

SAMPLES = {  # one sentence in several scripts
    "English": "The bridge was opened in 1931.",
    "Czech": "Most byl otevřen roku 1931.",
    "Vietnamese": "Cây cầu được khánh thành năm 1931.",
    "Greek": "Άνοιξε το 1931 η γέφυρα.",
    "Hebrew": "הגשר נפתח בשנת 1931.",
    "Japanese": "橋は1931年に開通した。",
}


def word_piece_tokenizer():
    """The word-piece tokenizer of the kit's default encoder, from its installed package.

    Raises QalibError if the package is missing or damaged.
    """
    from transformers import AutoTokenizer

    from qalib.readers.encoder_reader import MINILM, model_folder

    return AutoTokenizer.from_pretrained(model_folder(MINILM), use_fast=True)


def passages(dataset: Dataset) -> list[str]:
    """The different passages of a data set, in order of their first appearance."""
    return list(dict.fromkeys(example.context for example in dataset))


def word_pieces(texts: Sequence[str], tokenizer) -> list[list[int]]:
    """Word-piece numbers of every text; lone surrogates, which no tokenizer takes, are unknown."""
    clean = [re.sub("[\ud800-\udfff]", "\ufffd", text) for text in texts]
    return tokenizer(clean, add_special_tokens=False, verbose=False)["input_ids"]


# --- the first layer ---------------------------------------------------------------


def first_layer_cost(rows: int, length: int, width: int, kernel: int) -> pd.DataFrame:
    """A first convolution of one-hot text beside the same as a look-up, counted from shapes.

    ``rows`` texts of ``length`` characters; input in megabytes (float32 one-hot vectors, or one
    byte a character) and millions of multiplications and additions.
    """
    places = rows * length
    table = {
        "one-hot convolution": (4 * SYMBOLS * places, places * kernel * SYMBOLS * width),
        "look-up": (places, 0),
    }
    additions = [table["one-hot convolution"][1], places * kernel * width]
    frame = pd.DataFrame(table, index=["input, MB", "multiplications, millions"]).T / 1e6
    return frame.assign(**{"additions, millions": np.array(additions) / 1e6})


def symbol_counts(texts: Sequence[str]) -> np.ndarray:
    """How often each of the 256 numbers stands in the texts, as capped code points.  (256,)"""
    counts = np.zeros(SYMBOLS, dtype=np.int64)
    for text in texts:
        counts += np.bincount(code_points(text), minlength=SYMBOLS)
    return counts


# --- three units side by side ------------------------------------------------------


def character_table(text: str, tokenizer) -> pd.DataFrame:
    """A row for every character: its code point, the page's number, its bytes, its word piece."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    names = tokenizer.convert_ids_to_tokens(found["input_ids"])
    owner = {i: k for k, (a, b) in enumerate(found["offset_mapping"]) for i in range(a, b)}
    rows = [
        {
            "character": character,
            "code point": f"U+{ord(character):04X}",
            "the page's number": int(code_points(character)[0]),
            "UTF-8 bytes": " ".join(map(str, utf8_bytes(character))),
            "word piece": names[owner[i]] if i in owner else "",
        }
        for i, character in enumerate(text)
    ]
    return pd.DataFrame(rows)


def unit_counts(texts: dict[str, str], tokenizer) -> pd.DataFrame:
    """Texts by name: positions in each unit, and what becomes unreadable in it.

    "look alike": characters that share the number 255. "unknown": word pieces outside of the
    vocabulary.
    """
    pieces = word_pieces(list(texts.values()), tokenizer)
    rows = [
        {
            "text": text,
            "code points": len(text),
            "look alike": lost_characters(text),
            "UTF-8 bytes": len(utf8_bytes(text)),
            "word pieces": len(ids),
            "unknown": ids.count(tokenizer.unk_token_id),
        }
        for text, ids in zip(texts.values(), pieces, strict=True)
    ]
    return pd.DataFrame(rows, index=list(texts))


def sequence_lengths(texts: Sequence[str], tokenizer) -> pd.DataFrame:
    """Positions of every text in every unit.  columns unit, length; one row a text and unit"""
    lengths = {
        "code points": [len(text) for text in texts],
        "UTF-8 bytes": [len(utf8_bytes(text)) for text in texts],
        "word pieces": [len(ids) for ids in word_pieces(texts, tokenizer)],
    }
    frame = pd.DataFrame(lengths, columns=list(UNITS))
    return frame.melt(var_name="unit", value_name="length")


def lost_table(texts: Sequence[str]) -> pd.DataFrame:
    """The characters that the page's encoding cannot tell apart, the most frequent first.

    columns name, passages (in how many texts), times
    """
    times, held = Counter(), Counter()
    for text in texts:
        lost = [c for c in text if lost_characters(c)]
        times.update(lost)
        held.update(set(lost))
    order = sorted(times, key=lambda c: (-held[c], -times[c], c))
    rows = [
        {"name": unicodedata.name(c, f"U+{ord(c):04X}").lower(), "passages": held[c]} for c in order
    ]
    frame = pd.DataFrame(rows, index=order, columns=["name", "passages"])
    return frame.assign(times=[times[c] for c in order])


def survival(texts: Sequence[str], tokenizer) -> pd.DataFrame:
    """Percent of the texts that can be written down again from each unit.

    "exactly" to the letter; "but for case and spaces": if neither counts. A reader still cuts its
    answers out of the original text; what is lost here is lost to its eyes.
    """
    pieces = word_pieces(texts, tokenizer)
    written = {
        "code points": [_uncapped(text) for text in texts],
        "UTF-8 bytes": [utf8_bytes(t).tobytes().decode("utf-8", "surrogatepass") for t in texts],
        "word pieces": [tokenizer.decode(ids) for ids in pieces],
    }
    bare = [_bare(text) for text in texts]
    rows = [
        {
            "exactly": 100 * np.mean([a == b for a, b in zip(again, texts, strict=True)]),
            "but for case and spaces": 100
            * np.mean([_bare(a) == b for a, b in zip(again, bare, strict=True)]),
        }
        for again in written.values()
    ]
    return pd.DataFrame(rows, index=list(written))


def _uncapped(text: str) -> str:
    """A text from its capped code points; 255 stands for so many characters that it names none."""
    return bytes(code_points(text)).decode("latin-1").replace("\xff", "\ufffd")


def _bare(text: str) -> str:
    return "".join(text.lower().split())


def excerpt(texts: Sequence[str], around: int = 16) -> str:
    """The stretch around the first character from U+00FF on, in the text that has most kinds.

    The beginning of the first text, if no text has any.
    """
    richest = max(texts, key=lambda text: len({c for c in text if lost_characters(c)}))
    lost = (i for i, c in enumerate(richest) if lost_characters(c))
    middle = next(lost, around)
    return richest[max(0, middle - around) : middle + around]


# --- what reaches where ------------------------------------------------------------


def receptive_field(layers: int, kernel: int) -> int:
    """Input positions that one output of a stack can see: every layer adds kernel - 1 to one."""
    return 1 + layers * (kernel - 1)


def influence(config: ByteReaderConfig, text: str, part: str = "reader") -> np.ndarray:
    """How strongly each position of a passage moves the output at its middle.  (len(text),)

    The norm of the gradient with respect to the embedded text, of the encoder's output ("encoder")
    or of the start logit ("reader"), in a reader with fresh weights: 0 means out of sight.
    """
    from qalib.data.byte_features import collate_passages, passage_features
    from qalib.readers.byte_reader import build_byte_reader

    reader = build_byte_reader(replace(config, input="embedding")).eval()
    read = []

    def note_input(module, given, made):
        read.append(made.detach().requires_grad_())
        return read[-1]

    reader.embed.register_forward_hook(note_input)
    batch = collate_passages(passage_features([Example("probe", "Which of them?", text)]))
    middle = len(text) // 2
    if part == "encoder":
        seen = reader.encode(batch.passages, batch.passage_real)[0, middle].sum()
    else:
        seen = reader(batch).start_logits[0, middle]
    seen.backward()
    return read[0].grad[0, : len(text)].norm(dim=1).numpy()  # the passage was embedded first


def influence_table(config: ByteReaderConfig, length: int = 400) -> pd.DataFrame:
    """``influence`` with and without instance norm.  columns part, norm, offset, influence"""
    text = "a quick brown fox and a lazy dog meet by the river; " * (length // 50 + 1)
    parts = []
    for norm in (False, True):
        for part in ("encoder", "reader"):
            found = influence(replace(config, norm=norm), text[:length], part)
            offset = np.arange(length) - length // 2
            told = {"part": part, "norm": norm, "offset": offset, "influence": found}
            parts.append(pd.DataFrame(told))
    return pd.concat(parts, ignore_index=True)


def valid_lengths(length: int, layers: int, kernel: int) -> list[int]:
    """Positions left after 0, 1, ... ``layers`` "valid" convolutions of a text."""
    return [max(0, length - layer * (kernel - 1)) for layer in range(layers + 1)]


def lost_to_valid(dataset: Dataset, layers: int, kernel: int) -> pd.DataFrame:
    """What "valid" convolutions leave no position for, in percent of the questions.

    A question vanishes if the encoder leaves nothing of it. An answer vanishes if encoder and
    mixer, one after the other, cut off the start or the end of every gold answer.
    """
    margin = layers * (kernel - 1)  # both stacks, at either side
    short = [valid_lengths(len(e.question), layers, kernel)[-1] == 0 for e in dataset]
    answerable = [e for e in dataset if e.answerable]
    cut = [
        all(a.start < margin or a.end > len(e.context) - margin for a in e.answers)
        for e in answerable
    ]
    rows = {
        f"questions of less than {receptive_field(layers, kernel)} characters": short,
        f"answers within {margin} characters of an end of the passage": cut,
    }
    table = {name: (sum(found), 100 * np.mean(found)) for name, found in rows.items()}
    return pd.DataFrame(table, index=["questions", "percent"]).T.astype({"questions": int})
