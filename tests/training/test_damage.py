"""A table of damage: each file of a run, cut, emptied, changed, removed or replaced, is refused, never scored."""

import json
import os
import shutil
import signal
import stat

import pytest
from helpers.run_processes import Run, assert_same, results_of
from safetensors import SafetensorError

from pml_supcon import _files
from pml_supcon.evaluation.app import main as evaluate
from pml_supcon.experiments import app as reproduce
from pml_supcon.experiments.analysis import evaluate_run
from pml_supcon.experiments.runner import DIVERGED, read_record
from pml_supcon.training import digests
from pml_supcon.training import train as engine
from pml_supcon.training.app import main
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.launch import make_accelerator

TINY = ["--max-train", "60", "--max-test", "20", "--batch-size", "30", "--epochs", "2", "--head-dim", "8"]
TINY += ["--encoder-args.channels", "[8, 8, 8, 8]", "--pictures", "false"]
STAGE2 = ["--stage2-optimizer", "sgd", "--stage2-epochs", "2", "--stage2-learning-rate", "0.1"]

DAMAGES = {
    "cut": lambda file, other: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file, other: os.truncate(file, 0),
    "changed": lambda file, other: flip(file),
    "removed": lambda file, other: file.unlink(),
    "replaced": lambda file, other: shutil.copy(other, file),
}
FINISHED = [
    "config.yaml",
    "history.jsonl",
    "metrics.json",
    "digests.json",
    "head.safetensors",
    "classifier.safetensors",
]
FINISHED += ["encoder/model.safetensors", "encoder/config.json"]
CHECKPOINT = ["weights.safetensors", "state.pt", "checkpoint.json"]


def flip(file):
    """Change the last digit of a text, or the last byte of a binary file."""
    content = bytearray(file.read_bytes())
    place = max((place for place, byte in enumerate(content) if byte in b"0123456789"), default=len(content) - 1)
    content[place] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory):
    """Return two finished runs with all files, and no two files alike."""
    folder = tmp_path_factory.mktemp("finished")
    for seed in ("0", "1"):
        most = ["--max-train", "90"] if seed == "1" else []  # so that the normalisation differs
        main([*TINY, *most, *STAGE2, "--seed", seed, "--output", str(folder / seed)])
    return folder / "0", folder / "1"


def die_before_metrics():
    engine.score_and_save = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def killed_runs(tmp_path_factory):
    """Return two runs that were killed after their last checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    for seed in ("0", "1"):
        run = Run([*TINY, "--seed", seed, "--output", folder / seed], before=die_before_metrics)
        assert run.wait() == [-signal.SIGKILL]
    return folder / "0", folder / "1"


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(program, capsys, *arguments):
    """Return the one line of an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        program([*map(str, arguments)])
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_the_table_has_every_file_that_a_program_reads(finished_runs):
    whole, _ = finished_runs
    listed = set(json.loads((whole / "digests.json").read_text())["files"])
    assert listed == set(FINISHED) - {"digests.json"}
    found = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert {name for name in found if not name.startswith("checkpoints/")} == set(FINISHED)
    assert {path.name for path in (whole / "checkpoints").rglob("*") if path.is_file()} == set(CHECKPOINT)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FINISHED)
def test_a_damaged_finished_run_is_refused_by_name(name, damage, finished_runs, tmp_path, capsys):
    run = shutil.copytree(finished_runs[0], tmp_path / "run")
    DAMAGES[damage](run / name, finished_runs[1] / name)
    before = files_of(run)
    programs = [(evaluate, [run]), (evaluate, [finished_runs[0], "--compare", run])]
    if name.startswith("encoder/"):
        programs += [(evaluate, [run / "encoder", "--data", "digits"])]
        programs += [(main, [*TINY, "--output", tmp_path / "tuned", "--encoder-weights", run / "encoder"])]
    if (name, damage) != ("metrics.json", "removed"):  # which is no longer a finished run
        programs += [(main, ["--output", run, "--resume"])]
    for program, arguments in programs:
        said = error_of(program, capsys, *arguments, *(["--sections", "retrieval"] if program is evaluate else []))
        # a folder without config.yaml is no run; digests of another run name the first file that differs
        assert str(run) in said
        assert name in said or (name, damage) in (("config.yaml", "removed"), ("digests.json", "replaced")), said
        assert files_of(run) == before
        assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("name", ["metrics.json", "encoder/model.safetensors", "head.safetensors", "digests.json"])
def test_a_damaged_result_is_rebuilt_from_the_last_checkpoint(name, finished_runs, tmp_path, capsys):
    run = shutil.copytree(finished_runs[0], tmp_path / "run")
    flip(run / name)
    said = error_of(main, capsys, "--output", run, "--resume")
    assert f"Remove {run / 'metrics.json'}, and --resume writes it again from the last checkpoint" in said
    (run / "metrics.json").unlink()
    main(["--output", str(run), "--resume"])
    assert_same(results_of(run), results_of(finished_runs[0]))
    digests.check_finished(run)


def test_a_head_that_the_run_did_not_write_is_refused(killed_runs, finished_runs, tmp_path, capsys):
    run = shutil.copytree(killed_runs[0], tmp_path / "run")
    main([*TINY, "--output", str(run), "--resume"])
    shutil.copy(finished_runs[0] / "classifier.safetensors", run)
    assert "classifier.safetensors was not written by this run: remove it" in error_of(evaluate, capsys, run)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.yaml", "history.jsonl", *CHECKPOINT])
def test_a_damaged_checkpoint_is_refused_by_name(name, damage, killed_runs, tmp_path, capsys):
    run = shutil.copytree(killed_runs[0], tmp_path / "run")
    (run / ".lock").unlink()
    newest = sorted((run / "checkpoints").iterdir())[-1]
    place = newest.relative_to(run) / name if name in CHECKPOINT else name
    DAMAGES[damage](run / place, killed_runs[1] / place)
    before = files_of(run)
    said = error_of(main, capsys, *TINY, "--output", run, "--resume")
    assert str(run / "checkpoints" if name in CHECKPOINT else run) in said
    # settings of another run are compared with the checkpoint's; another checkpoint.json has digests of other files
    assert name in said or (damage == "replaced" and name in ("config.yaml", "checkpoint.json")), said
    assert files_of(run) == before
    if name in CHECKPOINT:  # as the message says
        shutil.rmtree(newest)
        main([*TINY, "--output", str(run), "--resume"])
        digests.check_finished(run)


@pytest.mark.parametrize(
    ("field", "value"), [("step", 3), ("stage", 2), ("seconds", 0.0), ("history", {"bytes": 0}), ("processes", 2)]
)
def test_a_changed_field_of_a_checkpoint_is_refused(field, value, killed_runs, tmp_path, capsys):
    run = shutil.copytree(killed_runs[0], tmp_path / "run")
    file = sorted((run / "checkpoints").iterdir())[-1] / "checkpoint.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    assert f"{file} is not what was written" in error_of(main, capsys, *TINY, "--output", run, "--resume")


def test_rows_after_the_checkpoint_may_be_anything(killed_runs, tmp_path):
    run = shutil.copytree(killed_runs[0], tmp_path / "run")
    with (run / "history.jsonl").open("ab") as file:
        file.write(b'{"stage": 1, "epoch": 3, "step": 5, "lo\x00\xff')
    main([*TINY, "--output", str(run), "--resume"])
    assert (run / "history.jsonl").read_bytes() == (killed_runs[0] / "history.jsonl").read_bytes()


@pytest.mark.parametrize("damage", ["cut", "changed", "removed"])
def test_reproduce_refuses_a_damaged_run(damage, tmp_path, capsys):
    """Its runs have no checkpoints: without ``metrics.json`` they are trained again."""
    command = ["losses", "--seeds", "0", "--learning-rate", "0.1", "--runs", str(tmp_path / "runs"), "--epochs", "1"]
    command += ["--max-train", "60", "--max-test", "20", "--batch-size", "30", "--warmup-epochs", "0"]
    command += ["--encoder-args.channels", "[8, 8, 8, 8]", "--results", str(tmp_path / "results")]
    reproduce.main(command)
    [metrics, _] = sorted((tmp_path / "runs").glob("*/metrics.json"))
    once = json.loads(metrics.read_text())
    DAMAGES[damage](metrics, None)
    if damage != "removed":
        assert str(metrics) in error_of(reproduce.main, capsys, *command)
        metrics.unlink()
    reproduce.main(command)
    again = json.loads(metrics.read_text())
    assert {name: again[name] for name in again if "top1" in name} == {
        name: once[name] for name in once if "top1" in name
    }


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_of_a_divergence_is_refused_by_name(damage, tmp_path):
    for run, top1 in (("a", 0.1), ("b", 0.9)):
        (tmp_path / run).mkdir()
        digests.write_own(tmp_path / run / DIVERGED, {"diverged": "the loss became inf", "linear_probe/top1": top1})
    file = tmp_path / "a" / DIVERGED
    assert read_record(file.parent) == {"diverged": "the loss became inf", "linear_probe/top1": 0.1}
    DAMAGES[damage](file, tmp_path / "b" / DIVERGED)
    if damage != "removed":  # which is trained again
        with pytest.raises(digests.DamageError, match=rf"{file} is not what was written.*Remove it to train again"):
            read_record(file.parent)


@pytest.mark.parametrize("damage", [*DAMAGES, "exchanged"])
def test_a_damaged_evaluation_of_reproduce_is_refused_or_repeated(damage, finished_runs, tmp_path):
    """Another run's, or another evaluation of the same run, is no evaluation."""
    run = shutil.copytree(finished_runs[0], tmp_path / "run")
    settings, accelerator = parse_settings(["--output", str(run), "--resume"]), make_accelerator(None)
    options = {"sections": ("retrieval",)}
    once = evaluate_run(run, settings, options, accelerator)
    [file] = run.glob("evaluation-*.json")
    assert evaluate_run(run, settings, options, accelerator) == once  # read, with the same seconds
    other = tmp_path / "other" / file.name if damage == "replaced" else run / "evaluation-0.json"
    other.parent.mkdir(exist_ok=True)
    digests.write_own(other, {"sections": {}, "notes": [], "seconds": {}})
    DAMAGES["replaced" if damage == "exchanged" else damage](file, other)
    if damage == "removed":
        assert evaluate_run(run, settings, options, accelerator)["sections"] == once["sections"]
    else:
        with pytest.raises(digests.DamageError, match=rf"{file} is not what was written.*Remove it to evaluate again"):
            evaluate_run(run, settings, options, accelerator)


# Full disks, modes, left-over files


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors", "classifier.safetensors"])
def test_a_full_disk_at_the_end_is_one_line_and_the_run_is_safe(name, tmp_path, capsys, monkeypatch):
    save = _files.save_file

    def fail(tensors, path, **options):
        if path.name == name:
            path.write_bytes(b"half")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save(tensors, path, **options)

    monkeypatch.setattr(_files, "save_file", fail)
    said = error_of(main, capsys, *TINY, *STAGE2, "--output", tmp_path / "run")
    assert name in said
    assert "could not be written: No space left on device" in said
    assert not list((tmp_path / "run").rglob(".*"))
    assert not (tmp_path / "run" / "metrics.json").exists()
    monkeypatch.undo()
    main(["--output", str(tmp_path / "run"), "--resume"])
    digests.check_finished(tmp_path / "run")


def test_all_files_have_the_mode_of_the_umask(finished_runs):
    mask = os.umask(0)
    os.umask(mask)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in finished_runs[0].rglob("*") if path.is_file()}
    assert set(modes.values()) == {0o666 & ~mask}


def test_a_resume_removes_what_killed_writers_left(killed_runs, tmp_path):
    run = shutil.copytree(killed_runs[0], tmp_path / "run")
    (run / "encoder" / ".model.77.partial").mkdir(parents=True)
    (run / "encoder" / ".model.77.partial" / ".tmpAbCdEf").write_bytes(b"half")
    (run / ".metrics.77.partial.json").write_text("half")
    main([*TINY, "--output", str(run), "--resume"])
    assert not list(run.rglob(".*"))
