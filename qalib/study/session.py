"""What a notebook holds in its hand: a profile, its data, the runs it used, its figures."""

import os
from dataclasses import dataclass, field

from qalib.data.squad import Dataset
from qalib.study.entries import Run
from qalib.study.files import note
from qalib.study.profiles import Profile, load_profile
from qalib.study.store import Store


@dataclass(frozen=True)
class DataConfig:
    """Which data a profile trains and tests on: names of sources, or "almanac" (embedded)."""

    train: tuple[str, ...] = ("almanac",)
    test: tuple[str, ...] = ("almanac",)
    train_questions: int = 0  # of the almanac, or the first so many of the sources; 0 = all
    test_questions: int = 0
    passage_length: int = 800  # characters, almanac only
    distractors: int = 3  # almanac only


@dataclass
class Study:
    """One notebook in one profile. Notes every run and data set it hands out."""

    name: str
    profile: Profile
    seed: int
    store: Store
    force: str = ""  # when a forced pass began; runs older than that are computed again
    runs: dict[str, Run] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    loaded: dict[tuple, Dataset] = field(default_factory=dict)  # what was read once already

    def section(self, name: str, kind):
        """A section of the profile as a dataclass. Raises QalibError for unknown keys."""
        return self.profile.section(name, kind)

    def data(self, split: str, section: str = "data") -> Dataset:
        """The profile's "train" or "test" data, or the embedded almanac's, as ``section`` says."""
        config = self.section(section, DataConfig)
        names = config.train if split == "train" else config.test
        count = config.train_questions if split == "train" else config.test_questions
        key = (split, config)
        if key not in self.loaded:  # notebooks ask for the same data again and again
            self.loaded[key] = _load(split, names, count, config)
        dataset = self.loaded[key]
        self.datasets[dataset.name] = dataset
        note("data", dataset.name, dataset.provenance())
        return dataset

    def keep(self, run: Run, max_bytes: int = 2_000_000) -> Run:
        """Note a run; in profile ``study`` its files up to ``max_bytes`` go to the records."""
        known = run.short in self.runs
        self.runs[run.short] = run
        if self.profile.name == "study" and not known:
            self.store.publish(run, max_bytes)
        return run

    def save(self, name: str, fig, data, caption: str = "") -> None:
        """Save a figure with its points and where they come from, and close it."""
        import matplotlib.pyplot as plt

        from qalib.study.figures import save_figure

        save_figure(
            name,
            fig,
            data,
            profile=self.profile.name,
            notebook=self.name,
            seed=self.seed,
            runs=sorted(self.runs),
            datasets={d.name: d.provenance() for d in self.datasets.values()},
            caption=caption,
        )
        plt.close(fig)

    def compare(self, measured, scale=""):
        """What the papers say beside what came out here: a table with verdicts."""
        from qalib.study.paper import compare

        return compare(measured, self.profile.name, scale)


def start(name: str, profile: str, seed: int = 0) -> Study:
    """Open a study for a notebook and print what it runs on: profile, device, precision, commit.

    Raises QalibError for an unknown profile.
    """
    import torch

    from qalib.study.environment import git_state
    from qalib.train import choose_precision

    force = os.environ.get("QALIB_FORCE", "")
    study = Study(name, load_profile(profile), seed, Store(), force)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision, why = choose_precision("auto", device)
    commit = (git_state()["commit"] or "no commit")[:8]
    print(f"qalib {profile}: {device}, {precision} ({why}); seed {seed}; {commit}")
    if profile in ("ci", "laptop"):
        print(f"Profile {profile}: see what happens here, not the numbers of the paper.")
    return study


def _load(split: str, names: tuple[str, ...], count: int, config: DataConfig) -> Dataset:
    from qalib.data import sources
    from qalib.data.almanac import AlmanacConfig, build_almanac
    from qalib.data.squad import make_dataset, merge

    if names == ("almanac",):
        return build_almanac(
            AlmanacConfig(
                questions=count,
                split=split,
                length=config.passage_length,
                distractors=config.distractors,
            )
        )
    parts = [sources.load(name) for name in names]
    family = names[0].split("-")[0]
    together = "+".join(names).replace(f"+{family}-", "+")
    whole = parts[0] if len(parts) == 1 else merge(together, parts)
    if not count:
        return whole
    return make_dataset(whole.name, whole.examples[:count], whole.path, whole.raw_sha256)
