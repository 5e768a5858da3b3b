"""Install this checkout with some of its extras into the environment that runs this script.

Usage: python .ci/install.py EXTRA[,EXTRA...]

Called by the Makefile. The second call returns at once: a stamp in the environment remembers what was
installed from which checkout. Needs the standard library and pip only.

The environment ``.venv`` that make creates, and any environment without torch, gets the versions of
constraints.txt; an activated environment that has torch keeps what it has, as far as the requirements allow.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAMP = Path(sys.prefix) / ".graphattn-install.json"
CONSTRAINTS = ROOT / "constraints.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
FRAGILE = {"dgl"}  # a failure to install one of these is reported and does not stop


def say(text):
    print(f"[install] {text}", flush=True)


def pip(*arguments):
    """Run pip; True if it succeeded."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *quiet, *arguments]
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL).returncode == 0


def has_gpu():
    if shutil.which("nvidia-smi") is None:
        return False
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return listing.returncode == 0 and "GPU" in listing.stdout


def torch_index():
    """The extra package index to take torch from, or None for pip's own configuration.

    On Linux the registry's torch brings gigabytes of CUDA libraries, so a machine without a GPU takes
    PyTorch's CPU builds where it can get them. TORCH_INDEX overrides (an address; "none" for no index).
    """
    chosen = os.environ.get("TORCH_INDEX")
    if chosen:
        return None if chosen == "none" else chosen
    if sys.platform != "linux" or has_gpu():
        return None
    command = [sys.executable, "-m", "pip", "index", "versions", "torch"]
    if "+cpu" in subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout:
        return None  # pip finds a CPU build by itself (a find-links folder, a mirror) and prefers it
    try:
        urllib.request.urlopen(CPU_INDEX + "/torch/", timeout=10).close()
    except (OSError, ValueError):
        say(f"cannot reach {CPU_INDEX}: torch comes from pip's usual index, with CUDA libraries (some GB)")
        return None
    return CPU_INDEX


def fingerprint():
    """Changes when an installation has to be done again."""
    parts = [str(ROOT).encode(), (ROOT / "pyproject.toml").read_bytes(), CONSTRAINTS.read_bytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_stamp():
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if stamp.get("fingerprint") == fingerprint() else {}


def install_torch(constraints):
    if importlib.util.find_spec("torch") is not None:
        return
    index = torch_index()
    say(f"torch, from {index or 'where pip is configured to look'}")
    if not pip(*constraints, *(["--extra-index-url", index] if index else []), "torch>=2.11"):
        sys.exit("[install] pip could not install torch (its message is above)")


def install_package(extras, constraints):
    """Install the checkout, editable; returns the fragile extras that could not be had."""
    say(f"graphattn[{','.join(sorted(extras))}] (the first time takes some minutes)")
    if pip(*constraints, "--editable", f".[{','.join(sorted(extras))}]"):
        return set()
    fragile = extras & FRAGILE
    required = fragile & set(os.environ.get("GRAPHATTN_REQUIRE", "").split(","))
    if fragile and not required:
        say(f"trying again without {', '.join(fragile)}")
        if pip(*constraints, "--editable", f".[{','.join(sorted(extras - fragile))}]"):
            return fragile
    sys.exit("[install] pip could not install graphattn (its message is above)")


def main():
    if sys.version_info < (3, 10):  # noqa: UP036 (an activated environment may be older)
        sys.exit(f"[install] {sys.executable} is Python {sys.version.split()[0]}; 3.10 or newer is needed")
    extras = set(sys.argv[1].split(",")) if len(sys.argv) > 1 else set()
    stamp = read_stamp()
    missing = set(stamp.get("missing", []))
    required = set(os.environ.get("GRAPHATTN_REQUIRE", "").split(","))
    if not stamp or not extras <= set(stamp["extras"]) or missing & required:
        if importlib.util.find_spec("pip") is None:
            subprocess.run([sys.executable, "-m", "ensurepip", "--default-pip"], check=True)
        own = Path(sys.prefix) == ROOT / ".venv"
        pinned = own or importlib.util.find_spec("torch") is None
        constraints = ["--constraint", str(CONSTRAINTS)] if pinned else []
        extras |= set(stamp.get("extras", []))
        install_torch(constraints)
        missing = install_package(extras, constraints)
        stamp = {"fingerprint": fingerprint(), "extras": sorted(extras), "missing": sorted(missing)}
        STAMP.write_text(json.dumps(stamp, indent=1))
    for name in sorted(missing):
        say(f"note: {name} could not be installed here; its tests are skipped")


if __name__ == "__main__":
    main()
