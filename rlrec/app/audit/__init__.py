"""What `doctor` looks at, one check a file: each reads the store, repairs nothing, and says what it found."""
