"""See tare.ascend_utils."""


class ResListToRelease(list):
    """A list of context managers: `with ResListToRelease(a, b):` enters and leaves them in this
    order."""

    def __init__(self, *resources):
        super().__init__(resources)

    def __enter__(self):
        for one in self:
            one.__enter__()
        return self

    def __exit__(self, *error):
        for one in self:
            one.__exit__(*error)
