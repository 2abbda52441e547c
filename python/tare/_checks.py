"""Checks of arguments, with the words that msModelSlim uses: they name the parameter."""


def type_names(types):
    names = [t.__name__ for t in (types if isinstance(types, tuple) else (types,))]
    return names[0] if len(names) == 1 else " or ".join(names)


def check_type(value, types, name):
    """TypeError unless `value` is one of `types`; a bool is no int."""
    wanted = types if isinstance(types, tuple) else (types,)
    is_bool = isinstance(value, bool) and bool not in wanted
    if is_bool or not isinstance(value, wanted):
        raise TypeError(f"{name} must be {type_names(types)}, not {type(value).__name__}.")


def check_number(value, types, low, high, name):
    check_type(value, types, name)
    if value != value:
        raise ValueError(f"{name} is not a number.")
    if high is not None and value > high:
        raise ValueError(f"{name} = {value} is larger than {high}.")
    if low is not None and value < low:
        raise ValueError(f"{name} = {value} is smaller than {low}.")


def check_elements(value, element_type, container, name):
    check_type(value, container, name)
    if not all(isinstance(x, element_type) for x in value):
        raise ValueError(f"Element in {name} is invalid. Should be all {element_type.__name__}.")


default_compat = None  # of an argument that is left out: tare.run --compat sets it


def check_compat(value):
    """The mode of a `compat` argument: None or "msmodelslim"."""
    if value not in (None, "none", "msmodelslim"):
        raise ValueError(f"compat {value!r} is not known; possible: None, 'none', 'msmodelslim'")
    return default_compat if value is None else None if value == "none" else value


def check_mtp(value):
    """What becomes of MTP layers; None: they are left out, with a warning."""
    if value not in (None, "none", "float", "mix"):
        raise ValueError(f"mtp {value!r} is not known; possible: None, 'none', 'float', 'mix'")
