//! Emulated memory for host tests: an arena with its descriptors.
