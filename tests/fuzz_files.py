"""Mutate data, prediction and no-answer files: nothing may break, or change in silence.

``python tests/fuzz_files.py 10000`` reads so many files, the same in every run, and prints how many
were read, read with a warning, and refused; ``python tests/fuzz_files.py 1 SEED`` repeats one.
"""

import copy
import gzip
import json
import math
import random
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

from qalib.data.formats import load_file
from qalib.errors import QalibError
from qalib.metrics import score, score_files

CONTEXTS = ["Ada Quill built it in 1871. Née Öst.", "王小明设计了这座桥。", "👩‍🚀 e\u0301 Ely"]
ANSWERS = [["Ada Quill", "Quill"], ["1871"], ["王小明"], ["Ely"], []]
ODD = [None, True, False, 0, -1, 5, 10**30, 1.5, 28.0, math.nan, math.inf, "", " ", "28", "\ud800"]
ODD += ["q1", "Ada", "\r\n\x00", [], {}, [[]], ["Ada"], {"text": "Ada"}, {"id": 1}, [[[[]]]]]
NAMES = ["", "x", "data", "qas", "id", "answers", "paragraphs", "is_impossible"]


def forms() -> list[tuple[object, bool]]:
    """(tree, whether it is JSON lines): the same ten questions in every form."""
    rows, passages, mrqa = [], [], []
    for n in range(10):
        texts = ANSWERS[n % 5]
        context = next(c for c in CONTEXTS if all(text in c for text in texts))
        pairs = [{"text": t, "answer_start": context.index(t)} for t in texts]
        table = {key: [pair[key] for pair in pairs] for key in ("text", "answer_start")}
        bare = {"question": f"Who {n}?", "is_impossible": not texts}
        rows.append({"id": f"q{n}", "context": context, "answers": table} | bare)
        passages.append({"context": context, "qas": [{"id": f"q{n}", "answers": pairs} | bare]})
        spans = [
            {"char_spans": [[a, a + len(t) - 1]]} for t, a in zip(*table.values(), strict=True)
        ]
        qa = {"qid": f"q{n}", "detected_answers": spans, "answers": texts} | bare
        mrqa += [{"context": context, "qas": [qa]}] if texts else []
    articles = [{"title": "T", "paragraphs": [passage]} for passage in passages]
    squad = [({"version": version, "data": articles}, False) for version in ("1.1", "v2.0")]
    return [*squad, (rows, False), (rows, True), (passages, False), (mrqa, True)]


def nodes(tree: object) -> list[tuple[object, object]]:
    """(container, key or index) of every value in a tree."""
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    return [pair for key in keys for pair in ((tree, key), *nodes(tree[key]))]


def mutate_tree(tree: object, rng: random.Random) -> None:
    """Replace, remove, rename, repeat or overwrite a value."""
    (holder, key), (other, other_key) = rng.choices(nodes(tree), k=2)
    way = rng.randrange(5)
    if way == 0:
        del holder[key]
    elif way == 1:
        holder[key] = copy.deepcopy(other[other_key])
    elif way == 2 and isinstance(holder, dict):
        holder[rng.choice(NAMES)] = holder.pop(key)
    elif way == 2:
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))


def mutate_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Cut the file, or remove, repeat or replace a piece of it."""
    at, size = rng.randrange(len(raw)), rng.choice([1, 4, 200])
    piece = raw[at : at + size]
    new = rng.choice([b"", piece * 2, rng.randbytes(size), bytes([piece[0] ^ 1]) + piece[1:]])
    return raw[:at] + (new + raw[at + size :] if rng.random() < 0.8 else b"")


def mutated(tree: object, lines: bool, rng: random.Random) -> bytes:
    """A file with one to three mutations of its tree, its bytes or its gzip data."""
    tree, level = copy.deepcopy(tree), rng.random()
    for _ in range(rng.randrange(1, 4) if level < 0.7 and nodes(tree) else 0):
        mutate_tree(tree, rng)
    plain = rng.random() < 0.5
    texts = [json.dumps(value, ensure_ascii=plain) for value in (tree if lines else [tree])]
    raw = "\n".join(texts).encode("utf-8", "surrogatepass") or b" "
    raw = mutate_bytes(raw, rng) if 0.6 < level < 0.9 else raw
    raw = gzip.compress(raw, mtime=0) if level > 0.9 or rng.random() < 0.2 else raw
    return mutate_bytes(raw, rng) if level > 0.9 else raw


def values_of(raw: bytes) -> list:
    """The top-level entries of a file, or the values of its lines."""
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8-sig")
    found = []
    for piece in [text, *text.split("\n")]:
        try:
            found.append(json.loads(piece))
        except ValueError:
            continue
        if piece is text:
            inside = found[0].get("data") if isinstance(found[0], dict) else found[0]
            return inside if isinstance(inside, list) else found
    return found


def parts(value: object, key: str) -> list[dict]:
    """The dictionaries under a key, with the context around them, or the value itself."""
    inside = value.get(key, [value]) if isinstance(value, dict) else []
    inherited = {"context": value["context"]} if inside and "context" in value else {}
    rows = inside if isinstance(inside, list) else []
    return [inherited | row for row in rows if isinstance(row, dict)]


def read_plainly(raw: bytes) -> dict[str, list[tuple]]:
    """(question, context, texts) of each row of an id, as a short script would read them."""
    found: dict[str, list[tuple]] = {}
    passages = (passage for value in values_of(raw) for passage in parts(value, "paragraphs"))
    for row in (row for passage in passages for row in parts(passage, "qas")):
        texts = row.get("answers") or []
        texts = texts.get("text") if isinstance(texts, dict) else texts
        texts = [texts] if isinstance(texts, str) else texts
        if isinstance(texts, list):
            texts = [text.get("text") if isinstance(text, dict) else text for text in texts]
            # Without references, the spans of MRQA are the texts: those are not compared.
            mrqa = "detected_answers" in row
            texts = (texts or None) if mrqa else [text for text in texts if text]
        if "id" in row or "qid" in row:
            found.setdefault(str(row.get("id", row.get("qid"))), []).append(
                (row.get("question"), row.get("context"), texts)
            )
    return found


def check_data(path: Path, rng: random.Random) -> str:
    path.write_bytes(mutated(*rng.choice(forms()), rng))
    purpose = rng.choice(["train", "answer", "score"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dataset = load_file(path, purpose, skip_bad=rng.random() < 0.5)
    expected = read_plainly(path.read_bytes())
    for e in dataset:
        assert any(
            (purpose == "score" or (e.question, e.context) == (question, context))
            and (purpose == "answer" or texts is None or e.answer_texts == texts)
            for question, context, texts in expected[e.id]
        ), e
        assert all(e.context[a.start : a.end] == a.text for a in e.answers), e
    assert len(caught) <= 1, caught
    assert caught or len(dataset) == len(expected), "questions were lost"
    return "read with a warning" if caught else "read"


def check_predictions(path: Path, rng: random.Random) -> str:
    data = path.with_name("data.json")
    data.write_text(json.dumps(forms()[rng.randrange(2)][0]))
    odds = path.with_name("odds.json")
    texts = {f"q{n}": rng.choice([*ANSWERS[n % 5], ""]) for n in range(10)}
    numbers = {key: rng.choice([-3.5, 0, 0.5, 7]) for key in texts}
    which = rng.random() < 0.5
    path.write_bytes(mutated(texts, False, rng) if which else json.dumps(texts).encode())
    odds.write_bytes(json.dumps(numbers).encode() if which else mutated(numbers, False, rng))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = score_files(data, path, odds if not which or rng.random() < 0.5 else None)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    if not caught:
        na_probs = values_of(odds.read_bytes())[0] if "best_f1" in result else None
        assert result == score(load_file(data), values_of(path.read_bytes())[0], na_probs)
    return "read with a warning" if caught else "read"


def fuzz(cases: int, first: int, folder: Path) -> Counter:
    """How the files of these seeds were taken. Raises AssertionError or what broke, with a seed."""
    found: Counter[tuple[str, str]] = Counter()
    for seed in range(first, first + cases):
        rng = random.Random(seed)
        check = (check_data, check_predictions)[seed % 2]
        try:
            outcome = check(folder / "fuzz.json", rng)
        except QalibError as error:
            message = str(error)
            assert message.startswith(str(folder)) > ("\n" in message), (seed, message)
            outcome = "refused"
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        found[check.__name__.removeprefix("check_"), outcome] += 1
    return found


if __name__ == "__main__":
    count, start = map(int, [*sys.argv[1:], "0"][:2])
    with tempfile.TemporaryDirectory() as name:
        for (kind, outcome), n in sorted(fuzz(count, start, Path(name)).items()):
            print(f"{kind:12} {outcome:20} {n:6}")
