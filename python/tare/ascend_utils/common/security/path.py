"""See tare.ascend_utils.common.security."""
import json
import os
import shutil
import stat

from .type import check_type

MAX_READ_FILE_SIZE_4G, MAX_READ_FILE_SIZE_32G, MAX_READ_FILE_SIZE_512G = 2**32, 2**35, 2**39

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS_SEE = stat.S_IROTH | stat.S_IXOTH


def get_valid_path(path, extensions=None):
    """The path without links in it; ValueError for one that is a link itself."""
    check_type(path, (str, os.PathLike), "path")
    path = os.fspath(path)
    if not path or "\0" in path:
        raise ValueError(f"{path!r} is no path")
    if os.path.islink(os.path.abspath(path)):
        raise ValueError(f"{path} is a link")
    ends = (extensions,) if isinstance(extensions, str) else tuple(extensions or ())
    if ends and not path.endswith(ends):
        raise ValueError(f"{path} must end in {' or '.join(ends)}")
    return os.path.realpath(path)


def get_valid_read_path(path, extensions=None, size_max=MAX_READ_FILE_SIZE_4G, check_user_stat=True,
                        is_dir=False):
    """get_valid_path of a file (a folder) that can be read and that only its owner can change."""
    real = get_valid_path(path, extensions)
    if not (os.path.isdir(real) if is_dir else os.path.isfile(real)):
        raise ValueError(f"{path} is no {'folder' if is_dir else 'file'}")
    about = os.stat(real)
    if check_user_stat and about.st_mode & _OTHERS_WRITE:
        raise ValueError(f"{path} can be changed by others: chmod go-w")
    if not os.access(real, os.R_OK):
        raise ValueError(f"{path} cannot be read")
    if not is_dir and 0 < size_max < about.st_size:
        raise ValueError(f"{path} is larger than {size_max} bytes")
    return real


def get_valid_write_path(path, extensions=None, check_user_stat=True, is_dir=False,
                         warn_exists=True):
    """get_valid_path of a file, there or not, in a folder that can be written to; one that is there
    must be its owner's alone."""
    del warn_exists
    real = get_valid_path(path, extensions)
    folder = real if is_dir else os.path.dirname(real)
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} is no folder that can be written to")
    if is_dir or not os.path.exists(real):
        return real
    if os.path.isdir(real) or not os.access(real, os.W_OK):
        raise ValueError(f"{path} is no file that can be written to")
    about = os.stat(real)
    if check_user_stat and (about.st_uid != os.getuid()
                            or about.st_mode & (_OTHERS_WRITE | _OTHERS_SEE)):
        raise ValueError(f"{path} belongs to others or is open to them: chmod o=,g-w")
    return real


def get_write_directory(dir_name, write_mode=0o750):
    """get_valid_path of a folder, which is made if it is missing."""
    real = get_valid_path(dir_name)
    os.makedirs(real, mode=write_mode, exist_ok=True)
    return real


def json_safe_load(path, extensions="json", size_max=MAX_READ_FILE_SIZE_4G, key_max_len=512,
                   check_user_stat=True):
    del key_max_len
    with open(get_valid_read_path(path, extensions, size_max, check_user_stat),
              encoding="utf-8") as file:
        return json.load(file)


def json_safe_dump(obj, path, indent=None, extensions="json", check_user_stat=True):
    real = get_valid_write_path(path, extensions, check_user_stat)
    descriptor = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(obj, file, indent=indent)


def safe_copy_file(src_path, dest_path, size_max=MAX_READ_FILE_SIZE_4G):
    source = get_valid_read_path(src_path, size_max=size_max)
    if os.path.isdir(dest_path):
        dest_path = os.path.join(dest_path, os.path.basename(source))
    shutil.copy2(source, get_valid_write_path(dest_path), follow_symlinks=False)


def set_file_stat(path, stat_mode="640"):
    real = get_valid_path(path)
    if os.path.isfile(real):
        os.chmod(real, int(stat_mode, 8))


class SafeWriteUmask:
    """`with SafeWriteUmask():` files are made with this umask."""

    def __init__(self, umask=0o027):
        self.umask = umask

    def __enter__(self):
        self._before = os.umask(self.umask)

    def __exit__(self, *_error):
        os.umask(self._before)
