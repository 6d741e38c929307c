"""The recipes: scripts that use the package as a user would; `pml_supcon/recipes` is a link to this folder."""
