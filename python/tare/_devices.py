"""Device names of scripts that were written for NPUs. tare computes on the host."""
from ._log import logger

_KNOWN = ("cpu", "npu", "gpu")


class Device(str):
    """"cpu", as torch's device would say it: tensors go `.to()` it."""

    type, index = "cpu", None


CPU = Device("cpu")


class CpuHook:
    """In place of accelerate's hook of a module, for scripts that ask it where the module runs: on
    the CPU, where its weights are."""

    execution_device, offload, weights_map = CPU, False, None

    @property
    def old_hook(self):
        return self


def host_device(dev_type, dev_id):
    """("cpu", None) for dev_type and dev_id of a config. ValueError for an unknown dev_type."""
    if dev_type not in _KNOWN:
        raise ValueError(f"Device type must be in choices [{', '.join(_KNOWN)}], not {dev_type!r}")
    if dev_id is not None and (isinstance(dev_id, bool) or not isinstance(dev_id, int)):
        raise TypeError(f"dev_id must be int, not {type(dev_id).__name__}.")
    if dev_type != "cpu":
        logger.warning("dev_type %r: tare computes on the CPU.", dev_type)
    elif dev_id is not None:
        logger.warning("dev_type is 'cpu': dev_id %d has no meaning.", dev_id)
    return CPU, None


def is_accelerator(device):
    """Whether a torch device string names an NPU ("npu", "npu:3")."""
    text = str(device)
    return text == "npu" or (text.startswith("npu:") and text[4:].isdigit())


def _is_accelerator_of_map(device):
    return is_accelerator(device) or isinstance(device, int) and not isinstance(device, bool)


def host_map(device_map):
    """transformers' device_map with the CPU in place of accelerators, whose numbers count there too:
    (what is to be given instead, an accelerator that it named or None). Of a model that is wholly on
    the CPU it is {"": "cpu"}, which needs no hooks."""
    entries = device_map if isinstance(device_map, dict) else {"": device_map}
    found = [device for device in entries.values() if _is_accelerator_of_map(device)]
    if not found:
        return device_map, None
    mapped = {name: "cpu" if _is_accelerator_of_map(device) else device
              for name, device in entries.items()}
    on_cpu = all(str(device) == "cpu" for device in mapped.values())
    return {"": "cpu"} if on_cpu else mapped, found[0]
