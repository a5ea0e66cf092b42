"""A confusing answer before and after distillation: the paper's Figure 3, its case found by rule.

The rule: of the test questions with an added sentence whose passage fits the figure, those that
the single reader answers with a text no gold answer shares a word with, and the student exactly
right; of (the first 400 of) these the one where the single reader was surest. How many there are,
and how many of the opposite, is told beside it.

Notation: P passage tokens, N question tokens.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from qalib.data.adversary import VARIANT
from qalib.data.squad import Example
from qalib.study.distill_scores import SINGLE, STUDENT_ROW, evaluate_words
from qalib.study.distill_sets import ADDED, main_sets
from qalib.study.distill_stages import answerer_of, singles, trained_reader, training_of
from qalib.study.distill_study import students
from qalib.study.entries import Run
from qalib.study.marks import read_marks
from qalib.study.session import Study
from qalib.study.stages import note_data

LONGEST = 160  # tokens of the passage
AROUND = 5  # tokens on either side of an answer in the figure
WHO = (SINGLE, STUDENT_ROW)


@dataclass(frozen=True)
class Case:
    """One question with an added sentence in the eyes of two readers.

    ``maps``: where each passage token looks in the question, mean of the hops; ``start`` and
    ``end``: probabilities. The order of readers is that of ``WHO``.
    """

    asks: str
    gold: str
    said: dict[str, str]  # answers by reader
    question: list[str]
    passage: list[str]
    gold_at: tuple[int, int]  # passage tokens, inclusive
    taken_at: tuple[int, int]  # what the single reader took for it
    maps: np.ndarray  # (2, P, N)
    start: np.ndarray  # (2, P)
    end: np.ndarray  # (2, P)


def cases(study: Study) -> Run:
    """The case and the counts. Metrics: ``turned`` questions, ``cured`` and ``spoilt`` ones."""
    test = main_sets(study)[ADDED]
    readers = {SINGLE: singles(study)[0], STUDENT_ROW: students(study)[0]}
    scored = {who: evaluate_words(study, [run], test, who, ADDED) for who, run in readers.items()}

    def compute(work: Path) -> dict:
        note_data(work, test)
        turned = np.array([VARIANT in example.id for example in test])
        marks = {who: read_marks(run) for who, run in scored.items()}
        cured, spoilt = (
            turned & (marks[a]["F1"] == 0) & (marks[b]["EM"] == 100) for a, b in (WHO, WHO[::-1])
        )
        wrong = turned & (marks[SINGLE]["F1"] == 0)
        chosen = next((x for x in (cured, wrong, turned) if x.any()), turned)
        looked = [test.examples[i] for i in np.flatnonzero(chosen)]
        case = look(surest(readers[SINGLE], looked), readers)
        write_case(case, work)
        counts = {"turned": turned, "cured": cured, "spoilt": spoilt}
        return {name: int(rows.sum()) for name, rows in counts.items()}

    inputs = {"test": test.content_sha256} | {who: run.key for who, run in scored.items()}
    given = {"longest": LONGEST}
    run = study.store.get_or_run("distill-case", given, compute, inputs=inputs, force=study.force)
    return study.keep(run)


def surest(reader: Run, examples: list[Example], at_most: int = 400) -> Example:
    """The question that a reader is surest about, among those whose passage fits the figure."""
    answerer = answerer_of(trained_reader(reader), training_of(reader))
    sizes = {e.id: sum(len(w) for w in answerer.cut([e])) for e in examples[:at_most]}
    fitting = [e for e in examples[:at_most] if sizes[e.id] <= LONGEST]
    fitting = fitting or [min(examples[:at_most], key=lambda e: sizes[e.id])]
    found = answerer.answer_many(fitting)
    return max(zip(fitting, found, strict=True), key=lambda pair: pair[1][0].probability)[0]


@torch.inference_mode()
def look(example: Example, readers: dict[str, Run]) -> Case:
    """What two readers make of one question."""
    maps, start, end, said = [], [], [], {}
    for who, run in readers.items():
        answerer = answerer_of(trained_reader(run), training_of(run))
        window = answerer.cut([example])[0]
        output = answerer.reader(answerer.batch([window], [example]).to(answerer.device))
        hops = [x[0] for name, x in output.attentions.items() if name.startswith("align")]
        words, asks = len(window), len(window.question)  # batches are padded
        maps.append(torch.stack(hops).float().mean(dim=0)[:words, :asks].cpu().numpy())
        for side, kept in ((output.start_logits, start), (output.end_logits, end)):
            kept.append(side[0, :words].float().softmax(dim=0).cpu().numpy())
        said[who] = answerer.answer_many([example])[0][0]
    gold, taken = example.answers[0], said[SINGLE]
    return Case(
        example.question,
        gold.text,
        {who: answer.text for who, answer in said.items()},
        pieces(example.question, window.question.offsets),
        pieces(example.context, window.offsets),
        tokens_of(window.offsets, gold.start, gold.end),
        tokens_of(window.offsets, taken.start, taken.end),
        *(np.stack(x) for x in (maps, start, end)),
    )


def pieces(text: str, offsets: np.ndarray) -> list[str]:
    """The text of every token."""
    return [text[a:b] for a, b in offsets.tolist()]


def tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int]:
    """The tokens under characters [start, end), inclusive."""
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))
    return first, max(first, int(np.searchsorted(offsets[:, 0], end, side="left")) - 1)


def write_case(case: Case, work: Path) -> None:
    """Keep a case with its run."""
    from safetensors.numpy import save_file

    arrays = {name: getattr(case, name).astype(np.float32) for name in ("maps", "start", "end")}
    save_file(arrays, work / "case.safetensors")
    told = {name: value for name, value in vars(case).items() if name not in arrays}
    (work / "case.json").write_text(json.dumps(told, ensure_ascii=False), encoding="utf-8")


def read_case(run: Run) -> Case:
    """The case of a ``distill-case`` run."""
    from safetensors.numpy import load_file

    told = json.loads(run.file("case.json").read_text(encoding="utf-8"))
    told |= {name: tuple(told[name]) for name in ("gold_at", "taken_at")}
    return Case(**told, **load_file(run.file("case.safetensors")))


def points(case: Case) -> pd.DataFrame:
    """The words that are shown: token, word, each reader's start and end, and where it looks."""
    rows = []
    for i in (i for part in stretches(case) for i in part):
        row = {"token": i, "word": case.passage[i]}
        for who, start, end, seen in zip(WHO, case.start, case.end, case.maps, strict=True):
            most = int(seen[i].argmax())
            row |= {f"{who} starts": start[i], f"{who} ends": end[i]}
            row |= {f"{who} looks at": case.question[most], f"{who} share": seen[i, most]}
        rows.append(row)
    return pd.DataFrame(rows)


def stretches(case: Case) -> list[range]:
    """The passage tokens that are shown: around both answers, one stretch if they are close."""
    parts = []
    for first, last in sorted((case.gold_at, case.taken_at)):
        begin = max(0, first - AROUND)
        parts.append(range(begin, min(len(case.passage), min(last, first + 11) + AROUND + 1)))
    if parts[0].stop >= parts[1].start:
        return [range(parts[0].start, max(parts[0].stop, parts[1].stop))]
    return parts
