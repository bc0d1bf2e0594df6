"""How weights are loaded."""


class LoadConfig:
    """Only its format."""

    def __init__(self, load_format):
        self.load_format = load_format
