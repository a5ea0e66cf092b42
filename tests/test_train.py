"""The commands train and distill: model folders, killed and resumed, in two processes."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from tiny import LAUNCH, examples, launched, tiny_reader
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertTokenizerFast
from typer.testing import CliRunner

from qalib import training
from qalib.__main__ import app
from qalib.checkpoints import load_weights, save_weights, trained_tensors
from qalib.commands import train
from qalib.commands.options import AnswerOptions
from qalib.data.schema import passage_digests
from qalib.data.windows import WindowConfig
from qalib.distill import encoders
from qalib.errors import DataWarning, QalibError
from qalib.files import exclusive
from qalib.models.encoder import EncoderReader
from qalib.models.pretrained import load_reader, passages_of, save_model, windows_of
from qalib.training import TrainConfig, encoder_task

WINDOWS = WindowConfig(max_length=96, doc_stride=16, max_query_length=16)
DISTILL = "distill data.json --teachers model-0 --output x --student"
FAST = ["--batch-size", "3", "--learning-rate", "3e-3", "--save-steps", "1"]
FAST += ["--precision", "fp32", "--device", "cpu"]


def squad(count=12, impossible=()):
    """Questions as a SQuAD file has them."""
    paragraphs = []
    for e in examples(count):
        answers = [{"text": a.text, "answer_start": a.start} for a in e.answers]
        qa = {"id": e.id, "question": e.question, "answers": answers}
        if e.id in impossible:
            qa |= {"answers": [], "is_impossible": True}
        paragraphs.append({"context": e.context, "qas": [qa]})
    version = "v2.0" if impossible else "1.1"
    return {"version": version, "data": [{"title": "T", "paragraphs": paragraphs}]}


def letters(folder):
    """A tokenizer of single letters."""
    signs = [chr(c) for c in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *signs, *(f"##{c}" for c in signs)]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizerFast(str(folder / "vocab.txt"))


class Killed(BaseException):
    """What no command catches."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data and models: two of one tokenizer and one of another."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data.json").write_text(json.dumps(squad()))
    (folder / "v2.json").write_text(json.dumps(squad(8, impossible=("q3", "q4"))))
    bare = [{"id": "q", "question": "When?", "context": "In 1954."}]
    (folder / "unlabelled.json").write_text(json.dumps(bare))
    for seed in (0, 1):
        save_model(folder / f"model-{seed}", tiny_reader(seed, layers=4), WINDOWS)
    speller = tiny_reader(layers=1).encoder
    speller.resize_token_embeddings(len(letters(folder)))
    save_model(folder / "spelling", EncoderReader(speller, letters(folder)), WindowConfig(128, 32))
    return folder


@pytest.fixture
def run(place, monkeypatch):
    """A command in that folder; the error of one that fails is raised."""
    monkeypatch.chdir(place)

    def call(*words):
        command = [words[0], *FAST, *words[1:]]  # of two values the later one counts
        result = CliRunner().invoke(app, command, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return call


def weights(folder):
    return (Path(folder) / "model.safetensors").read_bytes()


# A model on one's own file


def test_a_model_trained_on_a_file_is_a_plain_folder_with_a_card(run, tmp_path):
    found = run("train", "data.json", "--model", "model-0", "--output", "out", "--dev", "data.json")
    assert found["questions"] == found["windows"] == 12
    names = {"model.safetensors", "config.json", "tokenizer.json", "README.md", "log.jsonl"}
    assert names <= set(os.listdir("out"))
    assert not Path("out.partial").exists()
    card = Path("out/README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert f"| dev f1 | {found['dev_f1']:.6g} |" in card
    assert "| base model | model-0 |" in card
    lines = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "dev_f1" in line] == [1, 2]
    plain = AutoModelForQuestionAnswering.from_pretrained("out").eval()
    inputs = AutoTokenizer.from_pretrained("out")("When?", "In 1954.", return_tensors="pt")
    ours, before = load_reader("out").encoder.eval(), load_reader("model-0").encoder.eval()
    with torch.no_grad():
        logits = [model(**inputs).start_logits for model in (plain, ours, before)]
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    words = [m.get_input_embeddings().weight for m in (ours, before)]
    assert torch.equal(*words)  # they are not trained
    assert windows_of("out") == WINDOWS
    assert passages_of("out") == passage_digests(examples(12))


def test_questions_without_a_label_do_not_count_in_the_scores(run, place):
    rows = [
        {"id": e.id, "question": e.question, "context": e.context, "answers": e.answer_texts}
        for e in examples(3)
    ]
    del rows[2]["answers"]
    Path("partly.json").write_text(json.dumps(rows))
    words = ("--model", "model-0", "--max-steps", "1", "--dev", "partly.json")
    with pytest.warns(DataWarning, match="rows left out: 1 of 3"):
        found = run("train", "data.json", "--output", "partly", *words)
    assert {"dev_exact_match", "dev_f1"} <= set(found)
    assert not {name for name in found if "NoAns" in name}


def test_no_answer_is_learnt_where_questions_have_none(run):
    run("train", "v2.json", "--model", "model-0", "--output", "v2", "--max-steps", "1")
    assert windows_of("v2").null
    options = ["--no-null", "--max_seq_length", "80", "--max_steps", "1"]
    found = run("train", "v2.json", "--model", "model-0", "--output", "v1", *options)
    assert found["windows"] == 6
    assert (windows_of("v1").null, windows_of("v1").max_length) == (False, 80)
    assert AnswerOptions().config("v2").windows.null  # as trained
    assert not AnswerOptions(null=False).config("v2").windows.null


def test_a_killed_command_given_again_ends_in_the_same_bits(run, monkeypatch):
    """Killed while the second teacher answers, after the first epoch, and before the end."""
    words = ["distill", "data.json", "--teachers", "model-0", "model-1", "--student", "layers:2"]
    words += ["--dev", "data.json", "--precision", "fp32", "--output"]
    run(*words, "whole")

    def kill(*_, **__):
        raise Killed

    turns, precisions = iter([encoders.teacher_outputs, kill]), []

    def outputs(reader, task, precision, label):
        precisions.append(precision)
        return next(turns)(reader, task, precision, label)

    stops = [(encoders, "teacher_outputs", outputs)]
    stops += [(train, "report_epoch", kill), (train, "publish_folder", kill)]
    for owner, name, stop in stops:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stop)
            with pytest.raises(Killed):
                run(*words, "killed")
        assert not Path("killed").exists()
    with pytest.raises(QalibError, match="other settings or data"):
        run(*words, "killed", "--seed", "7")
    with (
        exclusive(Path("killed.partial/lock"), "it"),
        pytest.raises(QalibError, match=f"Process {os.getpid()} is working on killed"),
    ):
        run(*words, "killed")
    assert precisions == ["fp32", "fp32"]
    monkeypatch.setattr(encoders, "teacher_outputs", kill)  # they have answered before
    run(*words, "killed")
    assert weights("killed") == weights("whole")
    assert not Path("killed.partial").exists()


def test_two_processes_train_distill_and_answer_as_one(place, tmp_path):
    """One launch for all commands, which together write what one process writes."""
    said = launched([*LAUNCH, __file__, str(place), str(tmp_path / "two")])
    assert said.count('"steps": 2') == 2  # one of two processes prints
    main(place, tmp_path / "one")
    for name, layers in (("trained", 4), ("student", 2)):
        assert load_reader(tmp_path / "two" / name).encoder.config.num_hidden_layers == layers
    one, two = (load_weights(tmp_path / n / "loop.safetensors") for n in ("one", "two"))
    start = trained_tensors(tiny_reader(dropout=0.0))
    assert any(not torch.allclose(start[key], two[key], atol=1e-3) for key in two)
    for key in two:
        if not key.endswith(("key.bias", "qa_outputs.bias")):
            # a softmax does not see these: their gradient is rounding, blown up by Adam
            torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=2e-4, msg=key)
    for file in ("found.json", "found.nbest.json"):
        assert (tmp_path / "two" / file).read_text() == (tmp_path / "one" / file).read_text()
    names = ["found.json", "found.nbest.json", "loop", "loop.safetensors", "student", "trained"]
    assert sorted(os.listdir(tmp_path / "two")) == names


# Teachers and students


def test_a_student_has_layers_of_its_teacher_and_learns_from_all(run):
    words = ["distill", "data.json", "--student", "layers:2", "--max-steps", "1"]
    one = run(*words, "--teachers", "model-0", "--output", "from-one")
    assert one["student"] == "layers:2"
    student, teacher = (load_reader(name).encoder.bert.encoder for name in ("from-one", "model-0"))
    assert len(student.layer) == 2
    for ours, theirs in zip(student.layer, (teacher.layer[1], teacher.layer[3]), strict=True):
        change = ours.attention.self.value.weight - theirs.attention.self.value.weight
        assert 0 < change.abs().max() < 0.05  # one step away
    run(*words, "--teachers", "model-0", "model-1", "--output", "from-two")
    run(*words, "--teachers", "model-0", "--teachers", "model-1", "--output", "from-two-again")
    assert weights("from-two") == weights("from-two-again") != weights("from-one")
    run(*words, "--teachers", "model-0", "--attention-weight", "0.1", "--output", "aligned")
    assert weights("aligned") != weights("from-one")


def test_a_student_may_have_another_tokenizer_and_teachers_may_not(run):
    words = ["distill", "data.json", "--max-steps", "1"]
    found = run(*words, "--teachers", "model-0", "--student", "spelling", "--output", "spelt")
    assert found["windows"] >= 12
    other = [*words, "--teachers", "model-0", "spelling", "--student", "layers:2"]
    with pytest.raises(QalibError, match="model-0 and spelling have different tokenizers"):
        run(*other, "--output", "mixed")


# What is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train missing.json", "missing.json"),
        ("train data.json --output model-0", "exists already"),
        ("train data.json --model model-0 --output data.json/x", "data.json.*: cannot be used"),
        ("train data.json --model model-0 --precision fp8", "precision"),
        ("train data.json --model model-0 --device tpu", "device 'tpu' cannot be used here"),
        ("train data.json --model model-0 --max-seq-length 20", "raise max_length"),
        ("train data.json --model model-0 --device meta", "training uses cpu here"),
        ("train data.json --model model-0 --dev unlabelled.json", "unlabelled.json: none of 1"),
        ("train data.json --model model-0 --max-steps -1", "max_steps"),
        ("train data.json --model model-0 --learning-rate -1", "learning_rate"),
        ("train data.json --model model-0 --learning-rate 0", "learning_rate"),
        ("train data.json --model model-0 --doc-stride -60", "doc_stride"),
        ("distill data.json --teachers model-0 --student layers:5 --output x", "no layer 0 of 4"),
        ("distill data.json --teachers model-0 --student layers:two --output x", "as in layers:3"),
        (
            "distill data.json --teachers model-0 --student layers:2 --kd-weight -1 --output x",
            "kd_weight",
        ),
    ],
)
def test_impossible_requests_are_one_sentence(words, said, run):
    with pytest.raises(QalibError, match=said) as caught:
        run(*words.split())
    assert "\n" not in str(caught.value)


def main(place: Path, output: Path) -> None:
    """All commands that several processes share out."""
    os.chdir(place)
    output.mkdir(exist_ok=True)
    shared = ["data.json", *FAST, "--max-steps", "2"]
    teachers = ["--teachers", "model-0", "model-1", "--student", "layers:2"]
    answers = ["--model", "model-0", "--n-best-size", "2", "--output"]
    for words in (
        ["train", *shared, "--model", "model-0", "--output", str(output / "trained")],
        ["distill", *shared, *teachers, "--output", str(output / "student")],
        ["answer", "data.json", *answers, str(output / "found.json")],
    ):
        app(words, standalone_mode=False)
    reader = tiny_reader(dropout=0.0)
    task, _ = encoder_task(reader, examples(24), WindowConfig())
    config = TrainConfig(1, tokens_per_batch=256, learning_rate=3e-3, precision="fp32")
    training.train(reader, task, config, output / "loop")
    if os.environ.get("RANK", "0") == "0":
        save_weights(trained_tensors(reader), output / "loop.safetensors")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
