"""Weights that stay small in a running model, and the products with them.

``_array`` whole numbers with steps, ``_twelve`` bfloat16 in 12 bits, ``_nibbles`` two numbers in a byte,
``_patches`` the few weights that fit neither, ``_matrices`` what a product reads of each, ``_dot`` products,
``_resident`` trees.
"""
