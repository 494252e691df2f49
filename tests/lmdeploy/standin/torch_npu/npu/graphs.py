class _GraphDispatchMode:
    pass


def graph_task_group_begin(stream: object) -> None:
    raise NotImplementedError("no graphs on CPU tensors")


def graph_task_group_end(stream: object) -> None:
    raise NotImplementedError("no graphs on CPU tensors")
