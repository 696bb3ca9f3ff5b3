"""One family of vision models a file, as transformers has them."""
