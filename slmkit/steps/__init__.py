"""One file is one kind of step; `_step` says what a kind is made of, `_registry` finds them."""
