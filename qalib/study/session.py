"""A study: one notebook in one profile, with its data, runs and figures."""

import dataclasses
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from qalib.data import sources
from qalib.data.corpus import CorpusConfig, build_corpus
from qalib.data.schema import Dataset, make_dataset, merge
from qalib.files import log_usage
from qalib.models.bf16 import choose_precision
from qalib.settings import settings
from qalib.study import claims, figures
from qalib.study.profiles import Profile, load_profile
from qalib.study.provenance import git_state
from qalib.study.run_cache import Run, RunCache

T = TypeVar("T")


@settings
class DataConfig:
    """The data of a profile: names of sources, or "almanac" for the embedded corpus."""

    train: tuple[str, ...] = ("almanac",)
    test: tuple[str, ...] = ("almanac",)
    train_questions: int = 0  # of the corpus, or evenly spread over the sources (0 = all)
    test_questions: int = 0
    passage_length: int = 800  # characters, corpus only
    misleading: str = ""  # corpus only: where such sentences are added, "front" or "end"


@dataclass
class Study:
    """A notebook's access to settings, data, cached runs and figures.

    The runs and data sets that it returns are recorded in the provenance of every figure.
    """

    name: str
    profile: Profile
    seed: int
    cache: RunCache
    precision: str = "fp32"  # replaces "auto" in every configuration, before it is hashed
    force: str = ""  # start of a forced pass; older runs are computed again
    runs: dict[str, Run] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)

    def config(self, section: str, kind: type[T]) -> T:
        """A section of the profile as settings. Raises QalibError for unknown keys."""
        return self.profile.section(section, kind)

    def data(self, split: str, section: str = "data") -> Dataset:
        """The "train" or "test" data that a section of the profile names."""
        dataset = load_profile_data(self.config(section, DataConfig), split)
        self.datasets[dataset.name] = dataset
        log_usage("data", dataset.name, dataset.provenance())
        return dataset

    def run(self, function: Callable, config: object, **inputs) -> Run:
        """The run of a stage: found in the store or the records, or computed now.

        ``config``: all settings that the result depends on. ``inputs``: what it is computed from
        (data sets, runs, strings, lists of these), passed to the stage unchanged. In profile study
        the run is added to the records. Raises as ``RunCache.run`` and ``RunCache.publish`` do.
        """
        config = resolve_precision(config, self.precision)
        run = self.cache.run(function, config, inputs, force=self.force)
        if self.profile.name == "study" and run.short not in self.runs:
            self.cache.publish(run, function.stage.publish)
        self.runs[run.short] = run
        return run

    def save_figure(self, name: str, fig, data, caption: str = "") -> None:
        """Save a figure with its points and their provenance, and close it."""
        figures.save_figure(self, name, fig, data, caption)

    def compare(self, measured, scale=""):
        """The table of :func:`claims.compare`, as Markdown for a notebook to display."""
        from IPython.display import Markdown

        warning = "Profile ci: toy sizes, the numbers are not meaningful.\n\n"
        table = claims.markdown_table(claims.compare(measured, self.profile.name, scale))
        return Markdown((warning if self.profile.name == "ci" else "") + table)


def open_study(name: str, profile: str, seed: int = 0) -> Study:
    """Open a study for a notebook and print profile, device, precision, seed and commit.

    Raises QalibError for an unknown profile.
    """
    loaded = load_profile(profile)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    log_usage("section", "compute")
    precision, reason = choose_precision(loaded.sections["compute"]["precision"], device)
    commit = (git_state()["commit"] or "no commit")[:8]
    print(f"qalib {profile}: {device}, {precision} ({reason}); seed {seed}; {commit}")
    if profile in ("ci", "laptop"):
        print(f"Profile {profile} is for following the method; its numbers are not the papers'.")
    force = os.environ.get("QALIB_FORCE", "")
    return Study(name, loaded, seed, RunCache(), precision, force)


def resolve_precision(config: T, precision: str) -> T:
    """Settings in which every ``precision`` "auto" is replaced, in nested settings, too."""
    if not dataclasses.is_dataclass(config):
        return config
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    values = {name: resolve_precision(value, precision) for name, value in values.items()}
    if values.get("precision") == "auto":
        values["precision"] = precision
    return dataclasses.replace(config, **values)


@functools.lru_cache(maxsize=16)
def load_profile_data(config: DataConfig, split: str) -> Dataset:
    """The data sets that a configuration names, merged; for "almanac", the embedded corpus."""
    names, count = getattr(config, split), getattr(config, f"{split}_questions")
    if names == ("almanac",):
        look = {"length": config.passage_length, "misleading": config.misleading}
        return build_corpus(CorpusConfig(count, split=split, **look))
    parts = [sources.load_data(name) for name in names]
    family = names[0].split("-")[0]
    together = "+".join(names).replace(f"+{family}-", "+")
    whole = parts[0] if len(parts) == 1 else merge(together, parts)
    if not count:
        return whole
    count = min(count, len(whole))
    spread = [whole.examples[n * len(whole) // count] for n in range(count)]
    return make_dataset(whole.name, spread, whole.path, whole.raw_sha256, whole.version)
