"""`python -m bench.gpu_wiring`: whether our GPU code fits faiss-gpu, cupy and torch, on a machine that needs no GPU.

Makes an environment of its own (faiss-gpu and faiss-cpu own the same folder), looks up every name and signature that our code
uses, and runs the index's tests under the faiss-gpu wheel. It shows that the parts fit together, not that they work on a GPU:
that is `python -m bench.gpu_check`. The first run downloads about 1 GB.
"""

import argparse
import importlib
import re
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("torch", "faiss", "cupy", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_wiring", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / "build" / "gpu-wiring" / "venv", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu" / "wiring.md", help="default: %(default)s")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        sys.exit(check(arguments.out))
    python = make(arguments.venv)
    done = subprocess.run([python, "-m", "bench.gpu_wiring", "--inside", "--out", arguments.out], cwd=ROOT, check=False)
    sys.exit(done.returncode)


def make(folder: Path) -> Path:
    """The environment's Python, with the gpu and dev extras as constraints.txt has them."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    install = ["-m", "pip", "install", "--quiet", "--progress-bar", "off", "--constraint", "constraints.txt", "--editable"]
    subprocess.run([python, *install, ".[gpu,dev]"], cwd=ROOT, check=True)
    return python


def check(out: Path) -> int:
    """Runs in the environment: looks, tests, writes the report; 0 if all is well."""
    from bench.gpu_names import uses
    from index.choice import installed_faiss

    build = installed_faiss()
    build.check()
    if not build.on_gpu:
        raise SystemExit(f"FAISS {build.version} is not a GPU build")
    found = uses()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/index"]
    tests = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(tests.stdout, tests.stderr)
    summary = re.sub(r" in [\d.]+s.*", "", tests.stdout.strip().rpartition("\n")[2]).strip("= ")
    problems = [one for one in found if one.problem]
    versions = ", ".join(f"{name} {importlib.import_module(name).__version__}" for name in VERSIONS)
    compared = sum(bool(one.signature) for one in found)
    lines = [
        "# GPU wiring",
        "",
        "Written by `python -m bench.gpu_wiring` (`make gpu-wiring`), which needs no GPU. It shows that our code and these",
        "packages fit together. It does not show that anything works on a GPU, nor how fast: see `make gpu-check`.",
        "",
        f"- {versions}; FAISS is built with `{_compile_options()}`",
        f"- {len(found)} uses of faiss, cupy and torch in our GPU code: {len(problems)} do not fit; {compared} calls were",
        "  compared with a signature, the others are names, or compiled functions that have none",
        f"- the index's tests under the faiss-gpu wheel: {summary}",
        "",
        "| where | use | |",
        "|---|---|---|",
        *(
            f"| {one.where} | `{_cell(one.code)}` | {one.problem or ('fits' if one.signature else 'is there')} |"
            for one in found
        ),
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(found)} uses, {len(problems)} do not fit; tests: {summary}; written to {out}")
    return int(bool(problems) or tests.returncode != 0)


def _compile_options() -> str:
    import faiss

    return str(faiss.get_compile_options()).strip()


def _cell(code: str) -> str:
    """One line of a table's column."""
    return " ".join(code.split()).replace("|", "\\|")


if __name__ == "__main__":
    main()
