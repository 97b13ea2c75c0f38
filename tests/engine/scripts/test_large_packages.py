"""The engine imports none of the large packages that transformers would import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MakeModel

LARGE = {
    "torch": "torch",
    "torchvision": "torchvision",
    "sklearn": "scikit_learn",
    "scipy": "scipy",
    "pandas": "pandas",
    "tensorflow": "tensorflow",
    "flax": "flax",
    "jax": "jax",
}
# As torch does, it says that it was imported, and has a part.
CODE = """
import os
with open(os.environ["IMPORTED"], "a") as file:
    print(__name__, file=file)
__version__ = "9.9.0"
class Tensor: ...
"""

ASK = """
import sys
from mlx_guarded_llm import Backend

def large():
    import os
    with open(os.environ["IMPORTED"]) as file:
        return file.read().split()

def use_torch():
    import torch
    import torch.nn
    from transformers import modeling_rope_utils
    from transformers.utils import is_torch_available, is_torch_tensor
    return [
        is_torch_available(),
        modeling_rope_utils.torch.Tensor is torch.Tensor,
        is_torch_tensor(torch.Tensor()),
        torch.nn.__name__,
    ]

with Backend(isolation=sys.argv[1], offline=True) as backend:
    for model in sys.argv[2:]:
        backend.generate(model, [{"role": "user", "content": "Hello"}], max_tokens=4)
    print(backend.run(large))
    print(backend.run(use_torch))
    print(backend.run(large))
    print(len(backend.generate(sys.argv[2], "Hello", max_tokens=4).text) > 0)
"""


@pytest.mark.parametrize("isolation", ["process", "thread"])
def test_only_functions_of_the_user_import_them(
    tmp_path: Path, tiny: MakeModel, isolation: str
) -> None:
    site = tmp_path / "site"
    for name, distribution in LARGE.items():
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(CODE)
        (site / name / "nn.py").write_text("")
        (info := site / f"{distribution}-9.9.0.dist-info").mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9.0\n"
        )
    (tmp_path / "program.py").write_text(ASK)
    (imported := tmp_path / "imported").touch()
    environment = os.environ | {"PYTHONPATH": str(site), "IMPORTED": str(imported)}
    models = [tiny(), tiny(architecture="qwen3")]
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), isolation, *models],
        capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "[True, True, True, 'torch.nn']",
        "['torch']",
        "True",
    ]
