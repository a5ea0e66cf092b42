"""Kill commands at random moments: given again, they end in the same bits.

``python tests/kill_runs.py 50`` starts train, skim train, skim calibrate and distill in turn, kills
each process after a random time (SIGKILL), starts it again until it has finished, and compares its
folder with that of an undisturbed run. It stops after so many kills; ``kill_runs.py 50 SEED`` draws
other moments.
"""

import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from squad_files import write_squad
from tiny import examples, tiny_reader

from qalib.data.windows import WindowConfig
from qalib.models.pretrained import save_model

FAST = ["--batch-size", "2", "--num-train-epochs", "6", "--save-steps", "1"]
FAST += ["--learning-rate", "1e-3", "--device", "cpu", "--precision", "fp32"]


def commands(place: Path) -> dict[str, list[str]]:
    """Arguments by name; each writes the folder of its name, or changes a copy of ``skimmer``."""
    data, reader, other = (str(place / name) for name in ("data.json", "reader", "other.json"))
    calibrate = ["skim", "calibrate", other, "--skimmer", "calibrate", "--model", reader]
    distill = ["distill", data, "--teachers", reader, "--output", "distill"]
    return {
        "train": ["train", data, "--model", reader, "--output", "train", *FAST],
        "skimmer": ["skim", "train", data, "--model", reader, "--output", "skimmer", *FAST],
        "calibrate": [*calibrate, "--recall", "0.9"],
        "distill": [*distill, "--student", "layers:1", *FAST],
    }


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "qalib", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a model's folder; logs and cards name speeds."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {p.name: p.read_bytes() for p in paths if p.suffix not in (".jsonl", ".md")}


def prepare(place: Path) -> None:
    write_squad(examples(16), place / "data.json")
    write_squad(examples(28)[16:], place / "other.json")
    save_model(place / "reader", tiny_reader(), WindowConfig(96, 16, 16))


def finish(name: str, arguments: list[str], folder: Path) -> float:
    """Run a command undisturbed; the seconds it took."""
    if name == "calibrate":
        shutil.copytree(folder / "skimmer", folder / "calibrate")
    begin = time.monotonic()
    process = start(arguments, folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    return time.monotonic() - begin


def main(kills: int, seed: int) -> None:
    rng, done = random.Random(seed), dict.fromkeys(("train", "skimmer", "calibrate", "distill"), 0)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        prepare(place)
        whole = place / "whole"
        whole.mkdir()
        seconds = {n: finish(n, words, whole) for n, words in commands(place).items()}
        number = 0
        while sum(done.values()) < kills:
            killed = place / f"killed-{number}"
            killed.mkdir()
            number += 1
            for command, words in commands(place).items():
                if command == "calibrate":
                    shutil.copytree(killed / "skimmer", killed / "calibrate")
                while True:
                    process = start(words, killed)
                    try:
                        _, errors = process.communicate(
                            timeout=rng.uniform(0, 1.5 * seconds[command])
                        )
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.communicate()
                        done[command] += 1
                        continue
                    finished = process.returncode == 0 or b"exists already" in errors  # at its end
                    assert finished, (command, errors.decode()[-2000:])
                    break
                ours, theirs = contents(killed / command), contents(whole / command)
                assert ours.keys() == theirs.keys(), (command, ours.keys() ^ theirs.keys())
                different = [n for n in ours if ours[n] != theirs[n]]
                assert not different, (command, different)
            print(f"{sum(done.values())} kills: {done}; the same bits", flush=True)


if __name__ == "__main__":
    main(*map(int, [*sys.argv[1:], *["50", "0"][len(sys.argv) - 1 :]]))
