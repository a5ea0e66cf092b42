"""SQuAD files for tests."""

import json
from collections.abc import Sequence
from pathlib import Path

from qalib.data.schema import Example


def write_squad(examples: Sequence[Example], path: Path, version: str = "1.1") -> None:
    """Write examples as SQuAD JSON: an article for each title, a paragraph for each passage."""
    articles: dict[str, dict[str, list]] = {}
    for e in examples:
        answers = [{"text": a.text, "answer_start": a.start} for a in e.answers]
        entry = {"id": e.id, "question": e.question, "answers": answers}
        entry |= {} if e.answerable else {"is_impossible": True}
        articles.setdefault(e.title, {}).setdefault(e.context, []).append(entry)
    data = [
        {"title": title, "paragraphs": [{"context": c, "qas": q} for c, q in passages.items()]}
        for title, passages in articles.items()
    ]
    path.write_text(json.dumps({"version": version, "data": data}), encoding="utf-8")
