"""experiments/pack.py, without a network."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "pack.py"


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """A folder with one wheel, which needs packages of its own."""
    folder = tmp_path / "links"
    folder.mkdir()
    info = "toy_pack-1.0.dist-info"
    needs = "Requires-Dist: torch>=2\nRequires-Dist: rich; extra == 'pretty'\n"
    with zipfile.ZipFile(folder / "toy_pack-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_pack.py", "answer = 42\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-pack\nVersion: 1.0\n{needs}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "small" / "raw").mkdir(parents=True)
    (folder / "small" / "raw" / "edges.txt").write_text("0 1\n")
    (folder / "large").mkdir()
    (folder / "large" / "x.bin").write_bytes(bytes(2**20))
    return folder


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True)


def test_packs_wheels_and_data_twice(tmp_path: Path, links: Path, data: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--no-defaults", "--wheels", "toy-pack", "--find-links", links]
    arguments += ["--data", "small", "--data-root", data, "--out", out]
    for _ in range(2):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
        assert found == {"wheels/toy_pack-1.0-py3-none-any.whl", "data/small/raw/edges.txt"}
    assert "also needs: torch>=2\n" in done.stdout
    assert "pip install -q --no-index --no-deps" in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".pack")] == []


def test_printed_command_installs_the_wheels(tmp_path: Path, links: Path) -> None:
    out = tmp_path / "out"
    done = run("--no-defaults", "--wheels", "toy-pack==1.0", "--find-links", links, "--out", out)
    command = next(line for line in done.stdout.splitlines() if " pip install " in line)
    command = command.replace("python3 ", f"{sys.executable} ", 1)
    command = command.replace("/tmp/site", str(tmp_path / "site"))
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "site" / "toy_pack.py").is_file()


def test_refuses_above_the_limit_and_keeps_the_old_folder(tmp_path: Path, links: Path, data: Path) -> None:
    out = tmp_path / "out"
    common = ["--no-defaults", "--data-root", data, "--out", out, "--find-links", links]
    assert run(*common, "--data", "small").returncode == 0
    done = run(*common, "--data", "large", "--limit-mib", 0.5)
    assert done.returncode == 1
    assert "1.0 MiB is more than the limit of 0.5 MiB" in done.stderr
    assert (out / "data" / "small").is_dir()
    assert not (out / "data" / "large").exists()


def test_dry_run_writes_nothing_and_pins_the_defaults(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run("--dry-run", "--out", out)
    assert done.returncode == 0, done.stderr
    assert "jsonargparse==" in done.stdout
    assert not out.exists()


@pytest.mark.parametrize("name", ["nowhere", "../data/small"])
def test_unknown_data_folder_is_one_clear_error(data: Path, tmp_path: Path, name: str) -> None:
    done = run("--no-defaults", "--data", name, "--data-root", data, "--out", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"pack: {name!r} is no folder of")
    assert "large, small" in done.stderr
    assert done.stderr.count("\n") == 1


def test_missing_wheel_is_one_clear_error(tmp_path: Path, links: Path) -> None:
    out = tmp_path / "out"
    done = run("--no-defaults", "--wheels", "no-such-wheel", "--find-links", links, "--out", out)
    assert done.returncode == 1
    assert "pip could not download no-such-wheel" in done.stderr
    assert not out.exists()


def test_leaves_a_folder_alone_that_it_did_not_make(tmp_path: Path, data: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    done = run("--no-defaults", "--data", "small", "--data-root", data, "--out", tmp_path / "mine")
    assert done.returncode == 1
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
