"""Pack what a GPU machine without a package registry lacks into one folder: wheels and chosen data.

    python experiments/pack.py                               # the default wheels, no data
    python experiments/pack.py --data zinc planetoid         # and two folders of $GRAPHATTN_DATA
    python experiments/pack.py --wheels ogb outdated littleutils --no-defaults
    python experiments/pack.py --wheels pytest==9.2.0 --dry-run

Dependencies are not followed, because most of them (torch itself) are there already; what the packed wheels
ask for and the folder does not hold is listed, to compare with `pip list` of the other machine. The folder
takes the place of an older one only when everything is in it and within the limit.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What `graphattn fit` needs beside torch, torch-geometric, torchmetrics, numpy and pytorch-lightning.
DEFAULT_WHEELS = ["lightning", "jsonargparse", "docstring-parser", "typeshed-client"]

MANYLINUX = ["2_39", "2_35", "2_34", "2_31", "2_28", "2_27", "2_24", "2_17", "2014", "2_12", "2010", "1"]
MIB = 2**20


class PackError(Exception):
    """The folder cannot be made; the text says why and what to do."""


def pinned(names: list[str]) -> list[str]:
    """The names with the versions of constraints.txt, where it has them and the name has none."""
    versions = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        match = re.match(r"([\w.-]+)==([^;\s]+)", line)
        if match:
            versions[canonical(match[1])] = match[2]
    return [
        f"{name}=={versions[canonical(name)]}"
        if re.fullmatch(r"[\w.-]+", name) and canonical(name) in versions
        else name
        for name in names
    ]


def canonical(name: str) -> str:
    """A distribution's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download(names: list[str], folder: Path, python: str, find_links: Path | None) -> None:
    """Fetch one wheel for each requirement, for that Python on Linux x86-64."""
    folder.mkdir(parents=True)
    if not names:
        return
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for tag in MANYLINUX:
        command += ["--platform", f"manylinux{'_' if '_' in tag else ''}{tag}_x86_64"]
    if find_links is not None:
        command += ["--no-index", "--find-links", str(find_links)]
    done = subprocess.run([*command, "--dest", str(folder), *names], capture_output=True, text=True)
    if done.returncode != 0:
        raise PackError(f"pip could not download {' '.join(names)}:\n{done.stderr.strip()}")


def unmet(folder: Path) -> dict[str, list[str]]:
    """What each packed wheel asks for that is not packed, without the requirements of extras."""
    wheels = sorted(folder.glob("*.whl"))
    packed = {canonical(wheel.name.split("-")[0]) for wheel in wheels}
    result = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            name = next(entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA"))
            header = archive.read(name).decode().partition("\n\n")[0]
        needs = re.findall(r"^Requires-Dist: (.+)$", header, flags=re.MULTILINE)
        missing = [
            need
            for need in needs
            if "extra ==" not in need and canonical(re.match(r"[\w.-]+", need)[0]) not in packed  # type: ignore[index]
        ]
        if missing:
            result[wheel.name] = missing
    return result


def data_folders(names: list[str], root: Path | None) -> dict[str, Path]:
    """Where each chosen data folder lies."""
    if not names:
        return {}
    if root is None:
        raise PackError("--data needs the data folder: set GRAPHATTN_DATA or pass --data-root")
    folders = {}
    for name in names:
        folder = root / name
        if ".." in Path(name).parts or Path(name).is_absolute() or not folder.is_dir():
            known = ", ".join(sorted(path.name for path in root.glob("*") if path.is_dir()))
            raise PackError(f"{name!r} is no folder of {root}; there are: {known or 'none'}")
        folders[name] = folder
    return folders


def size(folder: Path) -> int:
    """Bytes in all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy_files(source: Path, target: Path) -> None:
    """Copy a tree without its permissions, which may be read-only."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def check_size(total: int, limit: int) -> None:
    if total > limit:
        raise PackError(
            f"{total / MIB:.1f} MiB is more than the limit of {limit / MIB:.1f} MiB; "
            "leave something out or raise it with --limit-mib"
        )


def commands(out: Path, has_wheels: bool, has_data: bool) -> str:
    """What to run on the other machine, from the root of the repository there."""
    try:
        where = out.resolve().relative_to(ROOT).as_posix()
    except ValueError:
        where = out.name
    lines = []
    path = "$PWD:$PWD/kernels:$PWD/datasets"
    if has_wheels:
        lines.append(
            "python3 -m pip install -q --no-index --no-deps --no-compile --upgrade "
            f"--target /tmp/site {where}/wheels/*.whl"
        )
        path += ":/tmp/site"
    lines.append(f'export PYTHONPATH="{path}"')
    if has_data:
        lines.append(f'export GRAPHATTN_DATA="$PWD/{where}/data"')
    lines.append("python3 -m graphattn.env")
    lines.append("python3 -m graphattn.cli fit --config CONFIG")
    return "\n".join(lines)


def pack(arguments: argparse.Namespace) -> None:
    """Make the folder and print what to do with it."""
    limit = int(arguments.limit_mib * MIB)
    names = pinned(([] if arguments.no_defaults else DEFAULT_WHEELS) + arguments.wheels)
    folders = data_folders(arguments.data, arguments.data_root)
    check_size(sum(size(folder) for folder in folders.values()), limit)
    if arguments.dry_run:
        print("wheels:", " ".join(names) or "none")
        for name, folder in folders.items():
            print(f"data: {name} ({size(folder) / MIB:.1f} MiB)")
    else:
        out: Path = arguments.out
        if out.exists() and any(out.iterdir()) and not (out / "wheels").is_dir():
            raise PackError(f"{out} was not made by this script; remove it or choose another --out")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".pack-") as temporary:
            new = Path(temporary) / "new"
            download(names, new / "wheels", arguments.python, arguments.find_links)
            for name, folder in folders.items():
                copy_files(folder, new / "data" / name)
            check_size(size(new), limit)
            if out.exists():
                shutil.rmtree(out)
            new.rename(out)
        print(f"{out}: {size(out) / MIB:.1f} MiB")
        for wheel, missing in unmet(out / "wheels").items():
            print(f"  {wheel} also needs: {'; '.join(missing)}")
    print("\nOn the other machine, in the root of the repository:\n")
    print(commands(arguments.out, bool(names), bool(folders)))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    data_root = os.environ.get("GRAPHATTN_DATA")
    result = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    result.add_argument("--wheels", nargs="+", default=[], metavar="NAME", help="more wheels: name, name==version")
    result.add_argument("--no-defaults", action="store_true", help=f"leave out {', '.join(DEFAULT_WHEELS)}")
    result.add_argument("--data", nargs="+", default=[], metavar="FOLDER", help="folders of the data root")
    result.add_argument(
        "--data-root",
        type=Path,
        default=Path(data_root) if data_root else None,
        help="default: $GRAPHATTN_DATA",
    )
    result.add_argument("--out", type=Path, default=ROOT / ".pack", help="default: .pack (git ignores it)")
    result.add_argument("--python", default="3.12", help="Python of the other machine (default: 3.12)")
    result.add_argument("--limit-mib", type=float, default=60, help="refuse above this size (default: 60)")
    result.add_argument("--find-links", type=Path, help="take wheels from this folder, without a network")
    result.add_argument("--dry-run", action="store_true", help="say what would be packed")
    return result


def main(argv: list[str] | None = None) -> int:
    """Entry point; 1 and one line on standard error if the folder cannot be made."""
    try:
        pack(parser().parse_args(argv))
    except PackError as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
