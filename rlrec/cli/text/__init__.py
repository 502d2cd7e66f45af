"""Values as people write and read them."""
