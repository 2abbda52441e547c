"""A checkpoint's config.json with attribute access, as transformers' configs have it."""
import json
import pathlib


class Config(dict):
    """A JSON object whose keys are attributes too; nested objects likewise."""

    def __init__(self, values=()):
        super().__init__({k: Config(v) if isinstance(v, dict) else v
                          for k, v in dict(values).items()})

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}") from None

    def __setattr__(self, name, value):
        self[name] = value

    def __delattr__(self, name):
        del self[name]

    def to_dict(self):
        return {k: v.to_dict() if isinstance(v, Config) else v for k, v in self.items()}


def read_json(folder, name, required=False):
    """A JSON object in a checkpoint folder; an empty Config if the file is absent, or empty."""
    path = pathlib.Path(folder) / name
    if not required and not path.is_file():
        return Config()
    with open(path, encoding="utf-8-sig") as file:
        text = file.read()
        if not required and not text.strip():
            return Config()
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: not a JSON object")
    return Config(values)
