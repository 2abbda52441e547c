"""See tare.ascend_utils."""
