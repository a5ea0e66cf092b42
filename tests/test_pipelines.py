"""``qalib.pipeline`` against a literal version of the pipeline of transformers 4."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_reader
from transformers.utils import logging

import qalib
from qalib.errors import QalibError

PASSAGE = "Ada met Bo in Oslo, and Zörg's unbelievable ship (a barque) left for Reykjavík in 1931. "
CASES = [{"question": "Where did Ada meet Bo?", "context": PASSAGE}]
CASES += [{"question": "When?", "context": PASSAGE * 3}, {"question": "Who?", "context": "Bo "}]


@pytest.fixture(scope="module")
def qa():
    reader = tiny_reader()
    return qalib.pipeline(model=reader.encoder.eval(), tokenizer=reader.tokenizer, device=-1)


@torch.no_grad()
def reference(qa, question, context, top_k, handle_impossible_answer, align_to_words):
    """Scores of a window of at most 384 tokens, as transformers 4.57 computes them."""
    encoded = qa.tokenizer(question, context, return_tensors="pt")
    output, passage = qa.model(**encoded), torch.tensor([s == 1 for s in encoded.sequence_ids(0)])
    summed = passage | (encoded["input_ids"][0] == qa.tokenizer.cls_token_id)
    start, end = (
        logits[0].masked_fill(~summed, -10000.0).softmax(0)
        for logits in (output.start_logits, output.end_logits)
    )
    null = (start[0] * end[0]).item()
    scores = torch.outer(start, end).triu().tril(14) * torch.outer(passage, passage)
    best, places = scores.flatten().sort(descending=True)
    answers = {}
    for score, place in list(zip(best, places, strict=True))[
        : 2 * top_k + 10 if align_to_words else top_k
    ]:
        i, j = divmod(place.item(), len(start))
        if not score:
            continue
        begin, finish = encoded[0].offsets[i][0], encoded[0].offsets[j][1]
        if align_to_words:
            begin = encoded[0].word_to_chars(encoded[0].token_to_word(i), 1)[0]
            finish = encoded[0].word_to_chars(encoded[0].token_to_word(j), 1)[1]
        text = context[begin:finish]
        new = {"score": 0.0, "start": begin, "end": finish, "answer": text}
        answers.setdefault(text.lower(), new)["score"] += score.item()
    none = [{"score": null, "start": 0, "end": 0, "answer": ""}] * handle_impossible_answer
    found = sorted([*answers.values(), *none], key=lambda answer: -answer["score"])[:top_k]
    return found[0] if len(found) == 1 else found


@pytest.mark.parametrize("top_k", [1, 3, 40])
@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("align", [False, True])
def test_answers_are_those_of_transformers_4(qa, top_k, null, align):
    options = {"top_k": top_k, "handle_impossible_answer": null, "align_to_words": align}
    found = qa(CASES, **options)
    for case, ours in zip(CASES, found, strict=True):
        theirs = reference(qa, *case.values(), top_k, null, align)
        assert type(ours) is type(theirs)
        ours, theirs = ([a] if isinstance(a, dict) else a for a in (ours, theirs))
        pairs = list(zip(ours, theirs, strict=True))
        assert [a["score"] for a, _ in pairs] == pytest.approx(
            [b["score"] for _, b in pairs], rel=1e-4
        )
        assert [a["answer"] for a, _ in pairs] == [b["answer"] for _, b in pairs]
        assert [(a["start"], a["end"]) for a, _ in pairs] == [
            (b["start"], b["end"]) for _, b in pairs
        ]


def test_every_form_of_call_gives_the_same(qa):
    one = qa(**CASES[0])
    both = [one, qa(**CASES[1])]
    assert set(one) == {"score", "start", "end", "answer"}
    questions, contexts = ([case[key] for case in CASES[:2]] for key in ("question", "context"))
    squad = [SimpleNamespace(question_text=c["question"], context_text=c["context"]) for c in CASES]
    for alone in (CASES[0], [CASES[0]], (CASES[0],), squad[0]):
        assert qa(alone) == one
    assert qa(*CASES[0].values()) == qa(data=CASES[0]) == qa(X=[CASES[0]], padding=True) == one
    for several in (CASES[:2], squad[:2], {"question": questions, "context": contexts}):
        assert qa(several) == both
    assert qa(*CASES[:2]) == qa(question=questions, context=contexts) == both
    assert list(qa(case for case in CASES[:2])) == both
    assert qa(question=questions, context=PASSAGE)[0] == one
    assert qa(**CASES[0], topk=2) == qa(**CASES[0], top_k=2)


def test_long_contexts_are_cut_and_scores_stay_probabilities(qa, caplog):
    cut = {"question": "Where?", "context": PASSAGE * 8, "max_seq_len": 40, "doc_stride": 12}
    answer = qa(**cut)
    assert 0 < answer["score"] <= 1
    assert cut["context"][answer["start"] : answer["end"]] == answer["answer"]
    shorter = qa(**cut, max_answer_len=1, align_to_words=False, top_k=5)
    assert all(" " not in each["answer"] for each in shorter)
    logging.enable_propagation()
    qa(question="Where?", context=PASSAGE * 40)  # of more tokens than the model has positions
    logging.disable_propagation()
    assert not caplog.records


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("Who?", {}, "question="),
        ({"question": "Who?"}, {}, "a question and a context"),
        ({"question": "Who?", "context": ""}, {}, "empty"),
        ({"question": ["a", "b"], "context": ["c"]}, {}, "2 questions but 1 contexts"),
        (CASES, {"top_k": 0}, "top_k"),
        (CASES, {"max_answer_length": 3}, "max_answer_len"),
        (CASES, {"max_seq_len": 20, "doc_stride": 19}, "doc_stride"),
    ],
)
def test_mistakes_are_one_sentence(qa, inputs, options, message):
    with pytest.raises(QalibError, match=message):
        qa(inputs, **options)


def test_other_tasks_and_missing_tokenizers_are_refused(qa):
    with pytest.raises(QalibError, match="summarization"):
        qalib.pipeline("summarization")
    with pytest.raises(QalibError, match="tokenizer"):
        qalib.pipeline("question-answering", model=qa.model)
