"""The question-answering pipeline of transformers 4, which transformers 5 no longer has.

    qa = qalib.pipeline(model="deepset/roberta-base-squad2")
    qa(question="Who designed the bridge?", context=passage)
    # {"score": 0.98, "start": 35, "end": 45, "answer": "Mira Kovač"}

Calls, options, defaults and results are those of its last releases (4.54 to 4.57). Within a window,
the span from token i to token j, of at most ``max_answer_len`` tokens, has the score

    p(i, j) = exp(s_i) / sum_t exp(s_t) * exp(e_j) / sum_t exp(e_t)

for start logits s and end logits e, with t over the passage's tokens and [CLS]. Spans with the same
text, ignoring case, are one answer: their scores are summed in a window, and the best sum of all
windows counts. "No answer" scores the minimum of p([CLS], [CLS]) over windows. Two differences:
scores are not summed over windows, and an answer has no surrounding white space.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from qalib import inference
from qalib.data.batching import Batch
from qalib.data.schema import Example
from qalib.data.windows import Window, WindowConfig, fit_windows, replace_surrogates
from qalib.decoding import decode_spans, mask_logits
from qalib.errors import QalibError
from qalib.models.encoder import EncoderReader
from qalib.models.pretrained import windows_of
from qalib.settings import settings

NAMES = ("question", "context", "question_text", "context_text")  # the last two: SquadExample
IGNORED = {"framework", "use_fast", "padding", "batch_size", "num_workers"}  # without effect


@settings
class QuestionAnsweringOptions:
    """Options of a pipeline or of one call; lengths in word pieces."""

    top_k: inference.Count = 1
    max_answer_len: inference.Count = 15
    max_seq_len: inference.Count | None = None  # of an input; default: 384, or the reader's if less
    doc_stride: Annotated[int, Field(ge=0)] | None = None  # default: 128, at most max_seq_len / 2
    max_question_len: inference.Count = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def windows(self, trained: WindowConfig) -> WindowConfig:
        """How passages are split; if inputs are short, questions are cut to leave room."""
        length = self.max_seq_len or min(384, trained.max_length)
        stride = min(length // 2, 128) if self.doc_stride is None else self.doc_stride
        question = max(1, min(self.max_question_len, length - stride - 9))
        return WindowConfig(length, stride, question)


def pipeline(
    task: str = "question-answering",
    model: Any = "",
    tokenizer: Any = None,
    device: Any = "",
    precision: str = "fp32",
    **options,
) -> "QuestionAnsweringPipeline":
    """A question-answering pipeline.

    model      folder, Hub name, run, or a loaded transformers model; default: the published reader
    tokenizer  a loaded one; required for a loaded model, else by default the model's own
    device     "cuda", "mps", "cpu" or the number of a GPU, -1 = cpu
    options    :class:`QuestionAnsweringOptions`, the defaults of its calls

    Raises QalibError for another task, unknown options, or an unusable model or tokenizer.
    """
    if task != "question-answering":
        raise QalibError(f"the task {task!r} is not one of qalib; it has 'question-answering'.")
    device = {-1: "cpu"}.get(device, f"cuda:{device}") if type(device) is int else str(device or "")
    named = isinstance(model, str | Path)
    loaded = tokenizer is not None and not isinstance(tokenizer, str | Path)
    if not loaded and not (named and str(tokenizer or model) == str(model)):
        raise QalibError("give the tokenizer as AutoTokenizer.from_pretrained loads it.")
    if named:
        config = inference.AnswerConfig(windows=windows_of(model), precision=precision)
        answerer = inference.QuestionAnswerer.load(model, config, device)
    else:
        reader = EncoderReader(model, tokenizer).to(inference.choose_device(device))
        windows = fit_windows(reader.max_length)
        config = inference.AnswerConfig(windows=windows, precision=precision)
        answerer = inference.QuestionAnswerer(reader, config)
    if loaded:
        reader = answerer.reader
        answerer.reader = EncoderReader(reader.encoder, tokenizer, reader.untrained).eval()
    return QuestionAnsweringPipeline(answerer, **options)


class QuestionAnsweringPipeline:
    """Answers questions about contexts, as dictionaries with score, start, end and answer."""

    def __init__(self, answerer: inference.QuestionAnswerer, **options):
        self.answerer, self.options = answerer, _given(options)
        self.model, self.tokenizer = answerer.reader.encoder, answerer.reader.tokenizer
        QuestionAnsweringOptions(**self.options)

    def __call__(self, *inputs, question=None, context=None, data=None, X=None, **options):
        """The answer: a dictionary, or a list of several; for several questions, a list of these.

        inputs   a dictionary with "question" and "context", or an object with ``question`` and
                 ``context`` or with ``question_text`` and ``context_text``; several of these, a
                 list or an iterator (which gives an iterator); or question and context as text
        question, context  strings or lists; a single context serves all questions
        data, X            the same as ``inputs``
        """
        options = QuestionAnsweringOptions(**{**self.options, **_given(options)})
        if len(inputs) == 2 and all(isinstance(text, str) for text in inputs):
            items: Any = [{"question": inputs[0], "context": inputs[1]}]
        elif inputs:
            items = inputs[0] if len(inputs) == 1 else list(inputs)
        elif question is not None and context is not None:
            items = [{"question": question, "context": context}]
        else:
            items = X if data is None else data
        if isinstance(items, Iterator):
            return (self._answer(list(_examples(item)), options) for item in items)
        if isinstance(items, str | bytes) or items is None:
            raise QalibError("give question= and context=, or dictionaries with these keys.")
        rows = items if isinstance(items, Iterable) and not isinstance(items, Mapping) else [items]
        return self._answer([example for row in rows for example in _examples(row)], options)

    def _answer(self, examples: list[Example], options: QuestionAnsweringOptions):
        trained = self.answerer.config.windows
        config = replace(self.answerer.config, windows=options.windows(trained))
        found = _SpanAnswerer(self.answerer.reader, config, options).predict(examples)
        return found[0] if len(found) == 1 else found


def _given(options: dict) -> dict:
    """The options that are set and have an effect, with ``topk`` renamed to ``top_k``."""
    options = {"top_k" if name == "topk" else name: value for name, value in options.items()}
    return {n: value for n, value in options.items() if value is not None and n not in IGNORED}


def _examples(item: Any) -> Iterator[Example]:
    """The questions of one input. Raises QalibError if it lacks a question or a context."""
    found = item if isinstance(item, Mapping) else {n: getattr(item, n, None) for n in NAMES}
    questions, contexts = (
        found.get(f"{name}_text") if found.get(name) is None else found[name] for name in NAMES[:2]
    )
    questions = [questions] if isinstance(questions, str) else questions
    if isinstance(contexts, str) and isinstance(questions, list | tuple):
        contexts = [contexts] * len(questions)
    if not isinstance(questions, list | tuple) or not isinstance(contexts, list | tuple):
        raise QalibError(
            f"an input must have a question and a context, as texts; found {str(item)[:60]!r}."
        )
    if len(questions) != len(contexts):
        raise QalibError(f"{len(questions)} questions but {len(contexts)} contexts are given.")
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True), 1):
        if not isinstance(question, str) or not isinstance(context, str):
            raise QalibError(f"question {number}: question and context must be texts.")
        yield Example(str(number), question, context)


class _SpanAnswerer(inference.QuestionAnswerer):
    """Answers as dictionaries, scored as in the pipeline of transformers."""

    def __init__(self, reader: EncoderReader, config: inference.AnswerConfig, options):
        super().__init__(reader, config)
        self.options = options
        self.words: dict[str, Any] = {}  # each context as the tokenizer encodes it

    def _score_batch(self, batch: Batch) -> list[inference._ScoredWindow]:
        """The best spans of each window; log_total: the sum of the log-sum-exps of both sides."""
        output, top_k = self.forward(batch), self.options.top_k
        wanted = 2 * top_k + 10 if self.options.align_to_words else top_k
        spans = decode_spans(*output[:3], k=wanted, max_length=self.options.max_answer_len)
        first = batch.inputs["input_ids"] == self.reader.tokenizer.cls_token_id
        summed = output.mask | torch.as_tensor(first, device=output.mask.device)
        log_total, null = torch.zeros(2, len(batch), device=output.mask.device)
        for logits in output[:2]:
            masked = mask_logits(logits, summed)
            log_total = log_total + masked.logsumexp(dim=1)
            null = null + masked[:, 0]
        columns = (*spans[:3], log_total, null)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [inference._ScoredWindow(*row, 1.0) for row in rows]

    def _merge(self, example: Example, parts: list[tuple[Window, inference._ScoredWindow]]) -> Any:
        """The answers to one question, best first; a dictionary if there is only one."""
        found: dict[str, dict] = {}
        for window, scored in parts:
            here: dict[str, dict] = {}
            for i, j, score in zip(scored.starts, scored.ends, scored.scores, strict=True):
                if score == -torch.inf:
                    break
                start, end = self._place(example.context, *window.characters(i, j))
                if not (text := example.context[start:end]):
                    continue  # nothing but white space
                new = {"score": 0.0, "start": start, "end": end, "answer": text}
                answer = here.setdefault(text.lower(), new)
                answer["score"] += inference.probability(score, scored.log_total)
            for text, answer in here.items():
                found[text] = max(found.get(text, answer), answer, key=itemgetter("score"))
        answers = list(found.values())
        if self.options.handle_impossible_answer or not answers:
            null = min(inference.probability(scored.null, scored.log_total) for _, scored in parts)
            answers.append({"score": null, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=itemgetter("score"), reverse=True)[: self.options.top_k]
        return answers[0] if len(answers) == 1 else answers

    def _place(self, context: str, start: int, end: int) -> tuple[int, int]:
        """Characters of the answer: whole words if wanted, without surrounding white space."""
        start, end = inference.strip_span(context, start, end)
        if self.options.align_to_words and start < end:
            tokenizer = self.reader.tokenizer
            if context not in self.words:
                text = replace_surrogates(context)
                self.words[context] = tokenizer(text, add_special_tokens=False, verbose=False)
            words = self.words[context]
            first, last = words.char_to_word(start), words.char_to_word(end - 1)
            start = start if first is None else words.word_to_chars(first)[0]
            end = end if last is None else words.word_to_chars(last)[1]
        return inference.strip_span(context, start, end)
