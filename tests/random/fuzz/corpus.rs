//! Sequences that every run tries. Each is a trap into which this crate or another one has fallen, or could.

macro_rules! corpus {
    ($($name:literal)*) => { &[$(($name, include_str!(concat!("corpus/", $name)))),*] };
}

/// By name, in order, as they are in `corpus/`. They are part of the binary, which also runs where the sources are not.
pub(crate) const CORPUS: &[(&str, &str)] = corpus! {
    "a-closed-userfaultfd-keeps-nothing-waiting.ops"
    "a-hole-and-no-room.ops"
    "a-whole-huge-page.ops"
    "accessors-only.ops"
    "descriptors-lost.ops"
    "device-block-refuses-system-calls.ops"
    "dropped-behind-a-fault.ops"
    "dropped-under-guards-and-pins.ops"
    "fault-flags.ops"
    "few-descriptors.ops"
    "forks.ops"
    "groups-are-undone.ops"
    "guards-inside-guards.ops"
    "holes-that-are-filled.ops"
    "huge-pages.ops"
    "mapped-while-disabled.ops"
    "memory-in-the-place-of-a-mapping.ops"
    "mprotect-of-all-of-it.ops"
    "no-mappings-left.ops"
    "no-right-and-nobody-to-serve.ops"
    "page-tables-aside.ops"
    "page-tables-beside-a-hole.ops"
    "parts-treated-differently.ops"
    "pins-told-and-not-told.ops"
    "read-only.ops"
    "rights-around-a-hole.ops"
    "rights-taken-away.ops"
    "stores-to-all-ones-are-lost.ops"
    "the-last-bytes.ops"
    "threads-at-the-limit.ops"
    "unmapped-while-disabled.ops"
    "userfaultfds-whose-numbers-are-used-again.ops"
    "waits-at-every-strategy.ops"
    "waits-outlive-their-region.ops"
};
