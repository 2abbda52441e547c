# What `make install` puts where. The prefix may be moved afterwards: nothing installed names it.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# ---- library and command, which finds the library beside itself
file(RELATIVE_PATH TARE_BIN_TO_LIB "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
set_target_properties(tare_command PROPERTIES INSTALL_RPATH "\$ORIGIN/${TARE_BIN_TO_LIB}")
install(TARGETS tare EXPORT tare-targets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS tare_command RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES include/tare/tare.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tare)

# ---- for pkg-config and for find_package(tare), which gives the target tare::tare
set(TARE_PC_DIR "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH TARE_PC_PREFIX "${TARE_PC_DIR}" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" TARE_PC_PREFIX "${TARE_PC_PREFIX}")
file(RELATIVE_PATH TARE_PC_LIB "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_LIBDIR}")
file(RELATIVE_PATH TARE_PC_INCLUDE "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
configure_file(cmake/tare.pc.in tare.pc @ONLY)
install(FILES ${CMAKE_BINARY_DIR}/tare.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(TARE_PACKAGE ${CMAKE_INSTALL_LIBDIR}/cmake/tare)
configure_package_config_file(cmake/tare-config.cmake.in tare-config.cmake
  INSTALL_DESTINATION ${TARE_PACKAGE})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/tare-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/tare-config.cmake ${CMAKE_BINARY_DIR}/tare-config-version.cmake
  DESTINATION ${TARE_PACKAGE})
install(EXPORT tare-targets NAMESPACE tare:: DESTINATION ${TARE_PACKAGE})

# ---- the manual, which the command's own help is made into; a cross build without an emulator
# cannot ask it, and goes without
find_program(TARE_AWK awk)
if(TARE_AWK AND (NOT CMAKE_CROSSCOMPILING OR CMAKE_CROSSCOMPILING_EMULATOR))
  add_custom_command(OUTPUT tare.1
    COMMAND sh ${CMAKE_SOURCE_DIR}/cmake/man_page.sh ${CMAKE_SOURCE_DIR}/cmake/man_page.awk tare.1
            ${CMAKE_CROSSCOMPILING_EMULATOR} $<TARGET_FILE:tare_command>
    DEPENDS tare_command cmake/man_page.sh cmake/man_page.awk
    VERBATIM)
  add_custom_target(tare_man ALL DEPENDS tare.1)
  install(FILES ${CMAKE_BINARY_DIR}/tare.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()

install(FILES src/cli/completion.bash RENAME tare
  DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
