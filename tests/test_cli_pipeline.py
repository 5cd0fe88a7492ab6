"""Pipelines: what waits for what, what is not done twice, and how a run ends. The jobs here are tiny shell commands."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_packs import ROOT, edit, small_recipe

from flan_tune.cli.jobs import Job, run_jobs
from flan_tune.cli.pipeline import make_jobs
from flan_tune.cli.pipeline_file import load_pipeline
from flan_tune.errors import RecipeError


def shell(name: str, command: str, waits: str = "", **values: object) -> Job:
    return Job(name, ["sh", "-c", command], set(waits.split()), **values)  # type: ignore[arg-type]


def maker(folder: Path, name: str, waits: str = "", content: str = "") -> Job:
    """A job that writes a line to order.txt and makes its file."""
    made = folder / name / "model" / "made"
    command = f"echo {name} >> {folder}/order.txt; mkdir -p {made.parent}; touch {made}"
    return shell(name, command, waits, makes=made, content=content, folder=folder / name)


def order(folder: Path) -> list[str]:
    return (folder / "order.txt").read_text().split()


def run(jobs: list[Job], folder: Path, parallel: int = 2) -> tuple[int, str]:
    """(exit code, what was printed)."""
    out = io.StringIO()
    code, _ = run_jobs(jobs, folder, parallel, out)
    return code, out.getvalue()


# Jobs


def test_jobs_run_after_those_they_wait_for(tmp_path: Path) -> None:
    jobs = [maker(tmp_path, "c", "a b"), maker(tmp_path, "b", "a"), maker(tmp_path, "a")]
    code, out = run(jobs, tmp_path)
    assert code == 0
    assert order(tmp_path) == ["a", "b", "c"]
    assert out.count(": started") == out.count(": done in ") == 3


def test_jobs_run_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other's file: only both at once can end."""
    meet = "touch {0}/{1}; until [ -e {0}/{2} ]; do sleep 0.05; done"
    jobs = [shell("a", meet.format(tmp_path, 1, 2)), shell("b", meet.format(tmp_path, 2, 1))]
    assert run(jobs, tmp_path)[0] == 0


def test_no_more_jobs_run_at_once_than_allowed(tmp_path: Path) -> None:
    alone = f"mkdir {tmp_path}/busy && sleep 0.1 && rmdir {tmp_path}/busy"
    assert run([shell("a", alone), shell("b", alone), shell("c", alone)], tmp_path, parallel=1)[0] == 0


def test_finished_jobs_are_skipped_and_unfinished_ones_run(tmp_path: Path) -> None:
    jobs = [maker(tmp_path, "a"), maker(tmp_path, "b", "a"), shell("always", f"echo always >> {tmp_path}/order.txt")]
    run(jobs, tmp_path)
    code, out = run(jobs, tmp_path)
    assert code == 0
    assert order(tmp_path).count("a") == order(tmp_path).count("b") == 1
    assert order(tmp_path).count("always") == 2
    assert "a: done before" in out
    (tmp_path / "b" / "model" / "made").unlink()
    run(jobs, tmp_path)
    assert order(tmp_path).count("a") == 1
    assert order(tmp_path).count("b") == 2


def test_a_file_that_no_run_of_ours_made_is_not_taken_for_done(tmp_path: Path) -> None:
    made = tmp_path / "a" / "model" / "made"
    made.parent.mkdir(parents=True)
    made.touch()
    run([maker(tmp_path, "a")], tmp_path)
    assert order(tmp_path) == ["a"]


def test_a_changed_recipe_is_refused_with_what_to_delete_for_all_it_concerns(tmp_path: Path) -> None:
    run([maker(tmp_path, "a", content="old"), maker(tmp_path, "b", "a"), maker(tmp_path, "other")], tmp_path)
    changed = [maker(tmp_path, "a", content="new"), maker(tmp_path, "b", "a"), maker(tmp_path, "other")]
    with pytest.raises(RecipeError) as caught:
        run(changed, tmp_path)
    assert [fault.partition("Delete ")[2] for fault in caught.value.faults] == [
        f"{tmp_path / 'a'} to do it again.",
        f"{tmp_path / 'b'} to do it again.",
    ]
    assert sorted(order(tmp_path)) == ["a", "b", "other"], "nothing ran a second time"


def test_what_is_only_better_done_first_does_not_make_a_job_stale(tmp_path: Path) -> None:
    """A change of another stage's recipe must not ask for this one to be trained again."""
    first, second = maker(tmp_path, "first", content="old"), maker(tmp_path, "second")
    second.after.add("first")
    run([second, first], tmp_path)
    assert order(tmp_path) == ["first", "second"]
    (tmp_path / "first" / "model" / "made").unlink()
    second = maker(tmp_path, "second")
    second.after.add("first")
    code, out = run([second, maker(tmp_path, "first", content="new")], tmp_path)
    assert code == 0
    assert "second: done before" in out


def test_jobs_that_wait_for_each_other_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="these jobs wait for each other: "):
        run([maker(tmp_path, "a", "b"), maker(tmp_path, "b", "a")], tmp_path)


def test_a_failing_job_stops_the_run_with_the_end_of_its_log(tmp_path: Path) -> None:
    jobs = [
        shell("bad", "seq 5000; echo this went wrong >&2; exit 3"),
        shell("long", "sleep 60"),
        maker(tmp_path, "later", "bad"),
    ]
    started = time.monotonic()
    code, out = run(jobs, tmp_path)
    assert time.monotonic() - started < 20, "the job beside it is stopped, not waited for"
    assert code == 1
    assert "bad: failed (exit code 3)." in out
    assert f"the end of {tmp_path / 'logs' / 'bad.log'}:" in out
    assert out.endswith("5000\nthis went wrong\n\n")
    assert len(out) < 4000
    assert not (tmp_path / "later").exists()


def test_the_message_of_a_failed_stage_is_shown(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    status.write_text(json.dumps({"state": "wrong_input", "message": "there are no packs"}))
    code, out = run([shell("train", "exit 1", status=status)], tmp_path)
    assert code == 1
    assert "train: failed (exit code 1). there are no packs" in out


@pytest.mark.parametrize(("exit_code", "state"), [(75, "failed"), (1, "requeue")])
def test_a_job_that_saved_and_stopped_is_to_be_run_again(tmp_path: Path, exit_code: int, state: str) -> None:
    """A launcher returns 1 whatever its workers returned; status.json knows."""
    (tmp_path / "status.json").write_text(json.dumps({"state": state}))
    code, out = run([shell("train", f"exit {exit_code}", status=tmp_path / "status.json")], tmp_path)
    assert code == 75
    assert "run the same command again to go on" in out


def test_the_time_of_jobs_is_kept_over_runs(tmp_path: Path) -> None:
    run([maker(tmp_path, "a")], tmp_path)
    run([maker(tmp_path, "a"), maker(tmp_path, "b")], tmp_path)
    assert set(json.loads((tmp_path / "timings.json").read_text())) == {"a", "b"}


# Two runs, and Ctrl-C

SCRIPT = """
import sys
from pathlib import Path
from flan_tune.cli.jobs import Job, run_jobs
folder = Path(sys.argv[1])
made = folder / "first" / "made"
make = f"echo first >> {folder}/order.txt; mkdir -p {made.parent}; touch {made}"
first = Job("first", ["sh", "-c", make], makes=made)
tell = f"echo $$ > {folder}/pid; echo second >> {folder}/order.txt"
second = Job("second", ["sh", "-c", f"{tell}; [ -e {folder}/go ] || sleep 60"], {"first"})
print("end", run_jobs([first, second], folder, 2)[0])
sys.exit(0)
"""


def start_run(folder: Path) -> subprocess.Popen[bytes]:
    """A run in a session of its own, whose second job sleeps unless the file `go` is there."""
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    with (folder / "out.txt").open("a") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)


def wait_for_line(path: Path, line: str) -> None:
    until = time.monotonic() + 30
    while not path.exists() or line not in path.read_text().split("\n"):
        assert time.monotonic() < until, f"no line {line!r} in {path}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_jobs_too_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    process = start_run(tmp_path)
    wait_for_line(tmp_path / "order.txt", "second")
    os.kill(process.pid, number)  # to the run alone: it passes it on to all processes of its jobs
    assert process.wait(30) == 0
    out = (tmp_path / "out.txt").read_text()
    assert "interrupted: waiting for running jobs to save and stop" in out
    assert out.endswith("run the same command again to go on.\nend 130\n")
    (tmp_path / "go").touch()
    again = start_run(tmp_path)
    assert again.wait(30) == 0
    assert (tmp_path / "out.txt").read_text().endswith("end 0\n")
    assert order(tmp_path) == ["first", "second", "second"]


def test_a_second_run_in_the_folder_is_refused_also_while_a_killed_runs_job_lives(tmp_path: Path) -> None:
    process = start_run(tmp_path)
    wait_for_line(tmp_path / "order.txt", "second")
    with pytest.raises(RecipeError, match="another run is working here"):
        run([maker(tmp_path, "x")], tmp_path)
    process.kill()
    process.wait(30)
    with pytest.raises(RecipeError, match="or a job of one that was killed"):
        run([maker(tmp_path, "x")], tmp_path)
    os.killpg(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # a job has a group of its own
    until = time.monotonic() + 20
    while True:  # the job's end gives the lock back a moment later
        try:
            assert run([maker(tmp_path, "x")], tmp_path)[0] == 0
            break
        except RecipeError:
            assert time.monotonic() < until
            time.sleep(0.05)


# From recipes to jobs


def waits_of(path: Path) -> dict[str, set[str]]:
    return {job.name: job.waits for job in make_jobs(load_pipeline(path))}


@pytest.fixture
def quickstart(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("FLAN_TUNE_DATA", raising=False)
    return Path("recipes/quickstart/pipeline.yaml")


def test_what_waits_for_what_is_read_from_the_recipes(quickstart: Path) -> None:
    waits = waits_of(quickstart)
    assert waits["prepare base"] == set()
    assert waits["train base"] == {"prepare base"}
    assert waits["prepare flan"] == {"prepare base"}, "it uses the tokenizer that base makes"
    assert waits["train flan"] == {"prepare flan", "train base"}
    assert waits["prepare flan_u"] == {"train ul2r"}, "its tokenizer is the model's, with sentinels"
    assert waits["train flan_u"] == {"prepare flan_u", "train ul2r"}
    everything = {name for name in waits if name.startswith("prepare")}
    assert waits["evaluate flan"] == {"train flan"} | everything


def test_the_order_of_the_stages_in_the_file_does_not_matter(quickstart: Path, tmp_path: Path) -> None:
    lines = quickstart.read_text().replace("recipe: ", f"recipe: {quickstart.parent.resolve()}/").splitlines()
    first = lines.index("stages:") + 1
    last = max(number for number, line in enumerate(lines) if "recipe: " in line) + 1
    lines[first:last] = lines[first:last][::-1]
    (tmp_path / "p.yaml").write_text("\n".join(lines))
    assert waits_of(tmp_path / "p.yaml") == waits_of(quickstart)


def test_the_commands_are_those_a_user_would_type(quickstart: Path) -> None:
    jobs = {job.name: job for job in make_jobs(load_pipeline(quickstart))}
    assert jobs["prepare flan"].command[1:] == ["-m", "flan_tune.cli.main", "prepare", "recipes/quickstart/flan.yaml"]
    assert jobs["train flan"].command[-2:] == ["flan_tune.train", "recipes/quickstart/flan.yaml"]
    assert jobs["evaluate flan"].command.count("--seen-by") == 5
    assert jobs["evaluate flan"].folder is None, "the evaluation alone is deleted to evaluate again"
    assert jobs["train flan"].folder == Path("runs/quickstart/flan")


def pipeline(folder: Path, text: str = "") -> Path:
    """A pipeline of one sound stage, with `text` added."""
    if not (folder / "recipe.yaml").exists():
        small_recipe(folder)
    (folder / "launch.yaml").write_text("use_cpu: true\n")
    path = folder / "pipeline.yaml"
    head = f"output_dir: {folder / 'runs'}\nlaunch: {folder / 'launch.yaml'}\n"
    path.write_text(f"{head}stages:\n  - {{name: one, recipe: recipe.yaml}}\n{text}")
    return path


def test_evaluation_knows_the_cards_of_every_stage(tmp_path: Path) -> None:
    path = pipeline(tmp_path, "evaluate: {suites: [tasks]}\n")
    (tmp_path / "cards").mkdir()
    edit(tmp_path / "recipe.yaml", "data:\n", f"data:\n  task_paths: [{tmp_path / 'cards'}]\n")
    command = make_jobs(load_pipeline(path))[-1].command
    assert command[command.index("--task-path") + 1] == str(tmp_path / "cards")


def test_a_comment_in_a_mixture_makes_nothing_stale(tmp_path: Path) -> None:
    path = pipeline(tmp_path)
    before = make_jobs(load_pipeline(path))[0].content
    edit(tmp_path / "mixture.yaml", "members:", "# a comment\nmembers:")
    assert make_jobs(load_pipeline(path))[0].content == before
    edit(tmp_path / "mixture.yaml", "rate: 1.0", "rate: 2.0")
    assert make_jobs(load_pipeline(path))[0].content != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("paralel: 2\n", "5: unknown key 'paralel'. Did you mean 'parallel'?"),
        ("parallel: two\n", "5: parallel is 'two'; it is a whole number, 1 or more."),
        ("title: 3\n", "5: title is 3; text is wanted."),
        ("evaluate: yes\n", "5: evaluate is True; it is a mapping"),
        ("evaluate: {suites: procedural}\n", "5: suites is 'procedural'; it is a list of ['procedural', "),
        ("evaluate: {suites: [procedurall]}\n", "5: there is no suite 'procedurall'. Did you mean 'procedural'?"),
        ("evaluate: {row: 3}\n", "5: unknown key 'row'. Did you mean 'rows'?"),
        ("evaluate: {rows: many}\n", "5: rows is 'many'; it is a whole number, 1 or more."),
        ("  - {name: one, recipe: recipe.yaml}\n", "3: 2 stages have the name 'one'; give each its own."),
        ("  - {name: two, recipe: recipe.yaml}\n", "3: 2 stages have the training.output_dir"),
        ("  - {name: a/b, recipe: recipe.yaml}\n", "5: the stage name 'a/b' becomes part of file names"),
        ("  - {recipe: recipe.yaml}\n", "5: a stage is {name: ..., recipe: ...}, found {'recipe': 'recipe.yaml'}."),
        ("  - {name: two, recipe: recipe.yaml, thread: 2}\n", "5: unknown key 'thread'. Did you mean 'threads'?"),
        ("  - {name: two, recipe: recipe.yaml, threads: 0}\n", "5: threads is 0; it is a whole number, 1 or more."),
        ("  - {name: two, recipe: 3}\n", "5: recipe is 3; text is wanted."),
        ("  - {name: two, recipe: none.yaml}\n", "none.yaml: there is no such file."),
    ],
)
def test_faults_of_a_pipeline_are_found_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    path = pipeline(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_pipeline(path)
    faults = [fault.removeprefix(f"{path}:").removeprefix(f"{tmp_path}/") for fault in caught.value.faults]
    assert any(fault.startswith(message) for fault in faults), faults


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["a pipeline is a mapping with the keys"]),
        ("title: x\n", ["'output_dir' is missing", "'launch' is missing", "'stages' is missing"]),
        ("output_dir: o\nlaunch: none.yaml\nstages: []\n", ["no such accelerate config", "stages is a list"]),
    ],
)
def test_files_that_are_no_pipelines(tmp_path: Path, text: str, messages: list[str]) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_pipeline(tmp_path / "p.yaml")
    assert len(caught.value.faults) == len(messages)
    assert all(message in fault for message, fault in zip(messages, caught.value.faults, strict=True))


def test_faults_of_all_stages_are_told_at_once(tmp_path: Path) -> None:
    path = pipeline(tmp_path, "  - {name: two, recipe: other.yaml}\nparalel: 1\n")
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "other.yaml").write_text(text.replace("max_length", "max_lenght"))
    edit(tmp_path / "mixture.yaml", "[add,", "[ad,")
    with pytest.raises(RecipeError) as caught:
        load_pipeline(path)
    message = str(caught.value)
    assert "unknown key 'paralel'" in message
    assert f"{tmp_path / 'other.yaml'}:6: unknown key 'data.max_lenght'" in message
    assert message.count("there is no task 'ad'") == 1, "the mixture both stages use is told once"
