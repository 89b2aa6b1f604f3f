"""The coverage-guided fuzzer runs where atheris is installed, and says what is missing where it is not."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("target", ["pickle", "rows"])
def test_fuzz_coverage(target: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "tools/fuzz_coverage.py"), "--target", target, "--minutes", "0.02"]
    ended = subprocess.run([*command, "--out", str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    if find_spec("atheris") is None:
        assert ended.returncode == 2
        assert ended.stderr.endswith("the package atheris is missing: pip install atheris (Linux)\n")
    else:
        assert ended.returncode == 0, ended.stderr[-2000:]
        assert "stat::number_of_executed_units" in ended.stderr
