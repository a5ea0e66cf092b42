"""Published question sets: found offline first, and verified before use.

A name such as ``squad-dev-v1.1`` is searched in the directory that QALIB_DATA names, then in
``data/``, then in the cache; only :func:`fetch` uses the network. A file must have the published
SHA-256 or, for a copy in another layout, an accepted hash of its questions, passages and answers.

Where the published address is gone, the rows come from the Hugging Face Hub's Parquet tables, for
which there is no published checksum. The one of the first download is kept beside the file as
``FILE.sha256``; a different file is refused from then on.
"""

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from qalib.data.formats import from_rows, load_any, write_squad
from qalib.data.schema import Dataset, file_sha256
from qalib.errors import QalibError
from qalib.paths import cache_dir, data_dirs
from qalib.settings import nearest

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of the answer
RETRIES = 2  # after a download that fails


@dataclass(frozen=True)
class Source:
    """A published set of questions, and how to verify that a file is it.

    ``sha256`` is that of the published file's bytes; ``content_sha256`` lists further accepted
    contents (:func:`qalib.data.schema.content_hash`). ``hub`` is (repository, configuration, split)
    of the same rows on the Hugging Face Hub, used where ``url`` is gone.
    """

    name: str
    file: str  # its name in a data directory and in the cache
    url: str
    sha256: str
    questions: int
    licence: str
    also: tuple[str, ...] = ()  # other names of the file
    content_sha256: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    note: str = ""


def find(name: str) -> Path | None:
    """The file of a source if it is on this machine, not yet verified; None if it is not.

    Raises QalibError for a name that is not in the registry, and if QALIB_DATA names no directory.
    """
    source = _source(name)
    named = os.environ.get("QALIB_DATA")
    if named and not Path(named).expanduser().is_dir():
        raise QalibError(
            f"QALIB_DATA={named}: no such directory; correct the variable or unset it."
        )
    names = dict.fromkeys((source.file, *source.also, f"{name}.json"))
    candidates = (folder / file for folder in data_dirs() for file in names)
    return next((path for path in candidates if path.is_file()), None)


def load(name: str) -> Dataset:
    """The verified questions of a source.

    Raises QalibError if the file is missing (with the place and the address to get it from), if it
    is not the published one, and as the readers of :mod:`qalib.data.formats` do.
    """
    source = _source(name)
    path = find(name)
    if path is None:
        raise QalibError(
            f"{_missing(source)}: run 'python -m qalib fetch {name}', or {_by_hand(source)}."
        )
    dataset = load_any(path, name)
    _verify(source, path, dataset)
    return dataset


def fetch(name: str, progress: bool = True) -> Path:
    """The path of a source's file, which is downloaded to the cache if it is not on this machine.

    A damaged file in the cache is replaced, one in another directory is left alone. Where the
    address is gone, the rows come from the Hub, if it has them.

    Raises QalibError for an unknown name, without a network (or with QALIB_OFFLINE=1 or
    HF_HUB_OFFLINE=1), for a file that is not the published one, and if the cache cannot be
    written.
    """
    import requests

    source = _source(name)
    path = find(name)
    target = cache_dir() / source.file
    if path is not None:
        try:
            _verify(source, path)
            return path
        except QalibError:
            if path != target:
                raise
    if offline := next((key for key in ("QALIB_OFFLINE", "HF_HUB_OFFLINE") if _is_set(key)), ""):
        raise QalibError(
            f"{_missing(source)} and {offline} forbids the network: {_by_hand(source)}."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(source, progress)
        except requests.RequestException as error:
            if not source.hub:
                raise _unreachable(source, error) from None
            _from_hub(source, target, error)
    except OSError as error:
        reason = error.strerror or error
        raise QalibError(
            f"{target}: cannot be written ({reason}); make room or set QALIB_CACHE."
        ) from None
    return target


def _verify(source: Source, path: Path, dataset: Dataset | None = None) -> None:
    """Raise QalibError unless the file is the source's, by its bytes or by its content."""
    raw = dataset.raw_sha256 if dataset else file_sha256(path)
    if raw in (source.sha256, _recorded(path)):
        return
    dataset = dataset or load_any(path, source.name)
    if dataset.content_sha256 in source.content_sha256:
        return
    raise QalibError(
        f"{path}: this is not {source.name}: expected SHA-256 {source.sha256}, "
        f"found {raw} (content {dataset.content_sha256}, {len(dataset)} questions of "
        f"{source.questions}); remove it and run 'python -m qalib fetch {source.name}', or read it "
        "by its path under a name of its own."
    )


def _download(source: Source, progress: bool) -> None:
    """Download ``source.url`` to the cache, verified before it gets its name.

    Raises QalibError for a wrong checksum and requests.RequestException for a failed download.
    """
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloads = pooch.create(
        path=cache_dir(),
        base_url="",
        registry={source.file: f"sha256:{source.sha256}"},
        urls={source.file: source.url},
        retry_if_failed=RETRIES,
    )
    try:
        downloads.fetch(source.file, downloader=pooch.HTTPDownloader(progress, timeout=TIMEOUT))
    except ValueError as error:  # pooch's word for a wrong checksum
        raise QalibError(
            f"{source.name}: {source.url} gave another file than expected ({error}); fetch again "
            f"later, or {_by_hand(source)}."
        ) from None


# --------------------------------------------------------------------------- the Hub's tables


def _from_hub(source: Source, target: Path, reason: Exception) -> None:
    """Write the source's rows from the Hub's Parquet tables as SQuAD JSON and record its hash.

    Raises QalibError for ``reason`` if the Hub cannot be reached either, and if its file is not
    complete or differs from the one recorded before.
    """
    import datasets

    repository, config, split = source.hub
    address = f"hf://datasets/{repository}@~parquet/{config}/{split}/*.parquet"
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        try:
            rows = datasets.load_dataset(
                "parquet", data_files=address, split="train", cache_dir=folder
            )
        except Exception:  # any of the libraries below may raise its own
            raise _unreachable(source, reason) from None
        examples = from_rows(rows, address).examples
        if len(examples) != source.questions:
            raise QalibError(
                f"{source.name}: {address} holds {len(examples)} questions, expected "
                f"{source.questions}; {_by_hand(source)}."
            )
        draft = Path(folder) / target.name
        write_squad(examples, draft)
        raw, recorded = file_sha256(draft), _recorded(target)
        if recorded not in (None, raw):
            raise QalibError(
                f"{source.name}: {address} now gives a file with SHA-256 {raw}, not {recorded} as "
                f"at first; if the change is known to be right, remove {_note(target)} and fetch "
                "again."
            )
        _note(target).write_text(f"{raw}  {target.name}  from {address}\n", encoding="utf-8")
        os.replace(draft, target)
    warnings.warn(
        f"{source.name}: nobody published a checksum of this file, so it is unverified; its "
        f"SHA-256 {raw} is recorded in {_note(target)} and a different file will be refused.",
        stacklevel=3,
    )


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """The checksum recorded beside a file when it was first downloaded from the Hub."""
    try:
        return _note(path).read_text(encoding="utf-8").split()[0]
    except (OSError, IndexError, UnicodeDecodeError):
        return None


# ------------------------------------------------------------------------------------- messages


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise QalibError(f"{name}: no such source; {nearest(name, SOURCES)}.")
    return SOURCES[name]


def _is_set(key: str) -> bool:
    return os.environ.get(key, "").strip().lower() not in ("", "0", "false", "no", "off")


def _missing(source: Source) -> str:
    return f"{source.name}: no {source.file} in {', '.join(map(str, data_dirs()))}"


def _by_hand(source: Source) -> str:
    return (
        f"download {source.url} where there is a network and put it as {source.file} into the "
        f"directory that QALIB_DATA names or into {cache_dir()}"
    )


def _unreachable(source: Source, error: Exception) -> QalibError:
    response = getattr(error, "response", None)
    why = f"cannot be reached ({type(error).__name__})"
    if response is not None:
        why = f"answers {response.status_code} {response.reason}"
    return QalibError(f"{source.name}: {source.url} {why}: {_by_hand(source)}.")


# ------------------------------------------------------------------------------------- registry

# Checksums and numbers of questions are those of the dataset_infos.json files that the repository
# huggingface/datasets kept from 2020 to 2022 for squad, squad_v2, squadshifts, squad_adversarial
# and mrqa; MRQA's numbers per file are in the README of its shared task. The accepted contents are
# those of copies in another layout (offsets that point to first occurrences).


def _squad(part: str, sha256: str, questions: int, *contents: str) -> Source:
    file = f"{part}.json"
    url = f"https://rajpurkar.github.io/SQuAD-explorer/dataset/{file}"
    name = f"squad-{part}"
    return Source(name, f"{name}.json", url, sha256, questions, "CC BY-SA 4.0", (file,), contents)


def _shifts(part: str, sha256: str, questions: int, *contents: str) -> Source:
    file = f"{part}_v1.0.json"
    url = (
        f"https://raw.githubusercontent.com/modestyachts/squadshifts-website/master/datasets/{file}"
    )
    name = f"squadshifts-{part}"
    return Source(name, f"{name}.json", url, sha256, questions, "CC BY 4.0", (file,), contents)


def _adversarial(config: str, bundle: str, file: str, sha256: str, questions: int) -> Source:
    return Source(
        config.lower(),
        f"{config.lower()}.json",
        f"https://worksheets.codalab.org/rest/bundles/{bundle}/contents/blob/",
        sha256,
        questions,
        "MIT",
        also=(file,),
        hub=("stanfordnlp/squad_adversarial", config, "validation"),
        note="CodaLab often fails since April 2026; the Hub's table has no published checksum.",
    )


def _mrqa(name: str, file: str, licence: str, *parts: tuple[str, str, int]) -> list[Source]:
    base = "https://s3.us-east-2.amazonaws.com/mrqa/release/v2"
    return [
        Source(
            f"{name}-{part}",
            f"{name}-{part}.jsonl.gz",
            f"{base}/{part}/{file}.jsonl.gz",
            sha256,
            questions,
            licence,
            note="The MRQA 2019 edition: passages of at most 800 tokens.",
        )
        for part, sha256, questions in parts
    ]


_ALL = [
    _squad(
        "train-v1.1", "3527663986b8295af4f7fcdff1ba1ff3f72d07d61a20f487cb238a6ef92fd955", 87_599
    ),
    _squad(
        "dev-v1.1",
        "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        10_570,
        "f7d2098a2c19e039a44ef290e8339dc57920d5983724c59d773e64e42b6ba247",
    ),
    _squad(
        "train-v2.0", "68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002", 130_319
    ),
    _squad(
        "dev-v2.0",
        "80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
        11_873,
        "e0bbd2852baff880c58d5e153cea47146252fd263212ce5d469f33612b13e499",
    ),
    _shifts(
        "new_wiki",
        "1d50a0ca4cdab88d038b52ea8a2d0510af6038d7f41a0a256b9659237769d0ee",
        7_938,
        "898dd9cb1128f74b02407a86d7ed151c8211839fc4e3da14f6987262e6291653",
    ),
    _shifts("nyt", "fd55ae252cc735a695fab4473d4cd605b154183ac3b3eb63068f53cfc86f36d6", 10_065),
    _shifts(
        "reddit",
        "b4ac346dbf1816fdec80fdcf91d06a4b754fa51e47960fa8614a94f37ea42a4b",
        9_803,
        "d55dc89e6b40132701acf43ab2f839a4982502e8fe9c3b01b3184820be3d77d1",
    ),
    _shifts(
        "amazon_reviews",
        "9db7bdee84a91f0fb80b9e74f365042fbbb217cb8e0a7e73bb071245472589b6",
        9_885,
        "dc7fb02b75ce9269740215ad404eae4d1dbeab9b9c5747196da6c244da6a5906",
    ),
    _adversarial(
        "AddSent",
        "0xb765680b60c64d088f5daccac08b3905",
        "sample1k-HCVerifyAll.json",
        "40e3602aa5195cdacd03904a9c301ceb17ccf730cc32bd3ab998b66b4401e660",
        3_560,
    ),
    _adversarial(
        "AddOneSent",
        "0x3ac9349d16ba4e7bb9b5920e3b1af393",
        "sample1k-HCVerifySample.json",
        "50420ac8d8b7547cd3715347c9a276802bc9466328ba0814adce4c20495e2889",
        1_787,
    ),
    *_mrqa(
        "hotpotqa",
        "HotpotQA",
        "CC BY-SA 4.0",
        ("train", "3a94712c073dc9f29d88ac149faa01ef9c7c089f97ee25d9cbac39387550825d", 72_928),
        ("dev", "43bb9291525d8b59229ba327b67cca42f0a9c23798c455f6fbe813e9979cca84", 5_901),
    ),
    *_mrqa(
        "newsqa",
        "NewsQA",
        "see the NewsQA terms of use of Microsoft Research",
        ("train", "f1ccbf2d259ce1094aacde21a53592894248e5778814205dac94f0b086dbe968", 74_160),
        ("dev", "66bfb10cab2029bbc7d1afaece20c35fac341b1c179d15b70fde22a207f096ae", 4_212),
    ),
    *_mrqa(
        "naturalquestions",
        "NaturalQuestionsShort",
        "CC BY-SA 3.0",
        ("train", "6cdac324664b94b60be3203a077bf361d0bfa68a17af9b71def1186a6958a68c", 104_071),
        ("dev", "2ba8b2181b520f81b49d62c0e4a23819f33d5dec0e8cf4a623edcda0feb73530", 12_836),
    ),
    *_mrqa(
        "triviaqa",
        "TriviaQA-web",
        "Apache-2.0; the passages are their publishers'",
        ("train", "61fad6884370408282ad3ed0b5f25a9e932d9a724b6929ea03ea5344ff0cd3f7", 61_688),
        ("dev", "faf8add436de5a5fa81071a4e7190850d7e9a20acc811439e8a127ba8ec25640", 7_785),
    ),
]
SOURCES: dict[str, Source] = {source.name: source for source in _ALL}
