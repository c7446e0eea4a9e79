//! Sequences that are always tried: each a trap that this crate or another one has fallen into, or could.

/// By name, as they are in `corpus/`. Part of the binary, which also runs where the sources are not.
pub(crate) const CORPUS: &[(&str, &str)] = &[];
