"""See tare.ascend_utils.common.security."""
from tare import _checks


def check_type(value, value_type, param_name="value"):
    _checks.check_type(value, value_type, param_name)


def check_number(value, value_type=(int, float), min_value=None, max_value=None,
                 param_name="value"):
    _checks.check_number(value, value_type, min_value, max_value, param_name)


def check_int(value, min_value=None, max_value=None, param_name="value"):
    check_number(value, int, min_value, max_value, param_name)


def check_element_type(value, element_type, value_type=(list, tuple), param_name="value"):
    _checks.check_elements(value, element_type, value_type, param_name)
