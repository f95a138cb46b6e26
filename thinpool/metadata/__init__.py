"""The pool's books: the kernel's thin-pool metadata, read-only."""
