"""The registry of published question sets: where each lies and how to tell that a file is it.

Checksums and numbers of questions are those of the dataset_infos.json files that the repository
huggingface/datasets kept from 2020 to 2022 for squad, squad_v2, squadshifts, squad_adversarial,
mrqa and narrativeqa; MRQA's numbers per file stand in the README of its shared task. The accepted
contents are those of copies in another layout (offsets that point to first occurrences).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Source:
    """One published set of questions, and how to tell that a file is it.

    ``sha256`` is that of the published file's bytes, None where nobody published one;
    ``content_sha256`` lists further accepted contents (:func:`qalib.data.squad.content_hash`).
    ``hub`` is (repository, configuration, split) of the same rows on the Hugging Face Hub, used
    where ``url`` is gone. ``part`` picks a part of a file that holds several.
    """

    name: str
    file: str  # its name in a data directory and in the cache
    url: str
    sha256: str | None
    questions: int
    licence: str
    also: tuple[str, ...] = ()  # other names that the file goes by
    content_sha256: tuple[str, ...] = ()
    hub: tuple[str, str, str] | None = None
    part: str = ""
    note: str = ""


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


def _narrativeqa(name: str, part: str, questions: int) -> Source:
    return Source(
        f"narrativeqa-{name}",
        "narrativeqa-master.zip",
        "https://huggingface.co/datasets/deepmind/narrativeqa/resolve/"
        "2e643e7363944af1c33a652d1c87320d0871c4e4/data/narrativeqa-master.zip",
        "d9fc92d5f53409f845ba44780e6689676d879c739589861b4805064513d1476b",
        questions,
        "Apache-2.0; summaries from Wikipedia, CC BY-SA 3.0",
        part=part,
        note="The summaries are the passages; answers are free text.",
    )


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
    _narrativeqa("train", "train", 32_747),
    _narrativeqa("dev", "valid", 3_461),
    _narrativeqa("test", "test", 10_557),
]
SOURCES: Mapping[str, Source] = MappingProxyType({source.name: source for source in _ALL})
