from torch.profiler import profile  # noqa: F401


class ProfilerActivity:
    CPU = NPU = None
