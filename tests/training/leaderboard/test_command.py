"""Whole leaderboard runs of the toy task; each seed is a real process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graphattn.cli import main
from graphattn.errors import ArgumentError, ConfigError, DataError
from graphattn.training import run, run_leaderboard
from graphattn.training.leaderboard import seeds
from graphattn.training.leaderboard.plan import Plan, make_plan
from graphattn.training.lock import only_writer

FOLDER = Path("runs/toy")
Write = Callable[..., str]


def table(folder: Path) -> dict[str, Any]:
    """The row without the clock, the place, the command and the threads that this process and a seed's have."""
    row = json.loads((folder / "leaderboard.json").read_text())
    for found in row["seeds"]:
        del found["seconds"]
    return {key: value for key, value in row.items() if key not in ("command", "hardware")}


def trained(seed: int) -> int:
    """Epochs that a seed has behind it."""
    file = FOLDER / f"seed_{seed}" / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if file.exists() else 0


def test_killed_and_started_again_is_the_same_table(toy_config: Write, capfd: pytest.CaptureFixture[str]):
    """One seed is finished; SIGKILL for everything in the middle of the other's training; then to the end."""
    config = toy_config()
    for root in ("runs", "undisturbed"):
        run("fit", ["--config", config, "--seed_everything=0", f"--run.root={root}"])
    run("fit", ["--config", config, "--seed_everything=1", "--run.root=undisturbed"])
    arguments = ["leaderboard", "--config", config, "--seeds", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "graphattn.cli", *arguments],
        env={**os.environ, "TOY_SLEEP": "0.2"},  # five steps an epoch
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        end = time.monotonic() + 120
        while trained(1) < 2:
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.02)
        time.sleep(0.3)  # into the next epoch
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (FOLDER / "leaderboard.json").exists()
    assert "seed 0     finished  epoch 4/4, best val/balanced_accuracy" in out and "seed 1     running" in out
    done = trained(1)
    assert 2 <= done < 4

    assert main(arguments) == 0
    log = (FOLDER / "seed_1" / "log.txt").read_text().rpartition("$ ")[2]
    epochs = [line.split()[1] for line in log.splitlines() if line.startswith("epoch ")]
    assert epochs == [f"{epoch}/4" for epoch in range(done + 1, 5)]  # only the epoch in hand was lost
    run_leaderboard([*arguments[1:], "--run.root=undisturbed"])
    assert table(FOLDER) == table(Path("undisturbed/toy"))
    assert (FOLDER / "leaderboard.png").read_bytes().startswith(b"\x89PNG")
    stamp = (FOLDER / "seed_1" / "log.txt").stat().st_mtime_ns
    assert main(arguments) == 0  # once more: only reads
    assert (FOLDER / "seed_1" / "log.txt").stat().st_mtime_ns == stamp


def test_runs_end_with_a_leaderboard_that_is_killed(toy_config: Write):
    """SIGKILL for the leading process alone, in the middle of a training of an hour."""
    pytest.importorskip("fcntl")
    log = FOLDER / "seed_0" / "log.txt"
    with subprocess.Popen(
        [sys.executable, "-m", "graphattn.cli", "leaderboard", "--config", toy_config(trainer__max_epochs=3600)],
        env={**os.environ, "TOY_SLEEP": "0.2"},  # five steps an epoch
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            end = time.monotonic() + 120
            while trained(0) < 1:
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.02)
            process.kill()
            process.wait()
            while "interrupted; go on with" not in log.read_text():  # told at the end, as after Ctrl-C
                assert time.monotonic() < end
                time.sleep(0.1)
            assert "the process that started this run is gone; stopping" in log.read_text()
            with only_writer(FOLDER / "seed_0", wait=0):
                pass
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def quick(
    monkeypatch: pytest.MonkeyPatch, write_results: Callable[..., None], fails: dict[int, str]
) -> list[tuple[int, dict[str, str]]]:
    """Runs that only print, with the results written here; ``fails`` is the code that a seed runs instead."""
    started = []

    def command(plan: Plan, seed: int) -> list[str]:
        if seed not in fails:
            write_results(plan.run_folder(seed), seed)
        return [sys.executable, "-c", fails.get(seed, "print('hello')")]

    def environment(slots: list[tuple[str, ...]], slot: int) -> dict[str, str]:
        started.append((slot, found := original(slots, slot)))
        return found

    original = seeds._environment
    monkeypatch.setattr(seeds, "_command", command)
    monkeypatch.setattr(seeds, "_environment", environment)
    return started


@pytest.fixture
def write_results(toy_config: Write, capsys: pytest.CaptureFixture[str]) -> Callable[[Path, int], None]:
    """The results of one real run, under another seed."""
    run("fit", ["--config", toy_config(trainer__max_epochs=1, leaderboard=None), "--run.root=real"])
    capsys.readouterr()

    def write(folder: Path, seed: int) -> None:
        values = json.loads(Path("real/toy/seed_3/results.json").read_text())
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps({**values, "seed": seed}))

    return write


def test_one_failing_seed_does_not_lose_the_others(
    toy_config: Write,
    write_results: Callable[[Path, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    fails = {
        1: "print('Epoch 3'); import sys; sys.exit('graphattn: error: the loss is not a number')",
        2: "raise ValueError('a bug')",
        3: "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    }
    quick(monkeypatch, write_results, fails)
    config = ["leaderboard", "--config", toy_config(trainer__max_epochs=1), "--seeds", "5"]
    assert main(config) == 1
    err = capsys.readouterr().err
    assert "3 of 5 seeds failed; no row is written without them" in err
    for seed, what in (
        (1, "the loss is not a number"),
        (2, "ValueError: a bug"),
        (3, "killed by SIGKILL (was memory short?)"),
    ):
        assert f"seed {seed}: {what}\n    runs/toy/seed_{seed}/log.txt" in err
    assert "Epoch 3" in (FOLDER / "seed_1" / "log.txt").read_text()
    assert "Try them again with the same command" in err and not (FOLDER / "leaderboard.json").exists()
    assert all((FOLDER / f"seed_{seed}" / "results.json").exists() for seed in (0, 4))

    assert main([*config, "--draft"]) == 1  # a draft of what there is; still a failure
    assert "DRAFT, not a leaderboard row: 2 of 5 seeds" in (FOLDER / "leaderboard.md").read_text()
    capsys.readouterr()

    del fails[1], fails[2], fails[3]
    assert main(config) == 0
    assert "DRAFT" not in (FOLDER / "leaderboard.md").read_text()
    assert "| Seeds | 5: 0, 1, 2, 3, 4 |" in (FOLDER / "leaderboard.md").read_text()


@pytest.mark.parametrize("stubborn", [False, True])
def test_ctrl_c_stops_the_runs_and_tells_how_to_go_on(
    stubborn: bool,
    toy_config: Write,
    write_results: Callable[[Path, int], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(seeds.GRACE, signal.SIGINT, 0.5 if stubborn else 30.0)
    waits = "import signal, time\n"
    waits += f"signal.signal(signal.SIGINT, {'signal.SIG_IGN' if stubborn else 'signal.default_int_handler'})\n"
    waits += "print('ready', flush=True)\ntry:\n    time.sleep(60)\nfinally:\n    print('cleaned up', flush=True)"
    quick(monkeypatch, write_results, {1: waits, 2: waits})
    logs = [FOLDER / f"seed_{seed}" / "log.txt" for seed in (1, 2)]

    def interrupt_when_ready() -> None:
        while not all(log.exists() and "ready" in log.read_text().splitlines() for log in logs):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    config = toy_config(trainer__max_epochs=1)
    thread = threading.Thread(target=interrupt_when_ready)
    thread.start()
    assert main(["leaderboard", "--config", config, "--seeds", "4", "--parallel", "2"]) == 130
    thread.join()
    err = capsys.readouterr().err
    assert "interrupted; 1 of 4 seeds are finished. Go on with the same command:" in err
    assert f"graphattn leaderboard --config {config} --seeds 4 --parallel 2" in err
    for log in logs:
        assert ("cleaned up" in log.read_text().splitlines()) is not stubborn
    assert not (FOLDER / "seed_3").exists()
    with only_writer(FOLDER, wait=0):  # and everything is let go of
        pass


def test_each_slot_has_its_device(
    toy_config: Write, write_results: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    started = quick(monkeypatch, write_results, {})
    shared = ["--config", toy_config(trainer__max_epochs=1, trainer__accelerator="auto"), "--seeds", "4"]
    run_leaderboard(shared)
    assert len(started) == 4 and {slot for slot, _ in started} <= {0, 1}
    for slot, environment in started:
        assert environment["CUDA_VISIBLE_DEVICES"] == ("4", "GPU-7")[slot]
        assert environment["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))

    def slots(*more: str, parallel: int | None = None) -> list[tuple[str, ...]]:
        return make_plan([*shared[:2], *more], [0], parallel).slots

    assert slots(parallel=3) == [("4",), ("GPU-7",), ("4",)]
    assert slots("--trainer.devices=2") == [("4", "GPU-7")]
    assert slots("--trainer.devices=[1]") == [()]  # chosen by hand: left alone
    assert slots("--trainer.accelerator=cpu", parallel=2) == [(), ()]
    with pytest.raises(ConfigError, match="asks for 3 GPUs for each run, and 2 can be seen"):
        slots("--trainer.devices=3")


def test_fewer_seeds_than_the_rules_ask_for(
    toy_config: Write, write_results: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
):
    quick(monkeypatch, write_results, {})
    config = toy_config(trainer__max_epochs=1, leaderboard={"dataset": "ogbg-molhiv", "method": "GCN"})
    with pytest.raises(ArgumentError, match="the rules of ogbg-molhiv ask for 10 seeds, got 3; --draft"):
        run_leaderboard(["--config", config, "--seeds", "3"])
    assert not FOLDER.exists()
    assert run_leaderboard(["--config", config, "--seeds", "3", "--draft"]).draft == "3 of 10 seeds"
    row = run_leaderboard(["--config", config])  # as many as it takes
    assert [found.seed for found in row.seeds] == list(range(10)) and row.draft == ""
    assert run_leaderboard(["--config", config, "--draft"]).draft == "asked for as a draft"


def test_check_goes_all_the_way_and_leaves_nothing(toy_config: Write, capsys: pytest.CaptureFixture[str]):
    config = toy_config()
    assert main(["leaderboard", "--config", config, "--check"]) == 0
    out = capsys.readouterr().out
    assert "a check on 2 batches, its figures mean nothing" in out and f"check passed: {config}" in out
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({}, ["--config", "missing.yaml"], "File does not exist"),
        ({"leaderboard": None}, [], "no section leaderboard. It needs at least"),
        ({"leaderboard": {"dataset": "x"}}, [], "method"),
        ({"leaderboard__metod": "x"}, [], "Option 'metod' is not accepted. Did you mean 'method'?"),
        ({"leaderboard__published": [{"method": "x", "test": 1.0}]}, [], "published"),
        ({}, ["--leaderboard.seeds=0"], "leaderboard.seeds is 0, but it must be at least 1"),
        ({}, ["--paralel=2"], "nrecognized arguments: --paralel"),
        ({}, ["--trainer.fast_dev_run=true"], "gives no results; to try a configuration out use --check"),
        ({}, ["--run.folder=x"], "each seed needs its own"),
        ({"model__init_args__model__init_args": {"widht": 3}}, [], "Did you mean 'width'?"),
        (
            {"data": {"class_path": "graphattn.training.GraphDataModule", "init_args": {"name": "ogbg_molfreesolv"}}},
            ["--leaderboard.dataset=ogbg-molesol", "--leaderboard.seeds=10"],
            "leaderboard.dataset is 'ogbg-molesol', but data.name is 'ogbg_molfreesolv'",
        ),
    ],
)
def test_a_wrong_configuration_is_told_once_before_anything_starts(
    changes: dict[str, Any], more: list[str], message: str, toy_config: Write, capsys: pytest.CaptureFixture[str]
):
    assert main(["leaderboard", "--config", toy_config(**changes), *more]) == 2
    err = capsys.readouterr().err
    assert err.startswith("graphattn: error: ") and message in err and "Traceback" not in err
    assert not Path("runs").exists()


def test_runs_of_another_configuration_are_not_mixed_in(toy_config: Write):
    run("fit", ["--config", toy_config(trainer__max_epochs=1), "--seed_everything=1"])
    shared = ["--seeds", "2", "--run.name=toy"]
    with pytest.raises(ConfigError, match=r"seed_1 holds a finished run of another conf.*differing: .*width\. Give"):
        run_leaderboard(["--config", toy_config(trainer__max_epochs=1), "--model.model.width=4", *shared])
    with pytest.raises(ConfigError, match=r"seed_1 holds a finished run.*differing: trainer\.max_epochs"):
        run_leaderboard(["--config", toy_config(trainer__max_epochs=2), *shared])
    (FOLDER / "seed_1" / "results.json").unlink()
    with pytest.raises(ConfigError, match="seed_1 holds an unfinished run of another configuration"):
        run_leaderboard(["--config", toy_config(trainer__max_epochs=2), *shared])


def test_data_that_cannot_be_had_are_told_once(
    toy_config: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import toy

    def missing(self: Any) -> None:
        raise DataError("the files are nowhere")

    monkeypatch.setattr(toy.ToyData, "prepare_data", missing)
    assert main(["leaderboard", "--config", toy_config(), "--seeds", "2"]) == 1
    assert capsys.readouterr().err == "graphattn: error: the files are nowhere\n"
    assert not any(FOLDER.glob("seed_*"))


def test_not_under_torchrun(toy_config: Write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="must not be started by torchrun"):
        run_leaderboard(["--config", toy_config()])


def test_two_writers_of_one_folder(toy_config: Write, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("fcntl")
    held = "from graphattn.training.lock import only_writer; from pathlib import Path; import time\n"
    held += "with only_writer(Path('runs/toy/seed_3')):\n    print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", held], stdout=subprocess.PIPE, env={**os.environ}, text=True) as other:
        try:
            assert other.stdout is not None and other.stdout.readline() == "held\n"
            monkeypatch.setattr("graphattn.training.main.only_writer", lambda folder: only_writer(folder, wait=0.3))
            with pytest.raises(ConfigError, match="another process is writing to runs/toy/seed_3"):
                run("fit", ["--config", toy_config()])
        finally:
            other.kill()
    run("fit", ["--config", toy_config(trainer__max_epochs=1)])  # its end let go of the folder
