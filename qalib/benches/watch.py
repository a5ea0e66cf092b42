"""Where the time goes in a pass that skims, and how many questions a second are answered in all.

``time_stages`` stands between the skimmer and the encoder's parts and looks at the clock whenever
one of them begins or ends. On a CPU each step is over when its call returns, so that the stages add
up to the whole.
"""

import copy
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from qalib.answer import AnswerConfig, Answerer
from qalib.benches.race import (
    DTYPES,
    OLD,
    PLAIN,
    Model,
    check_dtypes,
    padded_name,
    ratios,
    spread,
    usable,
)
from qalib.benches.rivals import Padded
from qalib.data.batches import Batch
from qalib.data.features import WindowConfig
from qalib.data.squad import Dataset
from qalib.errors import QalibError
from qalib.metrics import score
from qalib.skim.families import EncoderParts, LayerParts
from qalib.skim.reader import SkimReader
from qalib.skim.skimmer import Skimmer

STAGES = (
    "embeddings",
    "layers before",
    "skim layer",
    "predictor",
    "bookkeeping",  # blocks, the choice, indices, gathers, restored positions
    "layers after",
    "head",
)


class Watch:
    """Seconds by stage: what passes until a mark belongs to the stage that it names."""

    def __init__(self, skim_at: int):
        self.skim_at, self.seconds = skim_at, Counter()
        self.last, self.stage = time.perf_counter(), ""

    def mark(self, stage: str) -> None:
        """Everything since the last mark was ``stage``."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last, self.stage = now, stage

    def over(self, encoder: EncoderParts) -> EncoderParts:
        """The same parts, watched."""
        encoder.embed = self._around(encoder.embed, "embeddings")
        encoder.head = self._around(encoder.head, "head")
        encoder.layers = tuple(self._layer(n, x) for n, x in enumerate(encoder.layers, 1))
        return encoder

    def _around(self, step: Callable, stage: str) -> Callable:
        def watched(*args):
            self.mark("bookkeeping")
            result = step(*args)
            self.mark(stage)
            return result

        return watched

    def _layer(self, number: int, layer: LayerParts) -> LayerParts:
        stage = "layers before" if number < self.skim_at else "layers after"
        stage = "skim layer" if number == self.skim_at else stage

        def finish(context, hidden):
            # Between the halves stands attention, and at a skim point what follows the predictor.
            self.mark("bookkeeping" if self.stage == "predictor" else stage)
            result = layer.finish(context, hidden)
            self.mark(stage)
            return result

        return replace(layer, project=self._around(layer.project, stage), finish=finish)


@contextmanager
def watched(skimmer: Skimmer, watch: Watch) -> Iterator[Skimmer]:
    """A skimmer that runs as the given one does, under a watch."""
    seen = copy.copy(skimmer)
    seen.fit = lambda model: watch.over(skimmer.fit(model))
    hooks = []
    for predictor in skimmer.predictors.values():
        hooks.append(predictor.register_forward_pre_hook(lambda *_: watch.mark("skim layer")))
        hooks.append(predictor.register_forward_hook(lambda *_: watch.mark("predictor")))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def time_stages(
    model: Model, dtype: str, batch: Batch, prepared: Mapping[str, Batch], rounds: int = 9
) -> list[dict]:
    """Seconds per question by stage, medians over interleaved rounds.

    ``prepared``: the batch with decisions told, by name. -> one row for each, for the same engine
    when it skips nothing, and for the honest baseline, which has ``total`` only.
    """
    reader, at = model.readers[dtype], model.skimmer.config.skim_at[0]
    everything = copy.copy(model.skimmer)
    everything.tune(skim_at=(), thresholds=())
    asked = {"the engine, nothing skipped": (everything, batch)}
    asked |= {name: (model.skimmer, told) for name, told in prepared.items()}
    times: dict[str, list[Counter]] = {name: [] for name in (PLAIN, *asked)}
    for _ in range(1 + rounds):
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=dtype.startswith("bf16")),
        ):
            begin = time.perf_counter()
            reader(batch)
            times[PLAIN].append(Counter(total=time.perf_counter() - begin))
            for name, (skimmer, given) in asked.items():
                watch = Watch(at)
                with watched(skimmer, watch) as seen:
                    pass_of = SkimReader(reader, seen).eval()
                    watch.last = time.perf_counter()
                    pass_of.run(given)
                    watch.mark("bookkeeping")
                times[name].append(watch.seconds)
    return [_stages_row(name, dtype, len(batch), found[1:]) for name, found in times.items()]


def _stages_row(name: str, dtype: str, rows: int, rounds: Sequence[Counter]) -> dict:
    def middle(values: list[float]) -> float:
        return statistics.median(values) / rows

    told = {"reads": name, "dtype": dtype, "total": middle([sum(r.values()) for r in rounds])}
    if name == PLAIN:
        return told
    return told | {stage: middle([r[stage] for r in rounds]) for stage in STAGES}


@dataclass(frozen=True)
class AnswerBench:
    """Answering whole questions: tokenising, reading, decoding. Everybody in turns."""

    questions: int = 200  # the first of the data
    rounds: int = 3
    dtypes: tuple[str, ...] = DTYPES
    windows: WindowConfig = field(default_factory=WindowConfig)
    tokens_per_batch: int = 8192

    def __post_init__(self):
        object.__setattr__(self, "dtypes", tuple(self.dtypes))
        check_dtypes(self.dtypes)
        if min(self.questions, self.rounds) < 1:
            raise QalibError("give at least 1 question and 1 round.")


def bench_answers(config: AnswerBench, model: Model, data: Dataset) -> list[dict]:
    """Questions per second, their ratios, EM and F1 of what was answered on the way.

    ``ratio`` is to the reader that reads everything in the same dtype; ``over_padded`` to the one
    in fp32 whose inputs are all padded to 384. Nobody skims where no skimmer was trained.
    """
    examples = list(data.examples[: config.questions])
    dtypes = usable(config.dtypes)
    readers = {(PLAIN, dtype): model.readers[dtype] for dtype in dtypes}
    readers[padded_name(OLD), "fp32"] = Padded(model.reader, OLD)
    if model.trained is not None:
        for dtype in dtypes:
            readers["skims, as trained", dtype] = SkimReader(model.readers[dtype], model.trained)
    answerers = {}
    for (name, dtype), reader in readers.items():
        precision = "bf16" if dtype.startswith("bf16") else "fp32"
        budget = config.tokens_per_batch
        settings = AnswerConfig(config.windows, tokens_per_batch=budget, precision=precision)
        answerers[name, dtype] = Answerer(reader, settings)
    seconds: dict[tuple, list[float]] = {key: [] for key in answerers}
    answered = {}
    for _ in range(1 + config.rounds):
        for key, answerer in answerers.items():
            begin = time.perf_counter()
            answered[key] = answerer.answer_all(examples)
            seconds[key].append(time.perf_counter() - begin)
    seconds = {key: column[1:] for key, column in seconds.items()}
    return [_answer_row(key, seconds, answered[key], data, examples) for key in seconds]


def _answer_row(key: tuple[str, str], seconds: Mapping, answered, data: Dataset, examples) -> dict:
    name, dtype = key
    own = seconds[key]
    asked = replace(data, examples=tuple(examples))
    best = {e.id: a.candidates[0].text for e, a in zip(examples, answered, strict=True)}
    scored = score(asked, best)
    row = {"rival": name, "dtype": dtype}
    row |= spread("questions_per_second", [len(examples) / s for s in own])
    row |= spread("ratio", ratios(seconds.get((PLAIN, dtype)), own))
    row |= spread("over_padded", ratios(seconds[padded_name(OLD), "fp32"], own))
    read = statistics.fmean(a.read for a in answered)
    return row | {"exact_match": scored["exact_match"], "f1": scored["f1"], "read": read}
