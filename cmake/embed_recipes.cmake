# Writes recipes/*.yaml as C arrays:
#   cmake -D OUTPUT=shipped_recipes.c -D FOLDER=recipes -P embed_recipes.cmake
file(GLOB recipes ${FOLDER}/*.yaml)
list(SORT recipes)
set(arrays "")
set(rows "")
set(number 0)
foreach(recipe IN LISTS recipes)
  get_filename_component(name ${recipe} NAME)
  string(REGEX REPLACE "\\.yaml$" "" name ${name}) # NAME_WE would cut "llama3.1-70b" at its first dot
  file(READ ${recipe} hex HEX)
  string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(APPEND arrays "static const unsigned char text_${number}[] = {\n${bytes}};\n")
  string(APPEND rows "    {\"${name}\", text_${number}, sizeof text_${number}},\n")
  math(EXPR number "${number} + 1")
endforeach()
file(WRITE ${OUTPUT} "/* Made by cmake/embed_recipes.cmake from recipes/. */
#include \"quantize/recipe.h\"

${arrays}
const shipped_recipe shipped_recipes[] = {\n${rows}};
const size_t num_shipped_recipes = ${number};
")
