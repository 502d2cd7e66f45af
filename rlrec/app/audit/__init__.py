"""Each module of this package holds one check of `doctor`. A check reads the store, repairs nothing, and adds
findings."""
