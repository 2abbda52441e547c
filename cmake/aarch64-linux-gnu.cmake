# Toolchain for 64-bit ARM: Debian's gcc-aarch64-linux-gnu, the libraries that `make aarch64`
# unpacks (another folder of them: -DTARE_AARCH64_ROOT=...), tests under qemu's user emulation.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_LIBRARY_ARCHITECTURE aarch64-linux-gnu)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)

get_filename_component(root ${CMAKE_CURRENT_LIST_DIR}/../build/aarch64-root ABSOLUTE)
set(TARE_AARCH64_ROOT ${root} CACHE PATH "Libraries for arm64, unpacked")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES TARE_AARCH64_ROOT)
set(CMAKE_FIND_ROOT_PATH ${TARE_AARCH64_ROOT} /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)

set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
