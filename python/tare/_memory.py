"""max_memory: {0: "25GiB", "cpu": "8GiB"}, or bytes as an int. The sizes themselves are parsed and
checked in C, by the recipe's setting of that name."""
from ._checks import check_type
from ._context import recipe, shared_context
from ._native import lib


def settings(max_memory):
    """The recipe setting of a max_memory argument: [] for None. TypeError or ValueError names the
    device."""
    if max_memory is None:
        return []
    check_type(max_memory, dict, "max_memory")
    parts = []
    for device, size in max_memory.items():
        is_id = isinstance(device, int) and not isinstance(device, bool) and device >= 0
        if not is_id and device != "cpu":
            raise ValueError(f"device {device!r} is not recognized: use an integer id or 'cpu'")
        check_type(size, (int, str), f"max_memory[{device!r}]")
        if isinstance(size, int):
            if not 0 < size < 2**53:
                raise ValueError(f"max_memory[{device!r}] = {size} is not a number of bytes")
            size = f"{size / 1024:.10f}KiB"  # exact: 1024 is a power of two
        if "," in size:
            raise ValueError(f"max_memory[{device!r}] = {size!r} is not a size; try '8GiB'")
        parts.append(f"{device}={size}")
    return [("run.max_memory", ",".join(parts))] if parts else []


def host_bytes(max_memory):
    """Bytes for the host; 0: no limit."""
    return lib.tare_recipe_memory_limit(recipe(shared_context(), settings(max_memory)))
