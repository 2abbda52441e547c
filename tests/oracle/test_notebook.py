"""The notebook's cells run in order, on SmolLM2."""
import json
import os
import subprocess
import sys

from conftest import EXAMPLES, ROOT, SMOLLM2


def test_notebook(tmp_path):
    notebook = json.loads((EXAMPLES / "smollm2.ipynb").read_text())
    assert notebook["nbformat"] == 4 and all(not c.get("outputs") for c in notebook["cells"])
    source = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    for name in ("CMakeLists.txt", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "build" / "demo").mkdir(parents=True)
    (tmp_path / "build" / "demo" / "SmolLM2-135M-Instruct").symlink_to(SMOLLM2.resolve())
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True,
                          timeout=600, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT / "python")})
    assert done.returncode == 0, done.stderr
    assert "int8 (1536, 576)" in done.stdout
