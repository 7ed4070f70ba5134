# SPDX-License-Identifier: Apache-2.0
#
# For builds against the ROS wheels only: pass -DCMAKE_PROJECT_daflow_ros_INCLUDE=<this file>.
# A distribution's targets are right, so it never passes it. Once the directory is configured
# (deferred calls) two things are put right:
#
# - The CMake targets that the wheels export name include folders of the machine the wheels were
#   built on, and CMake refuses an imported target whose include folders do not exist. Those are
#   dropped.
# - A virtual environment inside the source tree gives our own targets an include folder there
#   (NumPy's), which CMake refuses to export. It is kept for the build only.

function(_daflow_drop_missing_include_directories)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT folders)
      continue()
    endif()
    set(kept)
    foreach(folder IN LISTS folders)
      # Generator expressions are kept as they are.
      if(folder MATCHES "\\$<" OR NOT IS_ABSOLUTE "${folder}" OR EXISTS "${folder}")
        list(APPEND kept "${folder}")
      endif()
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
  endforeach()
endfunction()

function(_daflow_keep_source_includes_for_build)
  get_property(targets DIRECTORY PROPERTY BUILDSYSTEM_TARGETS)
  foreach(target IN LISTS targets)
    get_target_property(folders ${target} INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT folders)
      continue()
    endif()
    set(kept)
    foreach(folder IN LISTS folders)
      string(FIND "${folder}" "${CMAKE_SOURCE_DIR}/" position)
      if(position EQUAL 0)
        set(folder "$<BUILD_INTERFACE:${folder}>")
      endif()
      list(APPEND kept "${folder}")
    endforeach()
    set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${kept}")
  endforeach()
endfunction()

cmake_language(DEFER CALL _daflow_drop_missing_include_directories)
cmake_language(DEFER CALL _daflow_keep_source_includes_for_build)
