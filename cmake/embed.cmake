# Writes the recipes that ship and the built-in calibration prompts as C arrays:
#   cmake -D OUTPUT=embedded.c -D RECIPES=recipes -D PROMPTS=builtin.jsonl -P embed.cmake
function(file_as_bytes file result)
  file(READ ${file} hex HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  set(${result} "${bytes}" PARENT_SCOPE)
endfunction()

file(GLOB recipes RELATIVE ${RECIPES} ${RECIPES}/*.yaml)
list(TRANSFORM recipes REPLACE "\\.yaml$" "")
list(SORT recipes) # by name: with ".yaml", "a-b" would stand before "a"
set(arrays "")
set(rows "")
set(number 0)
foreach(name IN LISTS recipes)
  file_as_bytes(${RECIPES}/${name}.yaml bytes)
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
