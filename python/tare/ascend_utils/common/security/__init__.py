"""See tare.ascend_utils: files that a script reads and writes, with the checks of their owner's
name: no links, and nothing that others may write."""
from .path import (MAX_READ_FILE_SIZE_4G, MAX_READ_FILE_SIZE_32G, MAX_READ_FILE_SIZE_512G,
                   SafeWriteUmask, get_valid_path, get_valid_read_path, get_valid_write_path,
                   get_write_directory, json_safe_dump, json_safe_load, safe_copy_file,
                   set_file_stat)
from .type import check_element_type, check_int, check_number, check_type

__all__ = ["MAX_READ_FILE_SIZE_4G", "MAX_READ_FILE_SIZE_32G", "MAX_READ_FILE_SIZE_512G",
           "SafeWriteUmask", "check_element_type", "check_int", "check_number", "check_type",
           "get_valid_path", "get_valid_read_path", "get_valid_write_path", "get_write_directory",
           "json_safe_dump", "json_safe_load", "safe_copy_file", "set_file_stat"]
