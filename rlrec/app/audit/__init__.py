"""The checks of `doctor`, one a file: each reads the store, repairs nothing, and adds findings."""
