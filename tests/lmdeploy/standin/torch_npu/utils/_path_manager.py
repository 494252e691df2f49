class PathManager:
    @staticmethod
    def check_directory_path_readable(path: str) -> None:
        open(path, "rb").close()
