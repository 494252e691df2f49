"""What dlinfer asks of torch_npu, for CPU tensors.

With it, LMDeploy's models and dlinfer's Ascend vendor run as they are where there is no NPU: here
are the names that they import, and in operators.py plain definitions of the few NPU operators that
the tested models reach. Any other operator of the NPU fails as unknown.
"""

import sys
from types import ModuleType

import torch

from . import _C, contrib, npu, operators, profiler, utils  # noqa: F401  reached by attribute

__version__ = "2.8.0"

torch.npu = sys.modules["torch.npu"] = npu
npu_fused_infer_attention_score = ModuleType("npu_fused_infer_attention_score")
