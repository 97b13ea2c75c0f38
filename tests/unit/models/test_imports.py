from __future__ import annotations

import subprocess
import sys

CHECK = """
import sys, time
start = time.perf_counter()
import mlx_guarded_llm.models, mlx_guarded_llm.memory.footprint, mlx_guarded_llm.memory.corrections
took = time.perf_counter() - start
heavy = {"mlx", "mlx_lm", "transformers", "huggingface_hub", "numpy"} & set(sys.modules)
assert not heavy, heavy
mlx_guarded_llm.models.architectures.check_supported({"model_type": "llama"})
assert not {"mlx", "mlx_lm"} & set(sys.modules)
print(took)
"""


def test_importing_models_is_light_and_touches_no_mlx() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", CHECK], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert float(ended.stdout) < 2.0  # 0.1 s on an idle machine
