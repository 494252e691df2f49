"""dlinfer loads torch_npu's ATB operators, which need NNAL; no test calls one. To import first."""

import torch
import torch_npu  # noqa: F401

load_library = torch.ops.load_library


def but_atb(path: str) -> None:
    if not path.endswith("libop_plugin_atb.so"):
        load_library(path)


torch.ops.load_library = but_atb
