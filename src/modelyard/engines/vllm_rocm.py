"""vLLM's build for AMD GPUs: what is different from the one for NVIDIA's. From its source: not tried on a GPU.

vLLM publishes wheels for ROCm on an index of its own and not for every release (its installation guide for ROCm), so
there is no lock of ours: `modelyard engines pin vllm --build rocm` makes one from the index that the operator names."""

from __future__ import annotations

from collections.abc import Mapping

from modelyard.engines import vllm_cuda
from modelyard.engines.contract import Installed, Requirements
from modelyard.hardware.builds import BuildNeeds
from modelyard.records.plan import ReplicaPlan, Setting

REQUIREMENTS = Requirements(
    packages=vllm_cuda.REQUIREMENTS.packages,
    version=vllm_cuda.REQUIREMENTS.version,
    # Estimates: the wheels bring torch and ROCm's libraries with them.
    download_bytes=5_000_000_000,
    installed_bytes=12_000_000_000,
    import_check="vllm",
    build="rocm",
    without=vllm_cuda.REQUIREMENTS.without,
    local_builds=("vllm",),
    pinned_here=True,
)
NEEDS = BuildNeeds(
    build="rocm",
    machines={"x86_64": frozenset()},
    # The GPUs of vLLM's installation guide: MI200, MI300, MI350, Radeon RX 7900 and 9000, Ryzen AI.
    architectures=frozenset(
        {"gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1150", "gfx1151", "gfx1200", "gfx1201"}
    ),
    least_runtime="7.0",
)
_BACKEND = "--attention-backend"


def settings(planned: tuple[Setting, ...]) -> tuple[Setting, ...]:
    """Those of the build for NVIDIA, but for the kernels of attention."""
    triton = Setting(name=_BACKEND, value="TRITON_ATTN", reason="of vLLM's backends for ROCm the one for every GPU")
    return tuple(triton if one.name == _BACKEND else one for one in planned)


def environ(replica: ReplicaPlan, install: Installed) -> Mapping[str, str]:
    """vLLM takes HIP's variable, and refuses to start where CUDA's says something else (vllm.platforms.rocm)."""
    of_nvidia = vllm_cuda.environ(replica, install)
    kept = {name: value for name, value in of_nvidia.items() if not name.startswith("CUDA_")}
    return {**kept, "HIP_VISIBLE_DEVICES": of_nvidia["CUDA_VISIBLE_DEVICES"]}
