"""Real data: found offline first, checked before use, fetched whole or not at all.

The "network" is a server on this machine's loopback; nothing leaves it.
"""

import dataclasses
import hashlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import MappingProxyType

import pytest

from qalib import paths
from qalib.data import sources
from qalib.data.formats import FreeAnswerExample
from qalib.data.sources import SOURCES, Source, fetch, find, load
from qalib.data.squad import Answer, Example, content_hash, load_squad, write_squad
from qalib.errors import QalibError

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
    monkeypatch.setattr(sources, "CHUNK", 100)  # a broken answer is kept up to its last chunk

    def add(url="http://127.0.0.1:9/set.json", **changes):
        source = Source(
            "set", "set.json", url, hashlib.sha256(raw).hexdigest(), len(EXAMPLES), "none"
        )
        source = dataclasses.replace(source, **changes)
        monkeypatch.setattr(sources, "SOURCES", MappingProxyType({**SOURCES, "set": source}))
        return source

    return add


class Server:
    """Serves ``body``; ``cuts`` says after how many bytes each of the next answers breaks off."""

    def __init__(self, body: bytes):
        self.body, self.cuts, self.ranges, self.asked, self.status = body, [], True, [], 200
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.asked.append((wanted, self.headers.get("Accept-Encoding")))
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
                if not server.ranges:
                    start = 0
                if start and start >= len(server.body):
                    self.send_error(416)
                    return
                rest = server.body[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                cut = server.cuts.pop(0) if server.cuts else len(rest)
                self.wfile.write(rest[:cut])
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


def refused(function, *arguments, **named) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(QalibError) as caught:
        function(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def cached(home) -> dict[str, bytes]:
    folder = home / "cache"
    files = folder.iterdir() if folder.is_dir() else []
    return {path.name: path.read_bytes() for path in files if not path.name.endswith(".lock")}


# ------------------------------------------------------------------------------------- registry


def test_the_registry_holds_the_sets_of_the_papers():
    parts = [
        f"{n}-{p}"
        for n in ("hotpotqa", "newsqa", "naturalquestions", "triviaqa")
        for p in ("train", "dev")
    ]
    shifts = [f"squadshifts-{n}" for n in ("new_wiki", "nyt", "reddit", "amazon_reviews")]
    squads = [f"squad-{p}-v{v}" for v in ("1.1", "2.0") for p in ("train", "dev")]
    narrative = [f"narrativeqa-{p}" for p in ("train", "dev", "test")]
    assert set(SOURCES) == {*parts, *shifts, *squads, *narrative, "addsent", "addonesent"}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_entry_is_complete(source):
    assert source.name in SOURCES
    assert source.url.startswith("https://")
    assert all(re.fullmatch("[0-9a-f]{64}", h) for h in (source.sha256, *source.content_sha256))
    assert source.questions > 1000
    assert source.licence
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.name = "x"


def test_no_two_entries_are_mixed_up():
    hashes = [h for s in SOURCES.values() if not s.part for h in (s.sha256, *s.content_sha256)]
    assert len(hashes) == len(set(hashes))
    names = [n for s in SOURCES.values() if not s.part for n in (s.file, *s.also)]
    assert len(names) == len(set(names))
    with pytest.raises(TypeError):
        SOURCES["x"] = None


def test_unknown_names_are_refused_with_a_hint(home):
    for function in (find, load, fetch):
        message = refused(function, "squad-dev-v1")
        assert "squad-dev-v1: no such source" in message
        assert "did you mean squad-dev-v1.1?" in message
        assert "narrativeqa-test" in message
    assert "did you mean" not in refused(find, "zzzz")


# --------------------------------------------------------------------------------------- finding


def test_directories_are_searched_in_order(home, raw, register, monkeypatch):
    register(also=("original.json",))
    assert find("set") is None
    folders = [home / "mine", home / "checkout" / "data", home / "cache"]
    monkeypatch.setenv("QALIB_DATA", str(folders[0]))
    for folder in folders:
        folder.mkdir(parents=True)
    assert find("set") is None
    for folder in reversed(folders):
        for name in ("original.json", "set.json"):
            (folder / name).write_bytes(raw)
            assert find("set") == folder / name
    monkeypatch.delenv("QALIB_DATA")
    assert find("set") == folders[1] / "set.json"


def test_a_directory_is_no_file(home, register):
    register()
    (home / "cache" / "set.json").mkdir(parents=True)
    assert find("set") is None


def test_a_missing_data_directory_is_named(home, raw, register, monkeypatch):
    register()
    (home / "cache").mkdir()
    (home / "cache" / "set.json").write_bytes(raw)
    monkeypatch.setenv("QALIB_DATA", str(home / "absent"))
    for function in (find, load, fetch):
        assert f"QALIB_DATA={home / 'absent'}: no such directory" in refused(function, "set")
    (home / "absent").write_text("a file")
    assert "no such directory" in refused(find, "set")


# ---------------------------------------------------------------------------- loading and checking


def put(home, raw, name="set.json"):
    (home / "cache").mkdir(exist_ok=True)
    path = home / "cache" / name
    path.write_bytes(raw)
    return path


def test_the_published_file_is_loaded(home, raw, register):
    register()
    path = put(home, raw)
    dataset = load("set")
    assert dataset.examples == load_squad(path).examples
    assert dataset.name == "set"
    assert dataset.provenance()["raw_sha256"] == hashlib.sha256(raw).hexdigest()


def test_another_layout_with_the_same_content_is_accepted(home, register):
    moved = [
        dataclasses.replace(e, answers=(Answer("Quill", e.context.rindex("Quill")),))
        for e in EXAMPLES
    ]
    put(home, raw_squad(home, moved))
    source = register()
    message = refused(load, "set")
    assert source.sha256 in message
    register(content_sha256=("0" * 64, content_hash(EXAMPLES)))
    assert load("set").examples == tuple(moved)


def test_another_file_is_refused(home, register):
    source = register(content_sha256=(content_hash(EXAMPLES),))
    path = put(home, raw_squad(home, OTHER[:30]))
    message = refused(load, "set")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    for words in (str(path), source.sha256, found, content_hash(OTHER[:30]), "30", "40", "remove"):
        assert words in message


def test_a_spoiled_file_is_refused_with_its_place(home, raw, register):
    register()
    path = put(home, raw[: len(raw) // 2])
    message = refused(load, "set")
    assert str(path) in message
    assert "cut short" in message


def test_where_there_is_nothing_one_line_says_what_to_put_where(home, register, monkeypatch):
    source = register()
    (home / "mine").mkdir()
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    message = refused(load, "set")
    for words in (
        "set.json",
        "QALIB_DATA",
        str(home / "mine"),
        str(home / "checkout" / "data"),
        str(home / "cache"),
        source.url,
        "python -m qalib fetch set",
    ):
        assert words in message
    assert cached(home) == {}


def test_loading_may_fetch_only_when_told_to(home, raw, register, server):
    register(server.url)
    refused(load, "set")
    assert server.asked == []
    assert load("set", allow_network=True).examples == tuple(EXAMPLES)
    assert load("set").examples == tuple(EXAMPLES)
    assert len(server.asked) == 1


# -------------------------------------------------------------------------------------- fetching


def test_fetching_shows_progress_and_leaves_the_file_alone(home, raw, register, server, capfd):
    register(server.url)
    path = fetch("set")
    assert path == home / "cache" / "set.json"
    assert "100%" in capfd.readouterr().err
    assert cached(home) == {"set.json": raw}
    assert server.asked == [(None, "identity")]


def test_fetching_can_be_silent(home, register, server, capfd):
    register(server.url)
    fetch("set", progress=False)
    assert capfd.readouterr() == ("", "")


def test_what_is_there_is_not_fetched_again(home, raw, register, server, monkeypatch):
    register(server.url)
    (home / "mine").mkdir()
    (home / "mine" / "set.json").write_bytes(raw)
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    monkeypatch.setenv("QALIB_OFFLINE", "1")
    assert fetch("set") == home / "mine" / "set.json"
    assert server.asked == []


def test_a_broken_download_is_taken_up_where_it_broke(home, raw, register, server):
    register(server.url)
    server.cuts = [1000, 700]
    fetch("set", progress=False)
    assert [wanted for wanted, _ in server.asked] == [None, "bytes=1000-", "bytes=1700-"]
    assert cached(home) == {"set.json": raw}


def test_a_download_broken_for_good_is_taken_up_by_the_next_call(home, raw, register, server):
    register(server.url)
    server.cuts = [1000, 0]
    message = refused(fetch, "set", progress=False)
    assert server.url in message
    assert cached(home) == {"set.json.part": raw[:1000]}
    assert find("set") is None
    fetch("set", progress=False)
    assert server.asked[-1][0] == "bytes=1000-"
    assert cached(home) == {"set.json": raw}


def test_a_download_that_crawls_is_given_up(home, raw, register, server):
    register(server.url)
    server.cuts = [100] * 100
    refused(fetch, "set", progress=False)
    assert len(server.asked) == sources.ATTEMPTS


def test_a_server_without_ranges_sends_the_whole_again(home, raw, register, server):
    register(server.url)
    server.ranges = False
    server.cuts = [1000]
    fetch("set", progress=False)
    assert cached(home) == {"set.json": raw}
    assert len(server.asked) == 2


def test_a_piece_of_another_file_is_thrown_away(home, raw, register, server):
    register(server.url)
    put(home, b"x" * 1000, "set.json.part")
    fetch("set", progress=False)
    assert cached(home) == {"set.json": raw}
    assert [wanted for wanted, _ in server.asked] == ["bytes=1000-", None]


def test_a_piece_longer_than_the_file_is_thrown_away(home, raw, register, server):
    register(server.url)
    put(home, raw + b"x", "set.json.part")
    fetch("set", progress=False)
    assert cached(home) == {"set.json": raw}


def test_a_whole_file_killed_before_it_got_its_name(home, raw, register, server):
    register(server.url)
    put(home, raw, "set.json.part")
    fetch("set", progress=False)
    assert cached(home) == {"set.json": raw}
    assert server.asked == []


def test_a_wrong_checksum_is_refused_and_nothing_is_left(home, raw, register, server):
    source = register(server.url)
    server.body = raw_squad(home, OTHER)
    message = refused(fetch, "set", progress=False)
    for words in (server.url, source.sha256, hashlib.sha256(server.body).hexdigest()):
        assert words in message
    assert cached(home) == {}
    server.body = raw
    assert fetch("set", progress=False).read_bytes() == raw


def test_a_spoiled_file_in_the_cache_is_replaced(home, raw, register, server):
    register(server.url)
    for spoiled in (raw[:100], b"", raw_squad(home, OTHER)):
        put(home, spoiled)
        assert fetch("set", progress=False).read_bytes() == raw


def test_a_spoiled_file_of_the_user_is_left_alone(home, raw, register, server, monkeypatch):
    register(server.url)
    (home / "mine").mkdir()
    (home / "mine" / "set.json").write_bytes(raw[:100])
    monkeypatch.setenv("QALIB_DATA", str(home / "mine"))
    assert str(home / "mine") in refused(fetch, "set")
    assert (home / "mine" / "set.json").read_bytes() == raw[:100]
    assert server.asked == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_server_that_has_it_no_more(home, register, server, status):
    register(server.url)
    server.status = status
    message = refused(fetch, "set", progress=False)
    for words in (server.url, str(status), "set.json", "QALIB_DATA", str(home / "cache")):
        assert words in message
    assert cached(home) == {}
    assert len(server.asked) == 1


def test_without_a_network_one_line_comes_soon(home, register):
    with socket.socket() as unused:  # a port that nothing listens on
        unused.bind(("127.0.0.1", 0))
        source = register(f"http://127.0.0.1:{unused.getsockname()[1]}/set.json")
        began = time.monotonic()
        message = refused(fetch, "set", progress=False)
    assert time.monotonic() - began < 20
    for words in (source.url, "cannot be reached", "set.json", "QALIB_DATA", str(home / "cache")):
        assert words in message
    assert cached(home) == {}


@pytest.mark.parametrize("key", ["QALIB_OFFLINE", "HF_HUB_OFFLINE"])
def test_the_network_can_be_forbidden(home, raw, register, server, monkeypatch, key):
    register(server.url)
    monkeypatch.setenv(key, "1")
    message = refused(fetch, "set")
    assert key in message
    assert server.url in message
    assert key in refused(load, "set", allow_network=True)
    assert server.asked == []
    monkeypatch.setenv(key, "0")
    assert fetch("set", progress=False).read_bytes() == raw


def test_a_cache_that_cannot_be_written_is_named(home, register, server, monkeypatch):
    register(server.url)
    (home / "file").write_text("")
    monkeypatch.setenv("QALIB_CACHE", str(home / "file" / "cache"))
    message = refused(fetch, "set", progress=False)
    assert str(home / "file" / "cache" / "set.json") in message
    assert "QALIB_CACHE" in message


def test_a_full_disk_is_named(home, raw, register, server, monkeypatch):
    register(server.url)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources.os, "replace", full)
    assert "No space left on device" in refused(fetch, "set", progress=False)
    assert find("set") is None


# ------------------------------------------------------------------- without a published checksum


def test_the_first_sight_of_an_unverified_file_is_recorded(home, raw, register, server):
    register(server.url, sha256=None)
    with pytest.warns(UserWarning, match="unverified"):
        path = fetch("set", progress=False)
    seen = hashlib.sha256(raw).hexdigest()
    assert (home / "cache" / "set.json.sha256").read_text().startswith(f"{seen}  set.json")
    assert len(load("set")) == len(EXAMPLES)

    other = raw_squad(home, OTHER)
    path.write_bytes(other)
    assert seen in refused(load, "set")

    path.unlink()
    server.body = other
    message = refused(fetch, "set", progress=False)
    for words in (seen, hashlib.sha256(other).hexdigest(), "set.json.sha256"):
        assert words in message
    assert find("set") is None

    (home / "cache" / "set.json.sha256").unlink()
    with pytest.warns(UserWarning, match="unverified"):
        fetch("set", progress=False)
    assert load("set").examples == tuple(OTHER)


@pytest.fixture
def hub(home, monkeypatch):
    """The Hub's Parquet tables, read by the real library from a file on this machine."""
    import datasets

    read = datasets.load_dataset
    asked = []

    def local(kind, data_files, **named):
        asked.append(data_files)
        table = home / "0000.parquet"
        if not table.exists():
            raise ConnectionError("no network")
        return read(kind, data_files=str(table), **named)

    def publish(examples):
        rows = [
            {
                "id": e.id,
                "title": e.title,
                "context": e.context,
                "question": e.question,
                "answers": {
                    "text": e.answer_texts,
                    "answer_start": [a.start for a in e.answers],
                },
            }
            for e in examples
        ]
        datasets.Dataset.from_list(rows).to_parquet(home / "0000.parquet")
        return asked

    monkeypatch.setattr(datasets, "load_dataset", local)
    return publish


def test_where_the_address_is_gone_the_hub_is_asked(home, raw, register, server, hub):
    register(server.url, hub=("some/set", "AddSent", "validation"))
    server.status = 404
    asked = hub(EXAMPLES)
    with pytest.warns(UserWarning, match="unverified"):
        path = fetch("set", progress=False)
    assert asked == ["hf://datasets/some/set@~parquet/AddSent/validation/*.parquet"]
    assert load("set").examples == tuple(EXAMPLES)
    assert sorted(cached(home)) == ["set.json", "set.json.sha256"]
    assert fetch("set", progress=False) == path
    assert len(asked) == 1
    path.write_bytes(raw_squad(home, OTHER))
    refused(load, "set")


def test_a_hub_table_of_another_size_is_refused(home, register, server, hub):
    register(server.url, hub=("some/set", "c", "s"))
    server.status = 404
    hub(EXAMPLES[:3])
    message = refused(fetch, "set", progress=False)
    assert "3 questions, expected 40" in message
    assert cached(home) == {}


def test_without_a_network_the_hub_changes_nothing(home, register, hub):
    source = register(hub=("some/set", "c", "s"))
    assert f"{source.url} cannot be reached" in refused(fetch, "set", progress=False)
    assert cached(home) == {}


# ------------------------------------------------------------------------------------- real data

REAL = ["squad-dev-v1.1", "squad-dev-v2.0"]
REAL += [f"squadshifts-{part}" for part in ("new_wiki", "reddit", "amazon_reviews")]


@pytest.mark.parametrize("name", REAL)
def test_real_files_are_the_published_ones(real_data, name):
    dataset = load(name)
    assert find(name).parent == real_data
    assert len(dataset) == SOURCES[name].questions
    assert dataset.content_sha256 in SOURCES[name].content_sha256


def test_a_part_of_a_shared_file_is_loaded(home, register, monkeypatch):
    """The parts of NarrativeQA lie in one archive, found under one name by all of them."""
    assert {SOURCES[f"narrativeqa-{n}"].part for n in ("train", "dev", "test")} == {
        "train",
        "valid",
        "test",
    }
    asked = []

    def reader(path, name, part):
        asked.append((path, name, part))
        example = FreeAnswerExample("a", "?", "c", (), "", ("x",))
        sha256 = SOURCES[name].sha256
        return sources.Dataset(name, (example,), str(path), sha256, "")

    monkeypatch.setattr(sources, "load_any", reader)
    path = put(home, b"", "narrativeqa-master.zip")
    for name in ("train", "dev", "test"):
        load(f"narrativeqa-{name}")
    assert asked == [
        (path, "narrativeqa-train", "train"),
        (path, "narrativeqa-dev", "valid"),
        (path, "narrativeqa-test", "test"),
    ]


def test_importing_the_room_imports_nothing_heavy():
    program = (
        "import sys, qalib.data.sources;"
        "print([m for m in ('torch', 'datasets', 'pooch', 'requests') if m in sys.modules])"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.replace("'", '"')) == []
