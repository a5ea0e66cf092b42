"""Published data: found offline first, verified before use, fetched whole or not at all.

The "network" is a server on this machine's loopback; nothing leaves it.
"""

import dataclasses
import hashlib
import http.server
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from squad_files import write_squad

from qalib import paths
from qalib.data import sources
from qalib.data.formats import load_file, load_narrativeqa
from qalib.data.schema import Answer, Example, content_hash
from qalib.data.sources import SOURCES, Source, fetch, find, load_data
from qalib.errors import DataWarning, QalibError

EXAMPLES = [
    Example(f"q{i}", "Who built it?", "Ada Quill built it. Quill.", (Answer("Quill", 4),))
    for i in range(40)
]
OTHER = [dataclasses.replace(example, question="Who?") for example in EXAMPLES]


def raw_squad(folder, examples) -> bytes:
    write_squad(examples, folder / "made.json")
    return (folder / "made.json").read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine with an empty data/ and an empty cache, no QALIB_DATA, and the network allowed."""
    for key in ("QALIB_DATA", "QALIB_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(key, raising=False)
    for key in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("QALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(paths, "ROOT", tmp_path / "checkout")
    return tmp_path


@pytest.fixture
def raw(home):
    return raw_squad(home, EXAMPLES)


@pytest.fixture
def register(monkeypatch, raw):
    """Put a source for ``raw`` into the registry: its name is "set"."""
    monkeypatch.setattr(sources, "RETRIES", 0)

    def add(url="http://127.0.0.1:9/set.json", **changes):
        source = Source("set", "set.json", hashlib.sha256(raw).hexdigest(), len(EXAMPLES), "none")
        source = dataclasses.replace(source, url=url, **changes)
        monkeypatch.setattr(sources, "SOURCES", {**SOURCES, "set": source})
        return source

    return add


class Server:
    """Serves ``body``; ``cuts`` lists after how many bytes each of the next answers breaks off."""

    def __init__(self, body: bytes):
        self.body, self.cuts, self.requests, self.status = body, [], 0, 200
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests += 1
                if server.status != 200:
                    self.send_error(server.status)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body[: server.cuts.pop(0) if server.cuts else None])
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.json"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(raw):
    with Server(raw) as running:
        yield running


def error_of(function, *arguments, **named) -> str:
    """The one-line message of the error."""
    with pytest.raises(QalibError) as caught:
        function(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def cached(home) -> dict[str, bytes]:
    folder = home / "cache"
    files = folder.iterdir() if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in files}


# ------------------------------------------------------------------------------------- registry


def test_the_registry_holds_the_sets_of_the_papers():
    parts = [
        f"{n}-{p}"
        for n in ("hotpotqa", "newsqa", "naturalquestions", "triviaqa", "searchqa")
        for p in ("train", "dev")
    ]
    shifts = [f"squadshifts-{n}" for n in ("new_wiki", "nyt", "reddit", "amazon_reviews")]
    squads = [f"squad-{p}-v{v}" for v in ("1.1", "2.0") for p in ("train", "dev")]
    pieces = {"squad-train-v1.1-part", "naturalquestions-dev-part", "adversarialqa-dev"}
    stories = {f"fairytaleqa-{p}" for p in ("train", "val", "test")}
    others = {*pieces, *stories, "addsent", "addonesent", "hotpotqa-distractor-part"}
    assert set(SOURCES) == {*parts, *shifts, *squads, *others}


def test_every_entry_is_complete_and_no_two_are_mixed_up():
    hashes, names = [], []
    for source in SOURCES.values():
        assert not source.url or source.url.startswith("https://")
        assert source.questions > 1000
        assert source.licence
        hashes += [source.sha256, *source.content_sha256]
        names += [source.file, *source.also]
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in hashes)
    assert len(hashes) == len(set(hashes))
    assert len(names) == len(set(names))


def test_unknown_names_are_refused_with_a_hint(home):
    for function in (find, fetch):
        message = error_of(function, "squad-dev-v1")
        assert "squad-dev-v1: no such source" in message
        assert "did you mean 'squad-dev-v1.1'" in message
    assert "squadshifts-nyt" in error_of(find, "zzzz")
    assert "squad-dev-v1: no such file" in error_of(load_data, "squad-dev-v1")


# --------------------------------------------------------------------------------------- finding


def test_directories_are_searched_in_order(home, raw, register, monkeypatch):
    register(also=("original.json",))
    (home / "cache" / "set.json").mkdir(parents=True)  # a directory, not a file
    assert find("set") is None
    (home / "cache" / "set.json").rmdir()
    folders = [home / "mine", home / "checkout" / "data", home / "cache"]
    monkeypatch.setenv("QALIB_DATA", str(folders[0]))
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    assert find("set") is None
    for folder in reversed(folders):
        for name in ("original.json", "set.json"):
            (folder / name).write_bytes(raw)
            assert find("set") == folder / name
    monkeypatch.delenv("QALIB_DATA")
    assert find("set") == folders[1] / "set.json"


def test_a_missing_data_directory_is_named(home, raw, register, monkeypatch):
    register()
    (home / "cache").mkdir()
    (home / "cache" / "set.json").write_bytes(raw)
    monkeypatch.setenv("QALIB_DATA", str(home / "absent"))
    for function in (find, load_data, fetch):
        assert f"QALIB_DATA={home / 'absent'}: no such directory" in error_of(function, "set")
    (home / "absent").write_text("a file")
    assert "no such directory" in error_of(find, "set")


# ---------------------------------------------------------------------------- loading and checking


def put(home, raw, name="set.json"):
    (home / "cache").mkdir(exist_ok=True)
    path = home / "cache" / name
    path.write_bytes(raw)
    return path


def test_the_published_file_is_loaded(home, raw, register):
    register()
    path = put(home, raw)
    dataset = load_data("set")
    assert dataset.examples == load_file(path).examples
    assert dataset.name == "set"
    assert dataset.provenance()["raw_sha256"] == hashlib.sha256(raw).hexdigest()


def test_another_layout_with_the_same_content_is_accepted(home, register):
    moved = [
        dataclasses.replace(e, answers=(Answer("Quill", e.context.rindex("Quill")),))
        for e in EXAMPLES
    ]
    put(home, raw_squad(home, moved))
    source = register()
    message = error_of(load_data, "set")
    assert source.sha256 in message
    register(content_sha256=("0" * 64, content_hash(EXAMPLES)))
    assert load_data("set").examples == tuple(moved)


def test_another_file_is_refused(home, register):
    source = register(content_sha256=(content_hash(EXAMPLES),))
    path = put(home, raw_squad(home, OTHER[:30]))
    message = error_of(load_data, "set")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for words in (str(path), source.sha256, found, content_hash(OTHER[:30]), "30", "40", "remove"):
        assert words in message


def test_a_checksum_beside_a_file_does_not_make_it_the_published_one(home, register):
    register()
    path = put(home, raw_squad(home, OTHER[:30]))
    note = path.with_name(f"{path.name}.sha256")
    note.write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    assert "this is not set" in error_of(load_data, "set")


def test_a_missing_file_is_reported_with_its_places_and_address(home, register, monkeypatch):
    source = register()
    (home / "mine").mkdir()
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    message = error_of(load_data, "set")
    for folder in ("mine", "checkout/data", "cache"):
        assert str(home / folder) in message
    for words in ("set.json", "QALIB_DATA", source.url, "python -m qalib fetch set"):
        assert words in message
    assert cached(home) == {}


# -------------------------------------------------------------------------------------- fetching


def test_fetching_shows_progress_and_leaves_the_file_alone(home, raw, register, server, capfd):
    register(server.url)
    assert fetch("set") == home / "cache" / "set.json"
    assert "100%" in capfd.readouterr().err
    assert cached(home) == {"set.json": raw}
    assert server.requests == 1


def test_an_existing_file_is_not_fetched_again(home, raw, register, server, monkeypatch):
    register(server.url)
    (home / "mine").mkdir()
    (home / "mine" / "set.json").write_bytes(raw)
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    monkeypatch.setenv("QALIB_OFFLINE", "1")
    assert fetch("set") == home / "mine" / "set.json"
    assert server.requests == 0


def test_a_broken_download_leaves_nothing_and_is_tried_again(
    home, raw, register, server, monkeypatch
):
    register(server.url)
    server.cuts = [1000]
    assert server.url in error_of(fetch, "set")
    assert cached(home) == {}
    monkeypatch.setattr(sources, "RETRIES", 1)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    server.cuts = [1000]
    fetch("set")
    assert cached(home) == {"set.json": raw}
    assert server.requests == 3


def test_a_wrong_checksum_is_refused_and_nothing_is_left(home, raw, register, server):
    source = register(server.url)
    server.body = raw_squad(home, OTHER)
    message = error_of(fetch, "set")
    for words in (server.url, source.sha256, hashlib.sha256(server.body).hexdigest()):
        assert words in message
    assert cached(home) == {}
    server.body = raw
    assert fetch("set").read_bytes() == raw


def test_a_spoiled_file_in_the_cache_is_replaced(home, raw, register, server):
    register(server.url)
    for spoiled in (raw[:100], b"", raw_squad(home, OTHER)):
        put(home, spoiled)
        assert fetch("set").read_bytes() == raw


def test_a_spoiled_file_of_the_user_is_left_alone(home, raw, register, server, monkeypatch):
    register(server.url)
    (home / "mine").mkdir()
    (home / "mine" / "set.json").write_bytes(raw[:100])
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    assert str(home / "mine") in error_of(fetch, "set")
    assert (home / "mine" / "set.json").read_bytes() == raw[:100]
    assert server.requests == 0


@pytest.mark.parametrize("status", [403, 404, 500])
def test_an_error_of_the_server_is_reported(home, register, server, status):
    register(server.url)
    server.status = status
    message = error_of(fetch, "set")
    for words in (server.url, str(status), "set.json", "QALIB_DATA", str(home / "cache")):
        assert words in message
    assert cached(home) == {}
    assert server.requests == 1


def test_without_a_network_the_error_comes_soon(home, register):
    source = register()  # on a port without a server
    began = time.monotonic()
    message = error_of(fetch, "set")
    assert time.monotonic() - began < 20
    for words in (source.url, "cannot be reached", "set.json", "QALIB_DATA", str(home / "cache")):
        assert words in message
    assert cached(home) == {}


@pytest.mark.parametrize("key", ["QALIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_network_can_be_forbidden(home, raw, register, server, monkeypatch, key):
    register(server.url)
    monkeypatch.setenv(key, "1")
    message = error_of(fetch, "set")
    assert key in message
    assert server.url in message
    assert server.requests == 0
    monkeypatch.setenv(key, "0")
    assert fetch("set").read_bytes() == raw


def test_a_cache_that_cannot_be_written_is_named(home, register, server, monkeypatch):
    register(server.url)
    (home / "file").write_text("")
    monkeypatch.setenv("QALIB_CACHE", str(home / "file" / "cache"))
    message = error_of(fetch, "set")
    assert str(home / "file" / "cache" / "set.json") in message
    assert "QALIB_CACHE" in message


# ---------------------------------------------------------------------------- the Hub's tables


@pytest.fixture
def hub(home, monkeypatch):
    """The Hub's Parquet tables, read by the real library from a file on this machine."""
    import datasets

    read = datasets.load_dataset
    addresses = []

    def local(kind, data_files, **named):
        addresses.append(data_files)
        table = home / "0000.parquet"
        if not table.exists():
            raise ConnectionError("no network")
        return read(kind, data_files=str(table), **named)

    def publish(examples):
        columns = ("id", "title", "context", "question")
        rows = [
            {name: getattr(e, name) for name in columns}
            | {"answers": {"text": e.answer_texts, "answer_start": [a.start for a in e.answers]}}
            for e in examples
        ]
        datasets.Dataset.from_list(rows).to_parquet(home / "0000.parquet")
        return addresses

    monkeypatch.setattr(datasets, "load_dataset", local)
    return publish


def test_where_the_address_is_gone_the_rows_come_from_the_hub(home, raw, register, server, hub):
    (home / "cache").mkdir(exist_ok=True)
    (home / "published.json").write_bytes(raw)
    content = load_data(home / "published.json").content_sha256
    register(server.url, hub=("some/set", "AddSent", "validation"), content_sha256=(content,))
    server.status = 404
    addresses = hub(EXAMPLES)
    path = fetch("set")
    assert addresses == ["hf://datasets/some/set@~parquet/AddSent/validation/*.parquet"]
    assert load_data("set").examples == tuple(EXAMPLES)
    assert fetch("set") == path
    assert len(addresses) == 1
    path.unlink()
    hub(OTHER)
    assert "this is not set" in error_of(fetch, "set")
    assert sorted(cached(home)) == []


def test_without_a_network_the_hub_changes_nothing(home, register, hub):
    source = register(hub=("some/set", "c", "s"))
    assert f"{source.url} cannot be reached" in error_of(fetch, "set")
    assert cached(home) == {}


def test_a_source_with_free_form_answers(home, monkeypatch, recwarn):
    row = {"question": "Who fell?", "context": "A fox, it is said, fell.", "answers": ["the fox"]}
    path = home / "cache/tales.jsonl"
    path.parent.mkdir()
    rows = [row | {"id": id} for id in ("fox-1", "fox-2", "fox-1")]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    source = Source("tales", "tales.jsonl", sha256, 2, "none", without=1, free_form=True)
    monkeypatch.setattr(sources, "SOURCES", {"tales": source})
    first, second = load_data("tales")
    assert (first.answer_texts, first.answers, second.id) == (["the fox"], (), "fox-2")
    assert not recwarn.list
    monkeypatch.setattr(sources, "SOURCES", {"tales": dataclasses.replace(source, sha256="0")})
    monkeypatch.setenv("QALIB_DATA", str(home))
    path.rename(home / "tales.jsonl")
    with (
        pytest.warns(DataWarning),
        pytest.raises(QalibError, match="this is not tales: expected SHA-256 0"),
    ):
        sources.fetch("tales")


@pytest.fixture
def narrativeqa(home, monkeypatch) -> Path:
    """Two questions in the files of NarrativeQA's repository."""
    folder = home / "narrativeqa"
    (folder / "third_party/wikipedia").mkdir(parents=True)
    (folder / "third_party/wikipedia/summaries.csv").write_text(
        "document_id,set,summary,summary_tokenized\nd1,train,A fox fell.,x\nd2,test,Rain.,x\n"
    )
    (folder / "qaps.csv").write_text(
        "document_id,set,question,answer1,answer2,question_tokenized,answer1_tokenized,"
        "answer2_tokenized\nd1,train,Who fell?,A fox,The fox did,x,x,x\n"
        "d2,test,What?,rain,Rain.,x,x,x\n"
    )
    monkeypatch.setenv("QALIB_DATA", str(home))
    return folder


def test_a_copy_of_narrativeqa(home, narrativeqa, monkeypatch):
    (row,) = load_data("narrativeqa-train")
    assert (row.answers, row.answer_texts) == ((), ["A fox", "The fox did"])
    (row,) = load_data("narrativeqa-test")
    assert (row.context, row.question) == ("Rain.", "What?")
    with pytest.raises(QalibError, match="no set 'dev'"):
        load_narrativeqa(narrativeqa, "dev")
    monkeypatch.chdir(home)
    row = {"id": "q", "question": "Who fell?", "context": "A fox fell."}
    (home / "narrativeqa-mine.json").write_text(json.dumps([row]))
    assert load_data("narrativeqa-mine.json", "answer").examples[0].context == "A fox fell."


def test_the_cells_of_notebook_08_read_narrativeqa(narrativeqa):
    path = Path(__file__).parent.parent / "notebooks/08_answer_distillation.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = {cell["id"]: "".join(cell["source"]) for cell in notebook["cells"]}
    space = {"study": SimpleNamespace(data=lambda kind, section: load_data(f"narrativeqa-{kind}"))}
    for name in ("imports", "stories-span", "stories-best", "stories-label", "stories-scores"):
        exec(cells[name], space)
    (row,) = space["stories"]
    assert (row.answers, row.references) == ((Answer("A fox", 0),), ("A fox", "The fox did"))
    (row,) = space["told"]
    scores = space["text_scores"]({row.id: "Rain!"})
    assert (scores["Bleu-1"], list(scores["Rouge-L"])) == (100, [100])
    assert list(space["text_scores"]({row.id: "Snow"})["Rouge-L"]) == [0]


# ------------------------------------------------------------------------------------- real data

REAL = ["squad-dev-v1.1", "squad-dev-v2.0"]
REAL += [f"squadshifts-{part}" for part in ("new_wiki", "reddit", "amazon_reviews")]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_the_published_ones(real_data, name):
    dataset = load_data(name)
    assert find(name).parent == real_data
    assert len(dataset) == SOURCES[name].questions
    assert dataset.content_sha256 in SOURCES[name].content_sha256


def test_real_stories_have_answers_without_offsets(real_data):
    dataset = load_data("fairytaleqa-train")
    assert len(dataset) == SOURCES["fairytaleqa-train"].questions
    assert all(e.answer_texts and not e.answers for e in dataset)
