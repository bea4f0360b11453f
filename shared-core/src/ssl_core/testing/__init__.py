"""What the tests of the core and of every package share; nothing that is shipped imports it."""
