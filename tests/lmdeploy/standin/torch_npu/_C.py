class _NPUTaskGroupHandle:
    pass
