"""See tare.msmodelslim."""
from tare import logger, set_logger_level

LOGGER_FUNC = {"debug": logger.debug, "info": logger.info, "warning": logger.warning,
               "warn": logger.warning, "error": logger.error}

__all__ = ["LOGGER_FUNC", "logger", "set_logger_level"]
