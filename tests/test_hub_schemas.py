"""Every card with rows on the hub against the dataset's own facts: configs, columns, splits with their sizes, labels.

The facts are of 2022 (data/hub_schemas.json), when datasets had other names on the hub; what has changed since, and
what the file does not have, stands in tables here, each entry with its reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hub_columns import (
    ADAPTER_GIVES,
    ADAPTER_READS,
    columns_faults,
    columns_read,
    is_class_label,
    names_read,
    row_lists,
)

from flan_tune import strict_yaml
from flan_tune.errors import RowError
from flan_tune.tasks.adapters import ADAPTERS, compile_adapt, compile_keep
from flan_tune.tasks.catalog import CARDS_FOLDER, load_catalog
from flan_tune.tasks.task import Task

FACTS: Mapping[str, Any] = json.loads((Path(__file__).parent / "data" / "hub_schemas.json").read_text(encoding="utf-8"))

NOT_IN_THE_FACTS = {
    "ChilleD/StrategyQA": "put on the hub by its owner, without a loading script of `datasets`",
    "GEM/web_nlg": "GEM's own columns; the file has those of the original",
    "GEM/wiki_lingua": "GEM's own columns; the file has those of the original",
    "amydeng2000/CREAK": "put on the hub by its owner, without a loading script of `datasets`",
    "cais/mmlu": "put on the hub by its owner, without a loading script of `datasets`",
    "deepmind/code_contests": "put on the hub by its owner, without a loading script of `datasets`",
    "svakulenk0/qrecc": "put on the hub by its owner, without a loading script of `datasets`",
    "yangdong/ecqa": "put on the hub by its owner, without a loading script of `datasets`",
}
# today's id -> name and config of 2022, where the name is not that after the slash
OTHER_NAMES = {"MoE-UNC/wikihop": ("wiki_hop", "original")}

# Accepted answers per class name; column names in braces stand for the row's value.
WORDINGS: Mapping[str, set[str]] = {
    "entailment": {"yes"},
    "neutral": {"it is not possible to tell"},
    "contradiction": {"no"},
    "not_entailment": {"no"},
    "True": {"yes"},
    "False": {"no"},
    "acceptable": {"acceptable"},
    "unacceptable": {"unacceptable"},
    "equivalent": {"yes"},
    "not_equivalent": {"no"},
    "duplicate": {"yes"},
    "not_duplicate": {"no"},
    "pos": {"positive"},
    "neg": {"negative"},
    "positive": {"positive", "yes", "flattering", "satisfied"},
    "negative": {"negative", "no", "unflattering", "dissatisfied"},
    "choice1": {"{choice1}"},
    "choice2": {"{choice2}"},
    "World": {"world affairs"},
    "Sports": {"sports"},
    "Business": {"business"},
    "Sci/Tech": {"science and technology"},
    "ABBR": {"an abbreviation"},
    "ENTY": {"a thing"},
    "DESC": {"a description"},
    "HUM": {"a person or group"},
    "LOC": {"a place"},
    "NUM": {"a number"},
    "Company": {"company"},
    "EducationalInstitution": {"educational institution"},
    "Artist": {"artist"},
    "Athlete": {"athlete"},
    "OfficeHolder": {"office holder"},
    "MeanOfTransportation": {"means of transportation"},
    "Building": {"building"},
    "NaturalPlace": {"natural place"},
    "Village": {"village"},
    "Animal": {"animal"},
    "Plant": {"plant"},
    "Album": {"album"},
    "Film": {"film"},
    "WrittenWork": {"written work"},
}
# The same where the class names say nothing, or a task asks for the opposite: by task, * for the rest of its name
WORDINGS_OF_TASKS: Mapping[str, list[set[str]]] = {
    "amazon_polarity_is_this_review_negative": [{"yes"}, {"no"}],
    "definite_pronoun_resolution": [{"{candidates[0]}"}, {"{candidates[1]}"}],
    "paws_wiki": [{"no"}, {"yes"}],
    "piqa": [{"{sol1}"}, {"{sol2}"}],
    "wiki_qa_*": [{"no", "incorrect"}, {"yes", "correct"}],
    "yelp_polarity_reviews": [{"negative"}, {"positive"}],
}
# A task whose `keep` reads a class label keeps only these classes.
KEPT_CLASSES = {"wiki_qa_*": {1}}  # 1: the sentence answers the question

ON_HUB = [task for task in load_catalog().values() if task.source.kind == "hub"]
KNOWN = [task for task in ON_HUB if task.source.name not in NOT_IN_THE_FACTS]
every_known_task = pytest.mark.parametrize("task", KNOWN, ids=lambda task: task.name)


def dataset_of(task: Task) -> tuple[str, str | None]:
    """The dataset's name of 2022 and the config the card names."""
    name = task.source.name
    return OTHER_NAMES.get(name, (name.rpartition("/")[2], task.source.config))


def configs_of(task: Task) -> list[Mapping[str, Any]]:
    """The config that the card names, or all of them: columns (`features`) and split sizes (`splits`)."""
    dataset, config = dataset_of(task)
    configs = FACTS["datasets"].get(dataset, {})
    return [configs[config]] if config in configs else [] if config else list(configs.values())


def columns_of(task: Task) -> dict[str, Any]:
    return row_lists(dataset_of(task)[0], configs_of(task)[0]["features"])


def labels_of(task: Task) -> dict[str, list[str]]:
    """Class label columns of a task and the names of their classes."""
    return {name: kind["ClassLabel"] for name, kind in columns_of(task).items() if is_class_label(kind)}


def match(table: Mapping[str, Any], name: str) -> Any:
    """The entry of a task in a table by names, where * stands for the rest of a name."""
    found = [value for pattern, value in table.items() if re.fullmatch(pattern.replace("*", ".*"), name)]
    return found[0] if found else None


def test_the_datasets_left_out_are_these_and_no_others() -> None:
    left_out = {task.source.name for task in ON_HUB if not configs_of(task)}
    assert left_out == set(NOT_IN_THE_FACTS)
    assert len(NOT_IN_THE_FACTS) == 8
    assert len(KNOWN) >= 250


@every_known_task
def test_the_config_exists(task: Task) -> None:
    configs = configs_of(task)
    assert configs, f"{task.where}: {dataset_of(task)} is not there"
    assert all(config == configs[0] for config in configs), f"{task.where}: the configs differ, so the card names one"


@every_known_task
def test_the_columns_a_card_reads_exist(task: Task) -> None:
    assert columns_faults(task, columns_of(task)) == [], task.where


@every_known_task
def test_the_splits_exist_and_have_as_many_rows_as_stated(task: Task) -> None:
    sizes = configs_of(task)[0]["splits"]
    found = {split: size(source_split, sizes) for split, source_split in task.splits.items()}
    assert task.splits, f"{task.where}: the card names its splits"
    if task.each:  # then several of the card's rows are one of the dataset
        found = {split: max(found[split], task.rows[split]) for split in found}
    assert found == dict(task.rows), f"{task.where}: the dataset has {sizes}"
    assert all(size(source_split, sizes) for source_split in task.flan2021.values()), f"{task.where}: {sizes}"


def size(source_split: str, sizes: Mapping[str, int]) -> int | None:
    """Rows of 'train' or 'train[:-200]'; None where there is no such split."""
    name, sliced, rest = source_split.partition("[")
    if name not in sizes or not sliced:
        return sizes.get(name)
    start, stop = (int(bound) if bound else None for bound in rest.removesuffix("]").split(":"))
    return len(range(sizes[name])[start:stop])


@lru_cache
def checks(path: Path) -> list[dict[str, Any]]:
    return strict_yaml.read_file(path).data.get("check") or []


def check_rows(task: Task) -> Iterator[dict[str, Any]]:
    """The rows of the card's `check` that are about this task."""
    path = CARDS_FOLDER.parent / task.where.rpartition(":")[0]
    for entry in checks(path):
        if task.name in entry.get("answers", [entry.get("task", task.name)]):
            yield entry["row"]


LABELLED = [
    task for task in KNOWN if configs_of(task) and columns_read(task, columns_of(task)).intersection(labels_of(task))
]


@pytest.mark.parametrize("task", LABELLED, ids=lambda task: task.name)
def test_every_class_gets_the_answer_that_means_it(task: Task) -> None:
    (label,) = columns_read(task, columns_of(task)).intersection(labels_of(task))
    classes = labels_of(task)[label]
    accepted = match(WORDINGS_OF_TASKS, task.name) or [WORDINGS[name] for name in classes]
    adapt, rows = compile_adapt(task), list(check_rows(task))
    assert rows, f"{task.where}: no check row is about this task"
    for row in rows:
        for number, wordings in enumerate(accepted):
            answer = adapt({**row, label: number})["answer"]
            named = {wording.format(**row).strip() for wording in wordings}
            assert answer in named, f"{task.where}: class {number} ({classes[number]}) gives {answer!r}"
        for number in (-1, len(classes)):
            with pytest.raises(RowError, match="no label"):
                adapt({**row, label: number})


FILTERED = [task for task in KNOWN if configs_of(task) and names_read(task.keep or "").intersection(labels_of(task))]


@pytest.mark.parametrize("task", FILTERED, ids=lambda task: task.name)
def test_a_filter_by_class_keeps_the_right_ones(task: Task) -> None:
    (label,) = names_read(task.keep or "").intersection(labels_of(task))
    keep = compile_keep(task)
    for row in check_rows(task):
        kept = {number for number in range(len(labels_of(task)[label])) if keep({**row, label: number})}
        assert kept == match(KEPT_CLASSES, task.name), task.where


def test_a_card_with_swapped_labels_fails() -> None:
    task = load_catalog()["snli"]
    swapped = replace(task, adapt={**task.adapt, "options": task.adapt["options"][::-1]})
    with pytest.raises(AssertionError, match="gives 'no'"):
        test_every_class_gets_the_answer_that_means_it(swapped)


COLUMNS = {
    "label": {"ClassLabel": ["a", "b"]},
    "question": "string",
    "choices": [{"text": "string", "label": "string"}],
    "turns": {"rows": {"speaker": "string"}},
    "entities": ["string"],
    "translation": {"Translation": ["de", "en"]},
}


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("{{ question.strip() }} {{ pick(choices.text, choices.label.index('A')) }} {{ translation.de }}", ""),
        ("{% for name in entities %}{{ loop.index }}. {{ name.strip() }}{% endfor %}", ""),
        ("=turns | map(attribute='speaker') | list", ""),
        ("=question if question is defined else query", ""),
        ("=choices.text if choices is mapping else choices[0].text", ""),
        ("{% set first = choices.text[0] %}{{ first.lower() }}", ""),
        ("{{ query }}", "no column 'query'"),
        ("{% if question %}{{ query }}{% endif %}", "no column 'query'"),
        ("{{ {'a': question}[kind] }}", "no column 'kind'"),
        ("{% for name in entities %}{{ nam }}{% endfor %}", "no column 'nam'"),
        ("{{ label.strip() }}", "'strip' of a value of the type int"),
        ("{{ choices.texts[0] }}", "'texts' of a mapping with ['label', 'text']"),
        ("{{ choices[0].text }}", "a member of a mapping of lists with ['label', 'text']"),
        ("=turns.speaker", "'speaker' of a value of the type list"),
        ("{% for turn in turns %}{{ turn.speakers }}{% endfor %}", "'speakers' of a mapping with ['speaker']"),
        ("=turns | map(attribute='text') | list", "'text' of a mapping with ['speaker']"),
        ("{{ translation.fr }}", "'fr' of a mapping with ['de', 'en']"),
        ("{{ translation['fr'] }}", "'fr' of a mapping with ['de', 'en']"),
    ],
)
def test_what_a_template_reads_is_followed(source: str, fault: str) -> None:
    task = replace(load_catalog()["snli"], adapt={"premise": source}, keep=None)
    assert columns_faults(task, COLUMNS) == ([f"adapt.premise: {fault}"] if fault else [])


def test_the_fields_adapted_before_are_no_columns() -> None:
    adapt = {"premise": "{{ question }}", "options": ["yes", "{{ premise }}"], "answer": "{{ options[0] }} {{ later }}"}
    task = replace(load_catalog()["snli"], adapt=adapt, keep="=premise")
    assert columns_faults(task, COLUMNS) == ["keep: no column 'premise'", "adapt.answer: no column 'later'"]
    assert columns_read(task, COLUMNS) == {"question"}


def test_the_walk_found_the_labelled_tasks() -> None:
    assert len(LABELLED) >= 40
    assert len(FILTERED) >= 6
    assert {task.source.name for task in LABELLED} >= {"nyu-mll/glue", "aps/super_glue", "fancyzhx/dbpedia_14"}


def test_the_adapters_are_known_here() -> None:
    assert set(ADAPTER_READS) == set(ADAPTER_GIVES) == set(ADAPTERS)
