"""Each file here holds one check of `doctor`, which reads the store, repairs nothing, and adds findings."""
