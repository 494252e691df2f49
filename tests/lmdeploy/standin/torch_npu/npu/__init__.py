from . import graphs  # noqa: F401


class Stream:
    pass


class ExternalEvent:
    pass


class NPUGraph:
    pass


def is_available() -> bool:
    return False


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def get_device_name(device: object = None) -> str:
    return "Ascend910B1"


def get_soc_version() -> int:
    return 220


def empty_cache() -> None:
    pass
