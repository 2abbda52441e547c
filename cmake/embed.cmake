# Writes the recipes that ship and the built-in calibration prompts as C arrays:
#   cmake -D OUTPUT=embedded.c -D RECIPES=recipes -D PROMPTS=builtin.jsonl -P embed.cmake
function(file_as_bytes file result)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  set(${result} "${bytes}" PARENT_SCOPE)
endfunction()

file(GLOB recipes ${RECIPES}/*.yaml)
list(SORT recipes)
set(arrays "")
set(rows "")
set(number 0)
foreach(recipe IN LISTS recipes)
  get_filename_component(name ${recipe} NAME)
  string(REGEX REPLACE "\\.yaml$" "" name ${name}) # NAME_WE would cut "llama3.1-70b" at its first dot
  file_as_bytes(${recipe} bytes)
  string(APPEND arrays "static const unsigned char text_${number}[] = {\n${bytes}};\n")
  string(APPEND rows "    {\"${name}\", text_${number}, sizeof text_${number}},\n")
  math(EXPR number "${number} + 1")
endforeach()
file_as_bytes(${PROMPTS} prompts)
file(WRITE ${OUTPUT} "/* Made by cmake/embed.cmake. */
#include \"calibration/samples.h\"
#include \"quantize/recipe.h\"

${arrays}
const shipped_recipe shipped_recipes[] = {\n${rows}};
const size_t num_shipped_recipes = ${number};
const unsigned char builtin_prompts[] = {\n${prompts}0};
const size_t builtin_prompts_size = sizeof builtin_prompts - 1;
")
