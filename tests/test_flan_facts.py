"""The registry against the facts of the Flan collection: its 1,838 tasks, their splits, sizes, licences and tags.

The facts of the 282 tasks outside Natural Instructions are in data/flan_tasks.tsv; those of the 1,556 inside are a
digest, since the registry's own index is the same table. Where a card differs, a table here says why.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from flan_tune.mixtures.mixture import load_mixture
from flan_tune.prompts.presentations import PRESENTATIONS
from flan_tune.tasks.catalog import CARDS_FOLDER, load_catalog
from flan_tune.tasks.licenses import LICENSES, PERMISSIVE
from flan_tune.tasks.task import Task

NIV2_DIGEST = "56a7c0f6ca54adb3d901427778ac76f760d9ada4bcbd4a248efc49589ff7963d"
NIV2_MMLU = {*range(664, 668), *range(685, 738)}  # numbers of the tasks made from MMLU

# TFDS names of splits that are others on the hub
HUB_SPLITS: Mapping[str, Mapping[str, str]] = {
    **{f"anli_r{n}": {"train": f"train_r{n}", "validation": f"dev_r{n}", "test": f"test_r{n}"} for n in (1, 2, 3)},
    "coqa": {"test": "validation"},
    "lambada": {"train": "validation"},  # TFDS has the 4,869 passages as train, the hub whole novels
    "winogrande": {"train_xl": "train"},
}
OTHER_SLICES = {
    ("sentiment140", "train"): "the hub's rows are sorted by label, TFDS's are not: the whole split",
    ("drop", "test"): "the hub's validation split mixes the answers of several annotators: none",
}
OTHER_HUBS = {
    "cot_qasc": "the rationales are in the release of the Flan collection only",
    "stream_qed": "the rationales are in the release of the Flan collection only",
    "trivia_qa": "the same questions without gigabytes of pages",
    "wiki_hop_*": "this copy of the dataset has one config",
}
# The facts count examples after a filter, ours are raw rows: where they differ by more than 1 %
OTHER_COUNTS = {
    "dart": "a row holds all sentences of its triples; GEM has a row a sentence",
    "e2e_nlg": "the hub has the original, TFDS the cleaned one",
    "fix_punct": "the slice before the filter",
    "gigaword": "the card's `keep` leaves out rows with an unknown word, the count of the facts is without them too",
    "qrecc": "the facts count what the filter on turns leaves",
    "true_case": "the slice before the filter",
    "wmt16_translate_csen": "the hub's config has no CzEng",
    "wmt16_translate_ruen": "the hub's config has fewer corpora",
}
# T0-SF and CoT: the splits' sizes differ from the facts'
OTHER_SIZES = {
    "cot_creak": "the hub has all claims, the release the checked ones",
    "cot_ecqa": "the hub has the whole training split",
    "cot_strategyqa": "the hub splits the questions in another way",
    "duorc_*_build_story_around_qa": "P3 left out rows without an answer; the card's `keep` does",
    "duorc_*_generate_question_by_answer": "P3 left out rows without an answer; the card's `keep` does",
    "qasc_*": "the test split has no labels: not named by the card",
    "quail_*": "the hub's challenge split is the card's test split",
    "wiki_bio_*": "P3 lost 20 rows",
    **{
        f"wiki_qa_{prompt}": "P3 left out rows whose answer is wrong; the card's `keep` does"
        for prompt in (
            "direct_answer_to_question",
            "generate_question_from_topic",
            "jeopardy_style",
            "topic_prediction_*",
        )
    },
}
STRICTER_BY_HAND = {"cot_esnli": "unknown in the facts; the text is SNLI's, under CC BY-SA 4.0"}
OTHER_LANGUAGES = {"para_crawl_enes": "the facts name the first of the two"}
NEVER_RELEASED = {
    "task_master",
    "dmcc_python",
    "dr_repair_error_comments",
    "dr_repair_line_numbers",
    "dr_repair_no_errors",
    "dr_repair_plain_code",
}
T0_STAGES = {"BASE": "t0_base", "GPT_EVAL": "t0_plus"}


@dataclass(frozen=True)
class Facts:
    """A line of data/flan_tasks.tsv."""

    name: str
    family: str
    category: str
    languages: str
    hub: str
    config: str
    license: str
    train: str
    validation: str
    test: str
    rows: str
    cluster: str
    t0_stage: str
    options: str
    counted: str
    released: str

    @property
    def sizes(self) -> dict[str, int]:
        return {name: int(size) for name, _, size in (pair.partition("=") for pair in self.rows.split(";") if pair)}


def read_facts() -> list[Facts]:
    path = Path(__file__).parent / "data" / "flan_tasks.tsv"
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Facts(**row) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


FACTS = read_facts()
CATALOG = load_catalog()
every_task = pytest.mark.parametrize("facts", FACTS, ids=lambda facts: facts.name)


def of(family: str) -> list[Facts]:
    return [facts for facts in FACTS if facts.family == family]


def is_in(table: Mapping[str, str], name: str) -> bool:
    return any(re.fullmatch(pattern.replace("*", ".*"), name) for pattern in table)


# The registry


def test_the_registry_has_the_1838_tasks_of_four_families() -> None:
    counted = CATALOG.counted()
    assert Counter(task.family for task in counted) == {"muffin": 80, "t0_sf": 193, "cot": 9, "niv2": 1556}
    assert len({task.name for task in counted}) == len({task.published_name for task in counted}) == 1838
    assert {task.published_name for task in counted if task.family != "niv2"} == {facts.name for facts in FACTS}
    assert len({task.category for task in counted}) == 138
    assert len({language for task in counted for language in task.languages}) == 60


def test_natural_instructions_is_the_published_list() -> None:
    tasks = [task for task in CATALOG.counted() if task.family == "niv2"]
    digest = hashlib.sha256("\n".join(sorted(map(niv2_line, tasks))).encode()).hexdigest()
    assert digest == NIV2_DIGEST, (
        "a name, category, language, split or number of rows in cards/niv2/index.tsv is another"
    )


def niv2_line(task: Task) -> str:
    (split,) = (tag.removeprefix("default_") for tag in task.tags if tag.startswith("default_"))
    xlingual = "test" if "xlingual_test" in task.tags else ""
    columns = (task.published_name, task.category, ";".join(task.languages), split, xlingual, str(task.rows["train"]))
    return "\t".join(columns)


def test_the_splits_of_natural_instructions() -> None:
    sizes = {tag: len(CATALOG.select(f"tag:{tag}")) for tag in ("default_train", "default_test", "default_excluded")}
    assert sizes == {"default_train": 699, "default_test": 119, "default_excluded": 738}
    assert len(CATALOG.select("tag:xlingual_test")) == 35
    assert {tag for task in CATALOG.select("tag:xlingual_test") for tag in task.tags} == {
        "default_excluded",
        "xlingual_test",
    }


def test_the_57_tasks_made_from_mmlu_are_not_there() -> None:
    lines = (CARDS_FOLDER / "niv2" / "mmlu_excluded.txt").read_text(encoding="utf-8").splitlines()
    excluded = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert {number(name) for name in excluded} == NIV2_MMLU
    assert len(excluded) == 57
    there = {number(task.name) for task in CATALOG.counted() if task.family == "niv2"}
    assert there.isdisjoint(NIV2_MMLU)
    assert len(there) == 1551, "five numbers carry two tasks each"


def number(name: str) -> int:
    return int(re.match(r"task(\d+)", name)[1])  # type: ignore[index]


@every_task
def test_family_category_and_languages(facts: Facts) -> None:
    task = CATALOG[facts.name]
    assert task.name == re.sub(r"[^a-z0-9_]", "_", facts.name.lower()), task.where
    assert (task.published_name, task.family, task.category) == (facts.name, facts.family, facts.category), task.where
    same = list(task.languages) == facts.languages.split(";")
    assert same != (facts.name in OTHER_LANGUAGES), f"{task.where}: {task.languages}"


@every_task
def test_tags(facts: Facts) -> None:
    clusters = [f"flan2021_{cluster}" for cluster in facts.cluster.split(";") if cluster]
    stages = [T0_STAGES[facts.t0_stage]] if facts.t0_stage else []
    assert list(CATALOG[facts.name].tags) == [*clusters, *stages], CATALOG[facts.name].where


@every_task
def test_options_are_a_field_where_they_are_rendered_apart_from_the_text(facts: Facts) -> None:
    task = CATALOG[facts.name]
    if facts.family != "cot":  # Flan leaves these in the question, the cards take them out where they can
        assert ("options" in task.adapt) == (facts.options == "separate"), task.where


# Sources


@every_task
def test_the_rows_come_from_the_dataset_of_the_facts(facts: Facts) -> None:
    task = CATALOG[facts.name]
    found = (task.source.name, task.source.config or "") if task.source.kind == "hub" else ("", "")
    wanted = (facts.hub, facts.config or found[1])  # where the facts leave the config open test_hub_schemas holds it
    assert (found == wanted) != is_in(OTHER_HUBS, task.name), f"{task.where}: {found}, the facts say {wanted}"


@every_task
def test_the_licence_is_that_of_the_facts_or_stricter(facts: Facts) -> None:
    task = CATALOG[facts.name]
    stated = task.source.license
    known = license_ids(facts.license)
    if facts.name in STRICTER_BY_HAND:
        assert stated not in known, f"{facts.name} is no exception any more"
        return
    assert stated in known or strictness(stated) > max(map(strictness, known)), f"{task.where}: {facts.license}"


def license_ids(text: str) -> set[str]:
    """The strictest ids of a note such as 'cc-by-4.0 (apache-2.0 code)', without what stands in brackets.

    >>> sorted(license_ids("apache-2.0 / cdla-sharing-1.0"))
    ['cdla-sharing-1.0']
    """
    outside = re.sub(r"\(.*?\)| - verify", "", text)
    named = [word if word in LICENSES else f"{word}-4.0" for word in outside.replace("/", " ").split()]
    assert set(named) <= LICENSES, text
    strictest = max(map(strictness, named))
    return {name for name in named if strictness(name) == strictest}


def strictness(license_id: str) -> int:
    """0 permissive; 1 share alike, or not known; 2 not for commercial use; 3 neither without sharing; 4 nor changed."""
    if license_id in PERMISSIVE:
        return 0
    if "-nc-" not in license_id:
        return 2 if license_id == "non-commercial" else 1
    return 4 if "-nd-" in license_id else 3 if "-sa-" in license_id else 2


def test_natural_instructions_are_under_apache_2_or_something_stricter() -> None:
    licenses = Counter(task.source.license for task in CATALOG.counted() if task.family == "niv2")
    assert licenses["apache-2.0"] > 1000
    assert all(strictness(name) > 0 for name in licenses if name != "apache-2.0")


def test_what_was_never_released_says_so_and_how_to_get_it() -> None:
    unreleased = {task.name for task in CATALOG.counted() if task.notes.startswith("not released")}
    assert unreleased == NEVER_RELEASED
    assert all(CATALOG[name].source.get for name in NEVER_RELEASED)
    unreleased_by_facts = {facts.name for facts in FACTS if facts.released == "no"}
    assert unreleased_by_facts - NEVER_RELEASED == {"trivia_qa_wiki_missing"}, "its data is public, its code is not"


# Splits and sizes


@pytest.mark.parametrize("facts", of("muffin"), ids=lambda facts: facts.name)
def test_the_slices_of_flan_2021(facts: Facts) -> None:
    task = CATALOG[facts.name]
    names = HUB_SPLITS.get(facts.name, {})
    for split in ("train", "validation", "test"):
        given = getattr(facts, split)
        if not given:
            continue
        name, mark, rest = given.partition("[")
        wanted, found = f"{names.get(name, name)}{mark}{rest}", slices(task, flan2021=True).get(split)
        assert (found == wanted) != ((facts.name, split) in OTHER_SLICES), f"{task.where}: {split} is {found}"


@pytest.mark.parametrize("facts", of("muffin"), ids=lambda facts: facts.name)
def test_the_splits_of_flan_2022_are_those_of_2021_without_the_cap(facts: Facts) -> None:
    """Reserved tails stay reserved; only the slices of 30,000 rows and of 200 for validation are gone."""
    task = CATALOG[facts.name]
    then, now = slices(task, flan2021=True), slices(task, flan2021=False)
    capped = {"para_crawl_enes", "true_case", "fix_punct", "word_segment"}  # the release kept these slices
    for split, found in now.items():
        if split == "train" and facts.name not in capped:
            assert re.fullmatch(r"\w+(\[:-\d+\])?", found), f"{task.where}: {found}"
            assert found == then["train"] or then["train"].endswith("[:30000]"), f"{task.where}: {found}"
        elif split == "validation" and task.reserve == 0 and facts.name not in capped:
            assert found == then["validation"] or then["validation"].endswith(("[:200]", "[-200:]")), task.where
        else:
            assert found == then[split], f"{task.where}: {split}"


def slices(task: Task, flan2021: bool) -> dict[str, str]:
    """Our splits as slices of the source's, the reserved rows and the Flan 2021 slices written out."""
    found = dict(task.splits)
    if task.reserve:
        found |= {
            "train": f"{task.splits['train']}[:-{task.reserve}]",
            "validation": f"{task.splits['train']}[-{task.reserve}:]",
        }
    return found | dict(task.flan2021) if flan2021 else found


@pytest.mark.parametrize("facts", [facts for facts in of("muffin") if facts.counted], ids=lambda facts: facts.name)
def test_muffin_has_as_many_rows_as_flan_counted(facts: Facts) -> None:
    task = CATALOG[facts.name]
    found, counted = task.rows["train"] - task.reserve, int(facts.counted)
    close = abs(found - counted) <= max(20, counted // 100)
    assert close != (facts.name in OTHER_COUNTS), f"{task.where}: {found} rows, Flan counted {counted}"


@pytest.mark.parametrize("facts", of("t0_sf") + of("cot"), ids=lambda facts: facts.name)
def test_the_other_splits_have_the_sizes_of_the_facts(facts: Facts) -> None:
    task = CATALOG[facts.name]
    same = {name: size for name, size in task.rows.items() if facts.family == "t0_sf" or name == "train"} == facts.sizes
    assert same != is_in(OTHER_SIZES, task.name), f"{task.where}: {dict(task.rows)}, the facts say {facts.sizes}"


@pytest.mark.parametrize(
    "table",
    [HUB_SPLITS, OTHER_HUBS, OTHER_COUNTS, OTHER_SIZES, STRICTER_BY_HAND],
    ids=["splits", "hubs", "counts", "sizes", "licences"],
)
def test_every_exception_is_about_a_task(table: Mapping[str, object]) -> None:
    for name in table:
        assert CATALOG.select(name)


# What is held out


def test_holding_out_the_papers_suites_removes_no_task_of_the_collection(tmp_path: Path) -> None:
    members = "".join(f'  - {{tasks: ["family:{family}"]}}\n' for family in ("muffin", "t0_sf", "cot", "niv2"))
    (tmp_path / "m.yaml").write_text(f"members:\n{members}hold_out: [mmlu, bbh, tydiqa, mgsm]\n")
    mixture = load_mixture(tmp_path / "m.yaml", CATALOG, PRESENTATIONS)
    assert dict(mixture.left_out) == {}
    assert len(mixture.tasks()) == 1838
