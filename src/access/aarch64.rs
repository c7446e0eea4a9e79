//! Comes in with the recoverable accesses.
