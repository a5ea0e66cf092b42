"""Stages of notebook 08: what an ensemble predicts for its training data, and one test question.

Notation: T teachers, B rows of a batch, P passage tokens, N question tokens; q1 and q2 the
ensemble's start and end probabilities, k and l the gold ones.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from qalib.data.schema import Dataset, Example
from qalib.settings import settings
from qalib.study.run_cache import Run, stage
from qalib.study.stages.distillation import load_answerer, teacher_targets

if TYPE_CHECKING:
    from qalib.distill.teacher_cache import TeacherTargets


# --- the ensemble's predictions -------------------------------------------------------------------


@settings
class TargetSummary:
    """How many rows are averaged over, and the temperature of the softened ensemble."""

    rows: Annotated[int, Field(ge=1)] = 2000
    temperature: float = 2.0


@stage("summarize-targets", publish=())
def summarize_targets(config: TargetSummary, work: Path, data: Dataset, cache: Run) -> dict:
    """What the ensemble of all teachers of a cache predicts for its training data.

    Metrics: ``rows`` used; by "one" (the mean of single teachers), "all" and "softened" (all, at
    the temperature) ``gold``, the probability q1(k) q2(l) of the first gold answer in percent, and
    ``entropy`` of q1 and q2 together in bits; ``agree``, percent of rows where all teachers have
    the same most probable start and end; ``mistakes``, the five most confident ones; ``words``,
    the twenty with the largest probabilities of the row with the first mistake.
    """
    import torch

    count = sum(name.startswith("teachers.") for name in cache.inputs)
    targets = teacher_targets(cache, range(count))
    examples = {example.id: example for example in data.examples}
    rows = _gold_rows(targets, examples, config.rows)
    parts = [
        _predictions(targets, rows[begin : begin + 64], config.temperature)
        for begin in range(0, len(rows), 64)
    ]
    gold, entropy, agree = (torch.cat(part, dim=-1).double() for part in zip(*parts, strict=True))

    def by_teachers(values: torch.Tensor) -> dict[str, float]:
        *each, together, softened = values.mean(dim=1).tolist()
        return {"one": float(np.mean(each)), "all": together, "softened": softened}

    mistakes = _mistakes(targets, examples)
    return {
        "rows": len(rows),
        "gold": by_teachers(100 * gold),
        "entropy": by_teachers(entropy / np.log(2)),
        "agree": 100 * float(agree.mean()),
        "mistakes": [mistake for _, mistake in mistakes],
        "words": _words(targets, [*(row for row, _ in mistakes), 0][0], config, examples),
    }


def _gold_rows(
    targets: "TeacherTargets", examples: dict[str, Example], count: int
) -> list[tuple[int, int, int]]:
    """At most ``count`` evenly spaced rows with the passage tokens of their first gold answer."""
    from qalib.distill.alignment import span_positions

    found = []
    for row in range(0, len(targets), -(-len(targets) // count)):
        span = targets.spans[row]
        answer = examples[span.id].answers[0]
        tokens = span_positions(answer.start, answer.end, span._replace(context_start=0))
        if tokens:
            found.append((row, *tokens))
    return found


def _predictions(
    targets: "TeacherTargets", rows: Sequence[tuple[int, int, int]], temperature: float
) -> tuple:
    """Of each teacher, of all, and of all softened: gold probability and entropy (nats).

    -> (T + 2, B), (T + 2, B), and where all teachers have the same most probable span (B,)
    """
    import torch

    from qalib.losses import entropy, teacher_probabilities

    start, end, mask = targets.logits([row for row, _, _ in rows])
    first, last = (torch.tensor([row[side] for row in rows]) for side in (1, 2))
    row = torch.arange(len(rows))
    ensembles = [([t], 1.0) for t in range(len(start))]
    ensembles += [(slice(None), 1.0), (slice(None), temperature)]
    q = [
        [teacher_probabilities(logits[who], mask, tau) for logits in (start, end)]
        for who, tau in ensembles
    ]
    gold = torch.stack([q1[row, first] * q2[row, last] for q1, q2 in q])
    best = torch.stack([torch.stack([side.argmax(dim=1) for side in pair]) for pair in q[:-2]])
    return gold, torch.stack([entropy(*pair) for pair in q]), (best == best[0]).all(0).all(0)


def _mistakes(
    targets: "TeacherTargets", examples: dict[str, Example], count: int = 5
) -> list[tuple[int, dict]]:
    """The rows with the most confident distractors, each question once, and what they are."""
    spans, confidence = targets.distractors()
    found: dict[str, tuple[int, dict]] = {}
    for row in np.argsort(-confidence, kind="stable").tolist():
        example, (a, b) = examples[targets.spans[row].id], spans[row].tolist()
        if confidence[row] > 0 and len(found) < count:
            texts = (example.question, example.answers[0].text, example.context[a:b])
            mistake = dict(zip(("question", "gold", "predicted"), texts, strict=True))
            found.setdefault(example.id, (row, {**mistake, "probability": float(confidence[row])}))
    return list(found.values())


def _words(
    targets: "TeacherTargets", row: int, config: TargetSummary, examples: dict, count: int = 20
) -> list[dict]:
    """The words of a row with the largest probabilities, in order of appearance.

    word; start, end, "start, softened", "end, softened"; part_of: "gold", "mistake" or ""
    """
    from qalib.losses import teacher_probabilities

    start, end, mask = targets.logits([row])
    table = {
        f"{side}{name}": teacher_probabilities(logits, mask, tau)[0].numpy()
        for name, tau in (("", 1.0), (", softened", config.temperature))
        for side, logits in (("start", start), ("end", end))
    }
    highest = np.max(list(table.values()), axis=0)
    span, (a, b) = targets.spans[row], targets.distractors().spans[row].tolist()
    example, words = examples[span.id], []
    parts = [("gold", g.start, g.end) for g in example.answers] + [("mistake", a, b)]
    for i in np.sort(np.argsort(-highest, kind="stable")[:count]).tolist():
        begin, stop = span.offsets[i].tolist()
        part_of = [name for name, first, last in parts if begin < last and stop > first]
        row_values = {name: float(values[i]) for name, values in table.items()}
        words.append(
            {"word": example.context[begin:stop], **row_values, "part_of": [*part_of, ""][0]}
        )
    return words


# --- one question in detail -------------------------------------------------------------------


@settings
class ExampleConfig:
    """Which questions fit a figure: those whose passage has at most so many tokens."""

    max_tokens: Annotated[int, Field(ge=1)] = 160


@stage("alignment-example", publish=("example.json", "arrays.safetensors"))
def alignment_example(config: ExampleConfig, work: Path, data: Dataset, readers: list[Run]) -> dict:
    """What several readers predict for one question, the one the first is most confident about.

    It is chosen among the questions of ``data`` (the first 400) whose passage fits. Writes
    example.json (question, gold, predictions, the tokens of question and passage, the passage
    tokens of the gold answer and of the first reader's) and arrays.safetensors: attention, the mean
    over hops of each passage token's attention to the question (readers, P, N), and the
    probabilities start and end (readers, P).
    """
    from safetensors.numpy import save_file

    answerers = [load_answerer(run, None) for run in readers]
    example = _most_confident(answerers[0], data.examples[:400], config.max_tokens)
    window = answerers[0].make_windows([example])[0]
    outputs = [_reader_arrays(answerer, window, example) for answerer in answerers]
    candidates = [answerer.answer_many([example])[0][0] for answerer in answerers]
    arrays = {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}
    save_file(arrays, work / "arrays.safetensors")
    gold, predicted = example.answers[0], candidates[0]
    content = {
        "question": example.question,
        "gold": gold.text,
        "predictions": [candidate.text for candidate in candidates],
        "question_tokens": [example.question[a:b] for a, b in window.question.offsets.tolist()],
        "passage_tokens": [example.context[a:b] for a, b in window.offsets.tolist()],
        "gold_tokens": _tokens_of(window.offsets, gold.start, gold.end),
        "predicted_tokens": _tokens_of(window.offsets, predicted.start, predicted.end),
    }
    text = json.dumps(content, ensure_ascii=False)
    (work / "example.json").write_text(text, encoding="utf-8")
    return {"questions": len(data)}


def _most_confident(answerer: Any, examples: Sequence[Example], max_tokens: int) -> Example:
    """The example with the most probable answer among those whose passage fits."""
    sizes = {e.id: sum(len(w) for w in answerer.make_windows([e])) for e in examples}
    fitting = [e for e in examples if sizes[e.id] <= max_tokens]
    fitting = fitting or [min(examples, key=lambda e: sizes[e.id])]
    found = answerer.answer_many(fitting)
    pairs = zip(fitting, found, strict=True)
    return max(pairs, key=lambda pair: pair[1][0].probability)[0]


def _reader_arrays(answerer: Any, window: Any, example: Example) -> dict[str, np.ndarray]:
    """attention (P, N), start (P,) and end (P,) of one reader, float32."""
    import torch

    with torch.inference_mode():
        output = answerer.reader(answerer.collate([window], [example]).to(answerer.device))
    hops = [maps[0] for name, maps in output.attentions.items() if name.startswith("align ")]
    words, question = len(window), len(window.question)  # batches are padded
    attention = torch.stack(hops).float().mean(dim=0)[:words, :question]
    sides = [logits[0, :words].float().softmax(dim=0) for logits in output[:2]]
    arrays = zip(("attention", "start", "end"), (attention, *sides), strict=True)
    return {name: values.cpu().numpy() for name, values in arrays}


def _tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The tokens under characters [start, end), inclusive."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    return first, max(first, int(np.searchsorted(offsets[:, 0], end, side="left")) - 1)
