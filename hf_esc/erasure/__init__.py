"""
Erasures in closed form: ESC and remap, each from images to an erased model.

There is no module `hf_esc.erase`: it would take the place of the function on the package.
"""
